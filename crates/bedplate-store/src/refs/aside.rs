//! Setting aside the files of refs that cannot be read: they keep everybody from the names beside them.
//!
//! ```text
//! refs/<name> ─ rename ─→ damaged/<name>      the name is lost, its bytes are not
//!                         damaged/<name> ─ removed by a repair, once there is such a name again
//! ```
//!
//! Invariants: a ref that can be read stays where it is; as long as a file of a name lies here, gc takes no
//! image, for nobody knows which ones the name held.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use bedplate_model::{ImageName, RootDigest};
use bedplate_sys::files;
use rustix::fs::Mode;
use rustix::io::Errno;

use super::document::RefDocument;
use super::{DOCUMENT_MAX, Ref, RefsError, file_name};
use crate::item::Item;
use crate::store::{DIRECTORY_MODE, Store};

/// Where such files go.
const ASIDE: &str = "damaged";
/// How many files of one name are kept.
const COPIES_MAX: u32 = 1000;
/// What stands before the number of a copy: in the name of no ref's file.
const COPY: char = '~';
/// How the files of long names begin.
const LONG: &str = "%long-";

/// The file of a ref that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// The name that its file name stands for, or else that it has inside, where either does.
    pub name: Option<ImageName>,
    /// Where the file is now.
    pub path: PathBuf,
    /// The images in it that the store has; the first is most likely what the name pointed at.
    pub roots: Vec<RootDigest>,
    /// Whether the store has a name again that the file may have been of.
    pub is_named_again: bool,
}

impl SetAside {
    /// Returns whether a name is missing because of it.
    pub fn is_lost_name(&self) -> bool {
        !self.is_named_again
    }
}

impl RefsError {
    /// Returns whether the file of a ref is at fault, so that a repair sets it aside.
    pub fn is_damaged_ref(&self) -> bool {
        let parent = self.path().and_then(|path| path.parent());
        let is_ref = parent.and_then(Path::file_name) == Some("refs".as_ref());
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
    /// Sets every ref's file aside that cannot be read, durably; returns where the files are now.
    pub(crate) fn set_refs_aside(&self) -> Result<Vec<PathBuf>, RefsError> {
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

    fn move_aside(&self, from: &Path) -> io::Result<PathBuf> {
        let refs = files::open_directory(self.root(), "refs".as_ref())?;
        let mode = Mode::from_raw_mode(DIRECTORY_MODE);
        match rustix::fs::mkdirat(self.root(), ASIDE, mode) {
            Ok(()) => rustix::fs::fsync(self.root())?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let aside = files::open_directory(self.root(), ASIDE.as_ref())?;
        let file = from.file_name().unwrap_or_default();
        for copy in 1..COPIES_MAX {
            let mut name = file.to_owned();
            if copy > 1 {
                name.push(format!("{COPY}{copy}"));
            }
            if files::rename_if_free((&refs, file), (&aside, &name))? {
                rustix::fs::fsync(&aside)?; // it is there …
                rustix::fs::fsync(&refs)?; // … before it is no more here.
                return Ok(self.path().join(ASIDE).join(name));
            }
        }
        Err(io::Error::other(
            "too many damaged files of this name are kept",
        ))
    }

    /// Lists the files of refs that were set aside; what neither is called like one nor names an image that
    /// the store has is none.
    pub fn names_set_aside(&self) -> Result<Vec<SetAside>, RefsError> {
        let path = self.path().join(ASIDE);
        let failed = |source| RefsError::Read {
            path: path.clone(),
            source,
        };
        let aside = match files::open_directory(self.root(), ASIDE.as_ref()) {
            Ok(aside) => aside,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut entries = files::list(&aside).map_err(failed)?;
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        // One that cannot be read is no name, either.
        let (known, _) = self.readable_refs()?;
        let known: HashSet<String> = known.iter().map(|it| file_name(&it.name)).collect();
        let mut found = Vec::new();
        for entry in entries {
            let file = entry.name.to_string_lossy();
            let file = file.split_once(COPY).map_or(&*file, |(file, _)| file);
            let bytes = files::read_file(&aside, &entry.name, DOCUMENT_MAX).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let words = text.split('"').filter_map(|word| word.parse().ok());
            let has = |root: &RootDigest| self.has(&Item::Image(root.image));
            let mut roots: Vec<RootDigest> = Vec::new();
            for root in words.filter(has) {
                if !roots.contains(&root) {
                    roots.push(root);
                }
            }
            let inside = || {
                let document = RefDocument::parse(&bytes, &path).ok()?;
                Some(document.name)
            };
            let is_long = file.starts_with(LONG);
            let name = name_of(file).or_else(inside);
            if name.is_none() && roots.is_empty() && !is_long {
                continue;
            }
            let called = name.as_ref().map_or_else(|| file.to_owned(), file_name);
            found.push(SetAside {
                is_named_again: known.contains(&called),
                path: path.join(&entry.name),
                name,
                roots,
            });
        }
        Ok(found)
    }

    /// Gives names again that the store has not, durably, where all that each needs is here; returns those.
    pub(crate) fn restore_refs(&self, refs: Vec<Ref>) -> Result<Vec<Ref>, RefsError> {
        let write = |source| RefsError::Write {
            path: self.path().join("refs"),
            source,
        };
        let naming = self.lock_for_naming().map_err(write)?;
        let changing = self.lock_refs()?;
        changing.finish_journal()?;
        let mut restored = Vec::new();
        for mut known in refs {
            let is_whole = known.target.items().all(|item| self.has(&item));
            if is_whole && self.find_ref(&known.name)?.is_none() {
                known
                    .history
                    .retain(|target| target.items().all(|item| self.has(&item)));
                restored.push(known);
            }
        }
        let documents: Vec<_> = restored.iter().map(RefDocument::restored).collect();
        changing.rewrite(&documents)?;
        drop(naming);
        Ok(restored)
    }

    /// Removes files that were set aside.
    pub(crate) fn forget_set_aside(&self, files: &[SetAside]) -> Result<(), RefsError> {
        let path = self.path().join(ASIDE);
        let remove = || -> io::Result<()> {
            let aside = files::open_directory(self.root(), ASIDE.as_ref())?;
            for file in files {
                if let Some(name) = file.path.file_name() {
                    files::remove_tree(&aside, name)?;
                }
            }
            Ok(())
        };
        if files.is_empty() {
            return Ok(());
        }
        remove().map_err(|source| RefsError::Write { path, source })
    }

    /// Returns the images that no name, earlier image of a name or pin keeps: what the next gc removes, unless
    /// a name is lost.
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
