//! Setting aside the files of refs that cannot be read: they keep everybody from the names beside them.
//!
//! ```text
//! refs/<name> ─ rename ─→ damaged/<name>      the name is gone, its bytes are not
//! ```
//!
//! Invariant: no byte of a ref is removed; a ref that can be read stays where it is.

use std::io;
use std::path::{Path, PathBuf};

use bedplate_model::{ImageName, RootDigest};
use bedplate_sys::files;
use rustix::fs::Mode;
use rustix::io::Errno;

use super::{DOCUMENT_MAX, RefsError, file_name};
use crate::item::Item;
use crate::store::{DIRECTORY_MODE, Store};

/// Where such files go.
const ASIDE: &str = "damaged";
/// How many files of one name are kept.
const COPIES_MAX: u32 = 1000;

/// The file of a ref that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// The name that its file name stands for, where it stands for one.
    pub name: Option<ImageName>,
    /// Where the file is now.
    pub path: PathBuf,
    /// The first image in it that the store has: most likely what the name pointed at.
    pub root: Option<RootDigest>,
}

impl RefsError {
    /// Returns whether the file of a ref is at fault, so that a repair sets it aside.
    pub fn is_damaged_ref(&self) -> bool {
        let (Self::Read { path, .. } | Self::Damaged { path, .. } | Self::Misplaced { path, .. }) =
            self
        else {
            return false;
        };
        let is_ref = path
            .parent()
            .is_some_and(|parent| parent.file_name() == Some("refs".as_ref()));
        is_ref
            && match self {
                // What is no regular file, or too long; and nothing that another try might read.
                Self::Read { source, .. } => {
                    source.kind() == io::ErrorKind::InvalidData
                        || [Errno::LOOP, Errno::NXIO]
                            .iter()
                            .any(|errno| source.raw_os_error() == Some(errno.raw_os_error()))
                }
                _ => true,
            }
    }

    fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::Read { path, .. } | Self::Damaged { path, .. } | Self::Misplaced { path, .. } => {
                Some(path)
            }
            _ => None,
        }
    }
}

impl Store {
    /// Sets every ref's file aside that cannot be read, durably.
    pub(crate) fn set_refs_aside(&self) -> Result<Vec<SetAside>, RefsError> {
        let changing = self.lock_refs()?;
        // What a journal holds is whole, and may be what is to take the place of a damaged file.
        changing.finish_journal()?;
        let mut set_aside = Vec::new();
        for error in self.list_refs()?.into_iter().filter_map(Result::err) {
            if !error.is_damaged_ref() {
                continue;
            }
            let Some(path) = error.path() else { continue };
            let moved = self.move_aside(path);
            set_aside.push(moved.map_err(|source| RefsError::Write {
                path: path.clone(),
                source,
            })?);
        }
        Ok(set_aside)
    }

    fn move_aside(&self, from: &Path) -> io::Result<SetAside> {
        let refs = files::open_directory(self.root(), "refs".as_ref())?;
        let mode = Mode::from_raw_mode(DIRECTORY_MODE);
        match rustix::fs::mkdirat(self.root(), ASIDE, mode) {
            Ok(()) => rustix::fs::fsync(self.root())?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let aside = files::open_directory(self.root(), ASIDE.as_ref())?;
        let file = from.file_name().unwrap_or_default();
        let root = self.first_root(&refs, file);
        for copy in 1..COPIES_MAX {
            let mut name = file.to_owned();
            if copy > 1 {
                name.push(format!(".{copy}"));
            }
            if files::rename_if_free((&refs, file), (&aside, &name))? {
                rustix::fs::fsync(&aside)?; // it is there …
                rustix::fs::fsync(&refs)?; // … before it is no more here.
                return Ok(SetAside {
                    name: file.to_str().and_then(name_of),
                    path: self.path().join(ASIDE).join(name),
                    root,
                });
            }
        }
        Err(io::Error::other(
            "too many damaged files of this name are kept",
        ))
    }

    /// Looks for a root digest in what is left of a ref's file.
    fn first_root(
        &self,
        refs: impl std::os::fd::AsFd,
        file: &std::ffi::OsStr,
    ) -> Option<RootDigest> {
        let bytes = files::read_file(refs, file, DOCUMENT_MAX).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let mut roots = text.split('"').filter_map(|word| word.parse().ok());
        roots.find(|root: &RootDigest| self.has(&Item::Image(root.image)))
    }

    /// Returns the images that no name, earlier image of a name or pin keeps: what the next gc removes.
    pub fn unnamed_images(
        &self,
    ) -> Result<Vec<bedplate_model::ObjectId>, crate::usage::UsageError> {
        let named = crate::usage::holders(&self.all_refs()?, &self.pins()?);
        let items = self.items().map_err(crate::usage::UsageError::List)?;
        let images = items.into_iter().filter_map(|item| match item {
            Item::Image(id) if !named.contains_key(&item) => Some(id),
            _ => None,
        });
        Ok(images.collect())
    }
}

/// Reads the name that a ref's file name stands for.
fn name_of(file: &str) -> Option<ImageName> {
    let mut bytes = Vec::with_capacity(file.len());
    let mut rest = file.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(behind.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = behind.get(2..)?;
    }
    let name: ImageName = std::str::from_utf8(&bytes).ok()?.parse().ok()?;
    (file_name(&name) == file).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_gives_back_the_name() {
        for name in [
            "10.0.2.100:5000/team/os:v1",
            "localhost/os:v1",
            "os:v1-2_3.4",
        ] {
            let name: ImageName = name.parse().unwrap();
            assert_eq!(name_of(&file_name(&name)), Some(name));
        }
        for file in [
            "",
            "%",
            "%zz",
            "%long-00",
            "notes.txt",
            "localhost%2fos%3av1",
        ] {
            assert_eq!(name_of(file), None, "{file}");
        }
    }
}
