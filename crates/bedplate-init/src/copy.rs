//! Copies of directories with every attribute: type, mode, owner, times to the nanosecond, extended
//! attributes, device numbers, hard links.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bedplate_sys::{files, xattr};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid};

/// What could not be copied, and why.
#[derive(Debug, thiserror::Error)]
#[error("{path}")]
pub(crate) struct CopyError {
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

/// Copies a directory to a name that must be free. The trees of images are a few levels deep.
pub(crate) fn tree(from: &Path, to: &Path) -> Result<(), CopyError> {
    Copy::default().entry(from, to)
}

/// Copies a directory itself, and nothing that is in it, to a name that must be free.
pub(crate) fn directory(from: &Path, to: &Path) -> Result<(), CopyError> {
    fs::symlink_metadata(from)
        .and_then(|metadata| {
            content(from, to, &metadata)?;
            attributes(from, to, &metadata)
        })
        .map_err(|source| CopyError {
            path: from.to_owned(),
            source,
        })
}

#[derive(Default)]
struct Copy {
    /// Copies of files that have further names.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Copy {
    fn entry(&mut self, from: &Path, to: &Path) -> Result<(), CopyError> {
        let failed = |source| CopyError {
            path: from.to_owned(),
            source,
        };
        let metadata = fs::symlink_metadata(from).map_err(failed)?;
        if !metadata.is_dir() && metadata.nlink() > 1 {
            let first = self.linked.entry((metadata.dev(), metadata.ino()));
            if let std::collections::hash_map::Entry::Occupied(first) = &first {
                return fs::hard_link(first.get(), to).map_err(failed);
            }
            first.or_insert_with(|| to.to_owned());
        }
        content(from, to, &metadata).map_err(failed)?;
        if metadata.is_dir() {
            let mut names: Vec<_> = fs::read_dir(from)
                .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
                .map_err(failed)?;
            names.sort_unstable();
            for name in names {
                self.entry(&from.join(&name), &to.join(&name))?;
            }
        }
        // Last: filling a directory changes its time, and a new owner takes privileges away.
        attributes(from, to, &metadata).map_err(failed)
    }
}

fn content(from: &Path, to: &Path, metadata: &Metadata) -> io::Result<()> {
    let kind = FileType::from_raw_mode(metadata.mode());
    match kind {
        FileType::RegularFile => {
            let mut source = File::open(from)?;
            let mut copy = File::options().write(true).create_new(true).open(to)?;
            io::copy(&mut source, &mut copy).map(drop)
        }
        FileType::Directory => fs::create_dir(to),
        FileType::Symlink => std::os::unix::fs::symlink(fs::read_link(from)?, to),
        _ => {
            let mode = Mode::from_raw_mode(metadata.mode());
            Ok(rustix::fs::mknodat(CWD, to, kind, mode, metadata.rdev())?)
        }
    }
}

fn attributes(from: &Path, to: &Path, metadata: &Metadata) -> io::Result<()> {
    let owner = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    let unfollowed = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(CWD, to, Some(owner.0), Some(owner.1), unfollowed)?;
    if !metadata.is_symlink() {
        rustix::fs::chmod(to, Mode::from_raw_mode(metadata.mode()))?;
    }
    let (Some(parent), Some(name)) = (to.parent(), to.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let (Some(from_parent), Some(from_name)) = (from.parent(), from.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let (from_parent, parent) = (files::open_root(from_parent)?, files::open_root(parent)?);
    for (attribute, value) in xattr::of_entry(&from_parent, from_name)? {
        xattr::set_on_entry(&parent, name, &attribute, &value)?;
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: metadata.atime(),
            tv_nsec: metadata.atime_nsec(),
        },
        last_modification: Timespec {
            tv_sec: metadata.mtime(),
            tv_nsec: metadata.mtime_nsec(),
        },
    };
    Ok(rustix::fs::utimensat(CWD, to, &times, unfollowed)?)
}
