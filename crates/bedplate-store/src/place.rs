//! What stands in the place of an item, and putting the right file there.
//!
//! ```text
//! nothing · a regular file of the right length · something else ─ rename over it ─→ the right file
//! ```
//!
//! A look at the name tells kind and length; that the bytes are right only reading them tells, which is
//! fsck's work.
//!
//! Invariant: in the place of an item stands what stood there, or the whole new file, never anything else.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, RenameFlags, Stat};
use rustix::io::Errno;

use crate::item::Item;
use crate::store::Store;

/// What is wrong with a file in the place of an item, as far as a look at its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// A directory, a link or a device stands there.
    #[error("it is no regular file")]
    NotAFile,
    /// It is shorter or longer than it has to be.
    #[error("it has {found} bytes instead of {wanted}")]
    Length {
        /// The length that it has to have.
        wanted: u64,
        /// The length that it has.
        found: u64,
    },
}

/// What stands in the place of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Nothing,
    /// A regular file of the right length, or of any where the right one is not known.
    Fit,
    Unfit(Misfit),
}

impl Store {
    /// Returns where the file of an item lies.
    pub(crate) fn item_path(&self, item: &Item) -> PathBuf {
        self.path().join(item.path())
    }

    /// Looks at what stands in the place of an item, without reading it.
    pub(crate) fn standing(&self, item: &Item, wanted: Option<u64>) -> io::Result<Standing> {
        match rustix::fs::statat(self.root(), item.path(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(misfit(&stat, wanted).map_or(Standing::Fit, Standing::Unfit)),
            Err(Errno::NOENT) => Ok(Standing::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Renames a file of a transaction over whatever stands in the place of an item.
    pub(crate) fn replace_item(
        &self,
        (directory, name): (impl AsFd, &str),
        item: &Item,
    ) -> io::Result<()> {
        let to = self.root();
        match rustix::fs::renameat(&directory, name, to, item.path()) {
            Ok(()) => Ok(()),
            // A directory is in its place: it goes with the transaction's own.
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                let flags = RenameFlags::EXCHANGE;
                let exchange = rustix::fs::renameat_with(&directory, name, to, item.path(), flags);
                Ok(exchange?)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Replaces what stands in the place of an item, unless it is a file as long as the transaction's.
    pub(crate) fn replace_misfit(
        &self,
        (directory, name): (impl AsFd, &str),
        item: &Item,
    ) -> io::Result<()> {
        let ours = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match self.standing(item, Some(ours.st_size as u64))? {
            Standing::Fit => Ok(()),
            Standing::Nothing | Standing::Unfit(_) => self.replace_item((directory, name), item),
        }
    }
}

fn misfit(stat: &Stat, wanted: Option<u64>) -> Option<Misfit> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Some(Misfit::NotAFile);
    }
    let found = stat.st_size as u64;
    wanted
        .filter(|wanted| *wanted != found)
        .map(|wanted| Misfit::Length { wanted, found })
}
