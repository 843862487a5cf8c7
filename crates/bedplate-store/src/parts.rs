//! The store's own directories and its lock: what they have to be before anything is written.
//!
//! ```text
//! a directory ─ fine      missing ─ made, where it is empty by nature      anything else, a link too ─ PartError
//! ```
//!
//! Invariant: nothing is written through a link that stands in the place of a directory of the store.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;

use bedplate_sys::files;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::store::{DIRECTORY_MODE, Store};

/// Directories whose loss loses what the store is for: they are not made again without a word.
const KEPT: [&str; 3] = ["objects", "images", "refs"];
/// Directories that may be empty, or whose loss is noticed by what names the files in them.
const MADE: [&str; 6] = ["layers", "blobs", "pins", "index", "tmp", "trash"];
const LOCK: &str = "lock";

/// What is wrong with a part of a store.
///
/// It travels inside an [`io::Error`], too; [`io::Error::get_ref`] finds it again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// A link stands in the place of a directory.
    #[error("{} is a symbolic link, and a store does not write through one", .0.display())]
    Link(PathBuf),
    /// Something else stands in the place of a directory.
    #[error("{} is no directory", .0.display())]
    NotADirectory(PathBuf),
    /// Something else stands in the place of the lock.
    #[error("{} is no regular file", .0.display())]
    NotAFile(PathBuf),
    /// A directory that is not empty by nature is gone.
    #[error("{} is missing, and all that was in it", .0.display())]
    Missing(PathBuf),
}

impl From<PartError> for io::Error {
    fn from(error: PartError) -> Self {
        let kind = match error {
            PartError::Missing(_) => io::ErrorKind::NotFound,
            PartError::Link(_) | PartError::NotADirectory(_) | PartError::NotAFile(_) => {
                io::ErrorKind::NotADirectory
            }
        };
        Self::new(kind, error)
    }
}

/// What a look at the parts of a store found.
#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) broken: Vec<PartError>,
    /// Directories that are not there and can be made.
    missing: Vec<String>,
    lock_is_missing: bool,
}

/// Returns the names of all directories of a store, those that hold others first.
pub(crate) fn directories() -> impl Iterator<Item = String> {
    let fan_out = (0..=255).map(|byte: u8| format!("objects/{byte:02x}"));
    let flat = KEPT.into_iter().chain(MADE);
    flat.map(str::to_owned).chain(fan_out)
}

/// Returns whether a name is that of a directory at the top of a store.
pub(crate) fn is_directory(name: &OsStr) -> bool {
    KEPT.iter().chain(&MADE).any(|ours| name == *ours)
}

impl Store {
    /// Looks at every directory of the store and at its lock.
    pub(crate) fn parts(&self) -> io::Result<Parts> {
        let mut parts = Parts::default();
        for name in KEPT.into_iter().chain(MADE) {
            match self.kind_of(name)? {
                None if KEPT.contains(&name) => {
                    parts
                        .broken
                        .push(PartError::Missing(self.path().join(name)));
                }
                None => parts.missing.push(name.to_owned()),
                Some(kind) => parts.broken.extend(self.unless_directory(name, kind)),
            }
        }
        match self.kind_of(LOCK)? {
            None => parts.lock_is_missing = true,
            Some(FileType::RegularFile) => {}
            Some(_) => {
                let path = self.path().join(LOCK);
                parts.broken.push(PartError::NotAFile(path));
            }
        }
        // One listing instead of a question for each of 256.
        let Ok(objects) = files::open_directory(self.root(), "objects".as_ref()) else {
            return Ok(parts); // told above
        };
        let listed = files::list(objects)?.into_iter();
        let kinds: HashMap<OsString, Option<FileType>> =
            listed.map(|entry| (entry.name, entry.kind)).collect();
        for name in directories().filter(|name| name.contains('/')) {
            let digits = OsStr::new(&name["objects/".len()..]);
            let kind = match kinds.get(digits) {
                None => None,
                Some(Some(kind)) => Some(*kind),
                Some(None) => self.kind_of(&name)?,
            };
            match kind {
                None => parts.missing.push(name),
                Some(kind) => parts.broken.extend(self.unless_directory(&name, kind)),
            }
        }
        Ok(parts)
    }

    /// Refuses to go on where a part of the store is not what it has to be; what is missing and may be is
    /// fine.
    pub(crate) fn check_parts(&self) -> io::Result<Parts> {
        let mut parts = self.parts()?;
        if parts.broken.is_empty() {
            Ok(parts)
        } else {
            Err(parts.broken.swap_remove(0).into())
        }
    }

    /// Makes sure, once, that the store can be written to: every directory is one, and there.
    pub(crate) fn prepare_parts(&self) -> io::Result<()> {
        if self.is_prepared().get().is_some() {
            return Ok(());
        }
        let parts = self.check_parts()?;
        for name in parts.missing {
            let mode = Mode::from_raw_mode(DIRECTORY_MODE);
            match rustix::fs::mkdirat(self.root(), &name, mode) {
                // Somebody else was faster.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if parts.lock_is_missing {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(self.root(), LOCK, flags, Mode::from_raw_mode(0o600))?;
        }
        // Another thread may have said so: it is the same.
        let _ = self.is_prepared().set(());
        Ok(())
    }

    fn unless_directory(&self, name: &str, kind: FileType) -> Option<PartError> {
        let path = || self.path().join(name);
        match kind {
            FileType::Directory => None,
            FileType::Symlink => Some(PartError::Link(path())),
            _ => Some(PartError::NotADirectory(path())),
        }
    }

    fn kind_of(&self, name: &str) -> io::Result<Option<FileType>> {
        match rustix::fs::statat(self.root(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
