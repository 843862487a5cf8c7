//! Files by directory handle: nothing here follows a symbolic link or leaves its directory.
//!
//! ```text
//! directory handle ─ open_directory · open_file · create_file · open_beneath (several components)
//! ```
//!
//! Invariant: a path is resolved below the handle, component by component; a link on the way, put there
//! by whoever, is an error.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags,
};
use rustix::io::Errno;

/// The most bytes of a path that are resolved in one call; deeper paths take several (`PATH_MAX` is 4096).
const STEP_BYTES: usize = 2048;

/// Opens a directory by its path in the file system, following links as every program does.
pub fn open_root(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens a directory that is an entry of another one.
pub fn open_directory(parent: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Opens an entry of a directory for reading.
///
/// Never waits: a named pipe that took the place of a file opens at once, and `fstat` tells.
pub fn open_file(parent: impl AsFd, name: &OsStr) -> io::Result<File> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?.into())
}

/// Reads a whole entry of a directory that must be a regular file of at most `max` bytes.
///
/// A link, a pipe or a longer file in its place is an error (`InvalidData`, or what the system says),
/// and never waited for; only a name that is not there is `NotFound`.
pub fn read_file(parent: impl AsFd, name: &OsStr, max: u64) -> io::Result<Vec<u8>> {
    let file = open_file(parent, name)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > max {
        let problem = format!("it is not a regular file of at most {max} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, max), &mut bytes)?;
    Ok(bytes)
}

/// Makes a new file and opens it for reading and writing; the name must be free.
pub fn create_file(parent: impl AsFd, name: &OsStr, mode: u32) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(mode))?.into())
}

/// Makes a file without a name in a directory, or returns `None` where the file system cannot.
pub fn create_unnamed(directory: impl AsFd, mode: u32) -> io::Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, ".", flags, Mode::from_raw_mode(mode)) {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Opens the same file once more, for reading alone.
pub fn reopen_read_only(file: impl AsFd) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Opens the directory at `components` below `root`; no component may be a link.
///
/// Paths of any depth: the way is taken in steps that the kernel accepts.
pub fn open_beneath<'a>(
    root: impl AsFd,
    components: impl IntoIterator<Item = &'a OsStr>,
) -> io::Result<OwnedFd> {
    let mut current = rustix::fs::openat(
        root,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut step = Vec::new();
    for name in components {
        if !step.is_empty() {
            if step.len() + name.len() > STEP_BYTES {
                current = enter(&current, OsStr::from_bytes(&step))?;
                step.clear();
            } else {
                step.push(b'/');
            }
        }
        step.extend_from_slice(name.as_bytes());
    }
    if !step.is_empty() {
        current = enter(&current, OsStr::from_bytes(&step))?;
    }
    Ok(current)
}

fn enter(directory: &OwnedFd, path: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve) {
            // A rename somewhere made the kernel unsure; it says to try again.
            Err(Errno::AGAIN) => {}
            other => return Ok(other?),
        }
    }
}

/// Renames between two directories; returns whether it did: `false` where the new name is taken.
pub fn rename_if_free(from: (impl AsFd, &OsStr), to: (impl AsFd, &OsStr)) -> io::Result<bool> {
    let (from_directory, to_directory) = (from.0.as_fd(), to.0.as_fd());
    let flags = RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(from_directory, from.1, to_directory, to.1, flags) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        // The file system has no such rename: a hard link refuses a taken name just as well.
        Err(Errno::INVAL | Errno::NOSYS) => {
            if !link((from_directory, from.1), (to_directory, to.1))? {
                return Ok(false);
            }
            rustix::fs::unlinkat(from_directory, from.1, AtFlags::empty())?;
            Ok(true)
        }
        Err(error) => Err(error.into()),
    }
}

