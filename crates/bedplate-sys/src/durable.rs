//! What survives a power cut: replacing, renaming and removing files so that the disk holds the old
//! state or the new one.
//!
//! ```text
//! replace: write NAME.new → fsync it → rename over NAME → fsync the directory
//! Whole:   write a file without a name → fsync it → link it as NAME, or as NAME.part and rename that
//! ```
//!
//! Invariant: when a function here returns `Ok`, what it did is on the disk.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, RenameFlags};
use rustix::io::Errno;

use crate::files;

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

/// A file that gets its name once it is whole: until then the name leads to what it led to.
///
/// One that is dropped leaves nothing, and neither does a process that is killed, where the file system has
/// files without names; elsewhere a killed process leaves `NAME.part`.
#[derive(Debug)]
pub struct Whole {
    file: File,
    path: PathBuf,
    /// The name that the file has meanwhile, where it needs one.
    part: Option<PathBuf>,
}

impl Whole {
    /// Makes the file, empty.
    pub fn create(path: &Path) -> io::Result<Self> {
        let directory = File::open(parent(path))?;
        let (file, part) = match files::create_unnamed(&directory, 0o666)? {
            // Without /proc it could not get its name.
            Some(file) if Path::new("/proc/self/fd").exists() => (file, None),
            _ => {
                let part = with_suffix(path, ".part");
                (File::create(&part)?, Some(part))
            }
        };
        let path = path.to_owned();
        Ok(Self { file, path, part })
    }

    /// Returns the file, to write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, and waits for the disk; a file that has the name is replaced.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if self.part.is_none() {
            let itself = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let link =
                |name: &Path| rustix::fs::linkat(CWD, &*itself, CWD, name, AtFlags::SYMLINK_FOLLOW);
            match link(&self.path) {
                Err(Errno::EXIST) => {}
                other => {
                    other?;
                    return sync_directory(parent(&self.path));
                }
            }
            // A link cannot replace a name; a rename can.
            let part = with_suffix(&self.path, ".part");
            match link(&part) {
                Err(Errno::EXIST) => {
                    fs::remove_file(&part)?; // an earlier process left it
                    link(&part)?;
                }
                other => other?,
            }
            self.part = Some(part);
        }
        if let Some(part) = &self.part {
            rename(part, &self.path)?;
        }
        self.part = None;
        Ok(())
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            // The error that is on its way says more than one about this.
            let _ = fs::remove_file(part);
        }
    }
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
    let here = CWD;
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
    fn a_file_has_its_name_once_it_is_whole_and_leaves_nothing_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(directory.path().join("file.part"), "left over").unwrap();
        let names = || fs::read_dir(directory.path()).unwrap().count();
        for contents in ["one", "two"] {
            let whole = Whole::create(&path).unwrap();
            whole.file().write_all(contents.as_bytes()).unwrap();
            drop(whole);
            assert_ne!(fs::read_to_string(&path).unwrap_or_default(), contents);
            let whole = Whole::create(&path).unwrap();
            whole.file().write_all(contents.as_bytes()).unwrap();
            whole.finish().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), contents);
        }
        assert_eq!(names(), 1, "what was left over is used up");
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
