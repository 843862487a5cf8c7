//! Writes a merged /etc to a disk: every attribute of every entry, and then the name.
//!
//! ```text
//! remove NAME.new → write NAME.new, deepest times last → sync the file system → remove NAME → rename
//! ```
//!
//! Invariant: what has its name is whole or not there. Whoever is interrupted here begins again.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bedplate_model::{Content, FileContent, Metadata, Node, NodeId, Rdev, Tree, TreePath};
use bedplate_sys::{durable, files, xattr};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid};

use super::merge::{Merged, Source};

/// Opens a content of the new image.
pub type OpenContent<'a> = dyn Fn(&FileContent) -> io::Result<Box<dyn Read + Send + 'a>> + 'a;

/// Why a merged /etc could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct ApplyError {
    path: PathBuf,
    source: io::Error,
}

/// Writes a merged /etc, or a layer of one, as `directory/name`, replacing one that is there.
///
/// `here` is the /etc that files of this machine are copied from; `open` opens contents of the image.
pub fn apply(
    merged: &Merged,
    here: &Path,
    open: &OpenContent<'_>,
    (directory, name): (&Path, &str),
) -> Result<(), ApplyError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ApplyError { path, source }
    };
    let new = format!("{name}.new");
    let unfinished = directory.join(&new);
    let finished = directory.join(name);
    let parent = files::open_root(directory).map_err(failed(directory))?;
    files::remove_tree(&parent, new.as_ref()).map_err(failed(&unfinished))?;
    let usual = Mode::from_raw_mode(0o700);
    rustix::fs::mkdirat(&parent, new.as_str(), usual)
        .map_err(|error| failed(&unfinished)(error.into()))?;
    let root = files::open_directory(&parent, new.as_ref()).map_err(failed(&unfinished))?;
    let writer = Writer {
        merged,
        open,
        here: files::open_root(here).map_err(failed(here))?,
        shown: &unfinished,
    };
    writer.directory(&root, Tree::ROOT, &mut TreePath::root())?; // 1. everything is written …
    durable::sync_filesystem(&root).map_err(failed(&unfinished))?; // 2. … and on the disk …
    files::remove_tree(&parent, name.as_ref()).map_err(failed(&finished))?;
    durable::rename(&unfinished, &finished).map_err(failed(&finished)) // 3. … before it counts.
}

struct Writer<'a, 'content> {
    merged: &'a Merged,
    open: &'a OpenContent<'content>,
    here: OwnedFd,
    shown: &'a Path,
}

impl Writer<'_, '_> {
    /// Fills a directory and gives it its attributes last: filling changes its time.
    fn directory(
        &self,
        directory: &OwnedFd,
        id: NodeId,
        path: &mut TreePath,
    ) -> Result<(), ApplyError> {
        for (name, child) in self.merged.tree.entries(id).into_iter().flatten() {
            path.push(name.clone());
            let failed = |error: io::Error, path: &TreePath| ApplyError {
                path: self.shown.join(OsStr::from_bytes(&path.to_bytes())),
                source: error,
            };
            let node = self.merged.tree.node(*child);
            match &node.content {
                Content::Directory(_) => {
                    let made = rustix::fs::mkdirat(
                        directory,
                        name.as_os_str(),
                        Mode::from_raw_mode(0o700),
                    )
                    .map_err(io::Error::from)
                    .and_then(|()| files::open_directory(directory, name.as_os_str()))
                    .map_err(|error| failed(error, path))?;
                    self.directory(&made, *child, path)?;
                }
                Content::File(_) => self
                    .file(directory.as_fd(), name.as_os_str(), *child, path)
                    .map_err(|error| failed(error, path))?,
                Content::Symlink(_)
                | Content::BlockDevice(_)
                | Content::CharacterDevice(_)
                | Content::Fifo
                | Content::Socket => special(directory.as_fd(), name.as_os_str(), node)
                    .map_err(|error| failed(error, path))?,
            }
            path.pop();
        }
        set_attributes(directory.as_fd(), &self.merged.tree.node(id).metadata).map_err(|source| {
            ApplyError {
                path: self.shown.join(OsStr::from_bytes(&path.to_bytes())),
                source,
            }
        })
    }