/// Gives a file one more name; returns whether it did: `false` where the new name is taken.
pub fn link(from: (impl AsFd, &OsStr), to: (impl AsFd, &OsStr)) -> io::Result<bool> {
    match rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Shares a whole file's blocks with another one; returns whether the file system could.
pub fn clone_file(source: &File, destination: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(destination, source) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: std::ffi::OsString,
    /// Its type, where the file system tells without a further call.
    pub kind: Option<FileType>,
}

/// Lists a directory, without `.` and `..`, in the file system's order.
pub fn list(directory: impl AsFd) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        entries.push(Entry {
            name: OsStr::from_bytes(name).to_owned(),
            kind: match entry.file_type() {
                FileType::Unknown => None,
                kind => Some(kind),
            },
        });
    }
    Ok(entries)
}

/// Returns whether something is mounted on an entry of a directory, without making what is mounted only
/// when it is used.
pub fn is_mount(parent: impl AsFd, name: &OsStr) -> io::Result<bool> {
    let parent = parent.as_fd();
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let entry = rustix::fs::statx(parent, name, flags, StatxFlags::TYPE)?;
    let known = entry.stx_attributes_mask;
    if known.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(entry.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // Before Linux 5.8 only another device tells. An overlay gives its files devices of their own.
    let above = rustix::fs::statx(parent, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
    let is_directory = FileType::from_raw_mode(entry.stx_mode.into()) == FileType::Directory;
    let device = |stat: &Statx| (stat.stx_dev_major, stat.stx_dev_minor);
    Ok(is_directory && device(&entry) != device(&above))
}

/// Removes an entry with everything below it, links unfollowed; one that is not there is fine.
pub fn remove_tree(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    let parent = parent.as_fd();
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR for directories, POSIX says EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    match open_directory(parent, name) {
        Ok(directory) => {
            for entry in list(&directory)? {
                remove_tree(&directory, &entry.name)?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_link_on_the_way_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("a", directory.path().join("link")).unwrap();
        let root = open_root(directory.path()).unwrap();
        let parts = |text: &'static str| text.split('/').map(OsStr::new);
        assert!(open_beneath(&root, parts("a/b")).is_ok());
        assert!(open_beneath(&root, parts("link/b")).is_err());
        assert!(open_beneath(&root, parts("a/../..")).is_err());
        assert!(open_directory(&root, OsStr::new("link")).is_err());
    }

    #[test]
    fn paths_longer_than_the_kernel_takes_are_walked_in_steps() {
        let directory = tempfile::tempdir().unwrap();
        let root = open_root(directory.path()).unwrap();
        let name = "d".repeat(200);
        let mut current = open_beneath(&root, []).unwrap();
        for _ in 0..40 {
            rustix::fs::mkdirat(&current, &*name, Mode::from_raw_mode(0o755)).unwrap();
            current = open_directory(&current, OsStr::new(&name)).unwrap();
        }
        assert!(open_beneath(&root, vec![OsStr::new(&name); 40]).is_ok());
        remove_tree(&root, OsStr::new(&name)).unwrap();
        assert!(list(&root).unwrap().is_empty());
    }

    #[test]
    fn what_is_mounted_is_told_from_a_plain_directory() {
        let root = open_root(std::path::Path::new("/")).unwrap();
        assert!(is_mount(&root, OsStr::new("proc")).unwrap());
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("plain")).unwrap();
        let root = open_root(directory.path()).unwrap();
        assert!(!is_mount(&root, OsStr::new("plain")).unwrap());
        assert!(is_mount(&root, OsStr::new("gone")).is_err());
    }

    #[test]
    fn a_taken_name_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let root = open_root(directory.path()).unwrap();
        let [one, two] = ["one", "two"].map(OsStr::new);
        fs::write(directory.path().join(one), "1").unwrap();
        assert!(link((&root, one), (&root, two)).unwrap());
        assert!(!link((&root, one), (&root, two)).unwrap());
        assert!(!rename_if_free((&root, one), (&root, two)).unwrap());
        fs::remove_file(directory.path().join(two)).unwrap();
        assert!(rename_if_free((&root, one), (&root, two)).unwrap());
        assert_eq!(list(&root).unwrap().len(), 1);
    }
}
