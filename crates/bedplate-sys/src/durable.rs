//! What survives a power cut: replacing, renaming and removing files so that the disk holds the old
//! state or the new one.
//!
//! ```text
//! replace: write NAME.new → fsync it → rename over NAME → fsync the directory
//! ```
//!
//! Invariant: when a function here returns `Ok`, what it did is on the disk.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::RenameFlags;

/// Replaces a file so that a power cut leaves the old contents or the new, never a mix.
///
/// Two callers at once need a lock of their own: both would write the same temporary file.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let temporary = with_suffix(path, ".new");
    match fs::remove_file(&temporary) {
        // Left over from a crash, or not there: both are fine.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?; // 1. the bytes are on disk …
    drop(file);
    rustix::fs::rename(&temporary, path)?; // 2. … before the name points at them …
    sync_directory(parent(path)) // 3. … and the name itself survives.
}

/// Renames a file or directory, replacing a file that has the new name, and waits for the disk.
///
/// The contents are the caller's: they must be on the disk before.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    rustix::fs::rename(from, to)?;
    sync_directory(parent(to))?;
    if parent(from) != parent(to) {
        sync_directory(parent(from))?;
    }
    Ok(())
}

/// Exchanges two names atomically, and waits for the disk.
///
/// Needs no new block: the way to replace a file on a full disk.
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let here = rustix::fs::CWD;
    rustix::fs::renameat_with(here, one, here, other, RenameFlags::EXCHANGE)?;
    sync_directory(parent(one))?;
    if parent(one) != parent(other) {
        sync_directory(parent(other))?;
    }
    Ok(())
}

/// Removes a file, and waits for the disk; one that is not there is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_directory(parent(path)),
    }
}

/// Waits until a directory's entries are on the disk.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Waits until everything that was written to the file system of `fd` is on the disk.
///
/// Errors of writes that happened since `fd` was opened are reported here, so it should be opened
/// before the first of them.
pub fn sync_filesystem(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::syncfs(fd)?)
}

/// Returns the directory that holds a path's last component.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_replaced_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(directory.path().join("file.new"), "left over from a crash").unwrap();
        for contents in ["one", "two"] {
            replace(&path, contents.as_bytes(), 0o600).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), contents);
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_are_exchanged_moved_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("1"), directory.path().join("2"));
        fs::write(&one, "1").unwrap();
        fs::write(&two, "2").unwrap();
        exchange(&one, &two).unwrap();
        assert_eq!(fs::read_to_string(&one).unwrap(), "2");
        rename(&one, &two).unwrap();
        assert_eq!(fs::read_to_string(&two).unwrap(), "2");
        remove(&two).unwrap();
        remove(&two).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