    fn file(
        &self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        id: NodeId,
        path: &TreePath,
    ) -> io::Result<()> {
        let mut file = files::create_file(directory, name, 0o600)?;
        match self.merged.sources.get(&id) {
            Some(Source::Here) => {
                let mut original = self.open_here(path)?;
                io::copy(&mut original, &mut file)?;
            }
            Some(Source::Image(content)) => {
                io::copy(&mut (self.open)(content)?, &mut file)?;
            }
            Some(Source::Bytes(bytes)) => file.write_all(bytes)?,
            None => return Err(io::Error::other("the merge gave this file no content")),
        }
        set_attributes(file.as_fd(), &self.merged.tree.node(id).metadata)
    }

    /// Opens a file of this machine's /etc, following no link on the way.
    fn open_here(&self, path: &TreePath) -> io::Result<File> {
        let Some((parents, name)) = path.split_last() else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        let parents = parents.iter().map(|name| name.as_os_str());
        let directory = files::open_beneath(&self.here, parents)?;
        files::open_file(&directory, name.as_os_str())
    }
}

/// Gives an open file or directory its attributes, the time last.
pub(crate) fn set_attributes(file: BorrowedFd<'_>, metadata: &Metadata) -> io::Result<()> {
    let stat = rustix::fs::fstat(file)?;
    // Who is not root may keep what is theirs already.
    if (stat.st_uid, stat.st_gid) != (metadata.uid, metadata.gid) {
        rustix::fs::fchown(
            file,
            Some(Uid::from_raw(metadata.uid)),
            Some(Gid::from_raw(metadata.gid)),
        )?;
    }
    for (name, value) in &metadata.xattrs {
        xattr::set_on_file(file, name, value)?;
    }
    // After the owner, whose change takes setuid away.
    rustix::fs::fchmod(file, Mode::from_raw_mode(metadata.mode.into()))?;
    Ok(rustix::fs::futimens(file, &times(metadata))?)
}

/// Makes a link, device, pipe or socket with its attributes.
fn special(directory: BorrowedFd<'_>, name: &OsStr, node: &Node) -> io::Result<()> {
    let Node { metadata, content } = node;
    let mode = Mode::from_raw_mode(metadata.mode.into());
    let make = |kind, device| rustix::fs::mknodat(directory, name, kind, mode, device);
    let number = |rdev: &Rdev| rustix::fs::makedev(rdev.major, rdev.minor);
    match content {
        Content::Symlink(target) => {
            rustix::fs::symlinkat(OsStr::from_bytes(target), directory, name)?;
        }
        Content::BlockDevice(rdev) => make(FileType::BlockDevice, number(rdev))?,
        Content::CharacterDevice(rdev) => make(FileType::CharacterDevice, number(rdev))?,
        Content::Fifo => make(FileType::Fifo, 0)?,
        Content::Socket => make(FileType::Socket, 0)?,
        Content::Directory(_) | Content::File(_) => {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    }
    let here = AtFlags::SYMLINK_NOFOLLOW;
    let stat = rustix::fs::statat(directory, name, here)?;
    if (stat.st_uid, stat.st_gid) != (metadata.uid, metadata.gid) {
        let owner = Some(Uid::from_raw(metadata.uid));
        let group = Some(Gid::from_raw(metadata.gid));
        rustix::fs::chownat(directory, name, owner, group, here)?;
    }
    for (attribute, value) in &metadata.xattrs {
        xattr::set_on_entry(directory, name, attribute, value)?;
    }
    if !matches!(content, Content::Symlink(_)) {
        rustix::fs::chmodat(directory, name, mode, AtFlags::empty())?; // mknod minds the umask
    }
    Ok(rustix::fs::utimensat(
        directory,
        name,
        &times(metadata),
        here,
    )?)
}

fn times(metadata: &Metadata) -> Timestamps {
    let time = Timespec {
        tv_sec: metadata.mtime.seconds,
        tv_nsec: metadata.mtime.nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
