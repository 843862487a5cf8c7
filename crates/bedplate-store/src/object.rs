//! Reading contents: from the image itself or from an object, checked on the way.
//!
//! Invariant: whoever reads to the end through [`Store::read_content`] either got exactly the bytes
//! that the digest names, or an error instead of the end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use bedplate_model::{Content, FileContent, ObjectId, Tree};

use crate::extents::{self, ExtentError};
use crate::item::Item;
use crate::store::{ReadStoreError, Store};
use crate::verity::Hasher;

/// What a reader of [`Store::read_content`] finds at the end of bytes that are not the object's.
///
/// It travels inside an [`io::Error`]; [`io::Error::get_ref`] finds it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadContentError {
    /// The content has another digest than the name says.
    #[error("object {id} is damaged: its content has the digest {found}")]
    Damaged {
        /// The object.
        id: ObjectId,
        /// The digest of what was read.
        found: ObjectId,
    },
    /// The content has another length than the image says.
    #[error("object {id} has {found} bytes instead of {wanted}")]
    WrongSize {
        /// The object.
        id: ObjectId,
        /// The length that the image says.
        wanted: u64,
        /// The length that was found.
        found: u64,
    },
}

impl From<ReadContentError> for io::Error {
    fn from(error: ReadContentError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

impl Store {
    /// Opens the content of a file; it is checked while it is read.
    pub fn read_content(
        &self,
        content: &FileContent,
    ) -> Result<Box<dyn Read + Send + '_>, ReadStoreError> {
        Ok(match content {
            FileContent::Inline(bytes) => Box::new(io::Cursor::new(bytes.to_vec())),
            FileContent::Object { id, size } => {
                let file = self.open_object(id)?;
                Box::new(CheckedReader {
                    data_end: if extents::may_have_holes(&file, *size) {
                        0
                    } else {
                        u64::MAX
                    },
                    file,
                    hasher: Some(Hasher::new(id.algorithm())),
                    id: *id,
                    wanted: *size,
                    found: 0,
                    hole_end: 0,
                    zeros: 0,
                })
            }
        })
    }

    /// Copies an object that has holes into an empty file, the holes as holes, and checks it.
    ///
    /// Returns `false` where it has none, or cannot be opened: then nothing was done.
    pub(crate) fn copy_sparse(&self, id: ObjectId, size: u64, to: &File) -> io::Result<bool> {
        let Ok(object) = self.open_object(&id) else {
            return Ok(false);
        };
        if !extents::may_have_holes(&object, size) {
            return Ok(false);
        }
        let (found_id, found) =
            extents::copy(id.algorithm(), &object, size, to).map_err(|error| match error {
                ExtentError::Read(error) | ExtentError::Write(error) => error,
            })?;
        let wanted = size;
        if found != wanted {
            return Err(ReadContentError::WrongSize { id, wanted, found }.into());
        }
        if found_id != id {
            let found = found_id;
            return Err(ReadContentError::Damaged { id, found }.into());
        }
        Ok(true)
    }

    /// Reads a whole content that must not be larger than `max` bytes, and checks it.
    pub fn read_small(&self, content: &FileContent, max: u64) -> Result<Vec<u8>, ReadStoreError> {
        if let FileContent::Object { id, size } = content
            && *size > max
        {
            return Err(ReadStoreError::TooLarge {
                item: Item::Object(*id),
                size: *size,
                max,
            });
        }
        let mut bytes = Vec::new();
        let outcome = self.read_content(content)?.read_to_end(&mut bytes);
        match (content, outcome) {
            (FileContent::Inline(_), _) | (_, Ok(_)) => Ok(bytes),
            (FileContent::Object { id, .. }, Err(error)) => {
                let item = Item::Object(*id);
                Err(match checked_by_reader(&error) {
                    Some(ReadContentError::Damaged { found, .. }) => ReadStoreError::Damaged {
                        item,
                        found: found.to_string(),
                    },
                    _ => ReadStoreError::Read {
                        item,
                        source: error,
                    },
                })
            }
        }
    }
}

/// Returns every object that a tree names, each once, in order.
pub fn objects_of(tree: &Tree) -> Vec<ObjectId> {
    let mut objects: Vec<ObjectId> = sized_objects_of(tree)
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    objects.dedup();
    objects
}

/// Returns every object that a tree names with the length that the tree says, each pair once, in order.
pub fn sized_objects_of(tree: &Tree) -> Vec<(ObjectId, u64)> {
    let mut objects = Vec::new();
    let mut pending = vec![Tree::ROOT];
    while let Some(directory) = pending.pop() {
        for id in tree
            .entries(directory)
            .into_iter()
            .flat_map(BTreeMap::values)
        {
            match &tree.node(*id).content {
                Content::Directory(_) => pending.push(*id),
                Content::File(FileContent::Object { id, size }) => objects.push((*id, *size)),
                _ => {}
            }
        }
    }
    objects.sort_unstable();
    objects.dedup();
    objects
}

/// Returns what a checking reader found wrong, where that is what the error is about.
pub(crate) fn checked_by_reader(error: &io::Error) -> Option<ReadContentError> {
    error.get_ref()?.downcast_ref::<ReadContentError>().copied()
}

/// Reads an object and compares its digest before it says that the end is reached.
struct CheckedReader {
    file: File,
    /// Gone once the end was reached.
    hasher: Option<Hasher>,
    id: ObjectId,
    wanted: u64,
    found: u64,
    /// Where the hole that is read ends, if it is one.
    hole_end: u64,
    /// Where the data that are read end.
    data_end: u64,
    /// How much of a hole was read and not hashed: at once it costs next to nothing.
    zeros: u64,
}

impl Read for CheckedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.found == self.data_end && self.found < self.wanted {
            (self.hole_end, self.data_end) =
                extents::next_data(&self.file, self.found, self.wanted)?;
        }
        if self.found < self.hole_end {
            // A terabyte of nothing is a matter of moments, not of hours.
            let count = (self.hole_end - self.found).min(buffer.len() as u64);
            buffer[..count as usize].fill(0);
            self.zeros += count;
            self.found += count;
            return Ok(count as usize);
        }
        // Behind the end, whatever comes is too much.
        let left = match self.data_end.saturating_sub(self.found) {
            0 => u64::MAX,
            left => left,
        };
        let most = left.min(buffer.len() as u64) as usize;
        let count = self.file.read_at(&mut buffer[..most], self.found)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update_zeros(std::mem::take(&mut self.zeros));
        }
        if count > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buffer[..count]);
            }
            self.found = self.found.saturating_add(count as u64);
            // Longer than it should be: there is no need to read on.
            if self.found > self.wanted {
                return Err(self.wrong_size().into());
            }
            return Ok(count);
        }
        if self.found != self.wanted {
            return Err(self.wrong_size().into());
        }
        if let Some(hasher) = self.hasher.take() {
            let found = hasher.finish();
            if found != self.id {
                // Whoever reads again gets the error again, never a clean end.
                self.wanted = u64::MAX;
                return Err(ReadContentError::Damaged { id: self.id, found }.into());
            }
        }
        Ok(0)
    }
}

impl CheckedReader {
    fn wrong_size(&self) -> ReadContentError {
        ReadContentError::WrongSize {
            id: self.id,
            wanted: self.wanted,
            found: self.found,
        }
    }
}
