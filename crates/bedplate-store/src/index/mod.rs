//! The index: from the digests that others speak to what the store holds.
//!
//! ```text
//! SHA-256 of a file or a chunk ─→ Located ─┬ Whole   an object
//!                                          ├ Part    a range of an object
//!                                          └ Bytes   a content too small to be an object
//!
//! index/sha256     one sorted table (segment), replaced as a whole by whoever holds the lock of index/
//! ```
//!
//! Invariant: a cache. Lost or damaged it costs time and never a wrong answer: each block of the table
//! carries its own check, what it names must be there, and gc does not ask it. `Store::rebuild_index`
//! makes it anew from objects and images.

mod segment;

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bedplate_model::{Content, FileContent, ObjectId, Sha256};
use bedplate_sys::lock::Lock;
use bedplate_sys::{durable, files};
use sha2::Digest as _;

use crate::buffers::Buffers;
use crate::item::Item;
use crate::store::{ReadStoreError, Store};
use crate::work;

use segment::{DecodeError, Segment, SegmentWriter};

/// The table, below the store's directory.
const TABLE: &str = "index/sha256";

/// Where a content lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Located {
    /// It is an object's.
    Whole {
        /// The object.
        id: ObjectId,
        /// Its length in bytes.
        size: u64,
    },
    /// It is a part of an object's.
    Part {
        /// The object.
        id: ObjectId,
        /// Where the part begins, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        length: u64,
    },
    /// It is so small (64 bytes at most) that images hold it themselves.
    Bytes(Box<[u8]>),
}

impl Located {
    fn object(&self) -> Option<ObjectId> {
        match self {
            Self::Whole { id, .. } | Self::Part { id, .. } => Some(*id),
            Self::Bytes(_) => None,
        }
    }
}

/// A content, and where it lies.
pub type Entry = (Sha256, Located);

/// Why the index could not be used. Whoever only wants to save work goes on without it.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// A file could not be read or written.
    #[error("cannot {attempt} {}", path.display())]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The table is damaged, or of another version.
    #[error("the index {} cannot be used", path.display())]
    Damaged {
        /// The table.
        path: PathBuf,
        /// What is wrong with it.
        source: DecodeError,
    },
}

/// What [`Store::rebuild_index`] did.
#[derive(Debug, Default)]
pub struct RebuiltIndex {
    /// How many contents the index knows now.
    pub entries: u64,
    /// How many objects and images were read for it.
    pub items: u64,
    /// The bytes of the objects.
    pub bytes: u64,
    /// What could not be read, or is damaged: the index does not name it.
    pub left_out: Vec<ReadStoreError>,
}

/// The index, open for looking things up; it shows the store as it was when it was opened.
#[derive(Debug)]
pub struct Index<'store> {
    store: &'store Store,
    /// `None` where there is no table yet.
    segment: Option<Segment>,
}

impl Index<'_> {
    /// Finds a content by its SHA-256, where the store still holds it.
    pub fn find(&self, digest: &Sha256) -> Result<Option<Located>, IndexError> {
        let Some(segment) = &self.segment else {
            return Ok(None);
        };
        let found = segment
            .find(digest)
            .map_err(|source| self.store.index_damaged(source))?;
        // A gc may have taken the object since.
        Ok(found.filter(|located| {
            located
                .object()
                .is_none_or(|id| self.store.has(&Item::Object(id)))
        }))
    }
}

impl Store {
    /// Opens the index; a store that has none yet has an empty one.
    pub fn index(&self) -> Result<Index<'_>, IndexError> {
        Ok(Index {
            store: self,
            segment: self.index_segment()?,
        })
    }

    /// Adds contents to the index. The last word on a content wins.
    pub fn extend_index(&self, entries: Vec<Entry>) -> Result<(), IndexError> {
        let _alone = self.lock_index()?;
        // What cannot be used is begun anew: it is a cache.
        let old = self.index_segment().ok().flatten();
        self.write_index(old.as_ref(), entries)?;
        Ok(())
    }

    /// Makes the index anew from every object and image, each checked against its name on the way.
    pub fn rebuild_index(&self) -> Result<RebuiltIndex, IndexError> {
        let items = self
            .prepare_parts()
            .and_then(|()| self.items())
            .map_err(|source| file_error("list", self.path().to_owned(), source))?;
        let gathered = Mutex::new((Vec::new(), RebuiltIndex::default()));
        let lock = || gathered.lock().unwrap_or_else(PoisonError::into_inner);
        let buffers = Buffers::default();
        let outcome = work::run(items, |item, _| {
            let entries = match item {
                Item::Object(id) => self.index_object(id, &buffers),
                Item::Image(id) => self.index_image(&id),
                Item::Layer(_) | Item::Blob(_) => return Ok(()),
            };
            let (all, report) = &mut *lock();
            report.items += 1;
            match entries {
                Ok((entries, bytes)) => {
                    all.extend(entries);
                    report.bytes += bytes;
                }
                Err(error) => report.left_out.push(error),
            }
            Ok::<(), std::convert::Infallible>(())
        });
        match outcome {
            Ok(()) => {}
        }
        let (entries, mut report) = gathered
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let _alone = self.lock_index()?;
        report.entries = self.write_index(None, entries)?;
        Ok(report)
    }

    fn index_object(
        &self,
        id: ObjectId,
        buffers: &Buffers,
    ) -> Result<(Vec<Entry>, u64), ReadStoreError> {
        let item = Item::Object(id);
        let failed = |source| ReadStoreError::Read { item, source };
        let size = self.open_object(&id)?.metadata().map_err(failed)?.len();
        let mut content = self.read_content(&FileContent::Object { id, size })?;
        let mut hasher = sha2::Sha256::new();
        let mut buffer = buffers.take();
        loop {
            // The reader fails instead of ending where the bytes are not the object's.
            match io::Read::read(&mut content, &mut buffer).map_err(failed)? {
                0 => break,
                count => hasher.update(&buffer[..count]),
            }
        }
        let digest = Sha256(hasher.finalize().into());
        Ok((vec![(digest, Located::Whole { id, size })], size))
    }

    fn index_image(&self, id: &ObjectId) -> Result<(Vec<Entry>, u64), ReadStoreError> {
        let tree = self.image_tree(id)?;
        let small = tree
            .walk()
            .filter_map(|(_, node)| match &tree.node(node).content {
                Content::File(FileContent::Inline(bytes)) => {
                    Some((crate::store::sha256(bytes), Located::Bytes(bytes.clone())))
                }
                _ => None,
            });
        Ok((small.collect(), 0))
    }

    fn index_segment(&self) -> Result<Option<Segment>, IndexError> {
        let file = match files::open_file(self.root(), TABLE.as_ref()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(file_error("open", self.path().join(TABLE), source));
            }
        };
        Segment::open(file)
            .map(Some)
            .map_err(|source| self.index_damaged(source))
    }

    /// Writes `entries` over those of `old`. The commit point is the rename over the table.
    fn write_index(
        &self,
        old: Option<&Segment>,
        mut entries: Vec<Entry>,
    ) -> Result<u64, IndexError> {
        let path = self.path().join(TABLE);
        let unfinished = format!("{TABLE}.new");
        // Of equal digests the last one stays, as it does on a map; the sort keeps their order.
        entries.sort_by_key(|(digest, _)| digest.0);
        let write = || -> io::Result<u64> {
            // What a crash left, or a link to elsewhere, which nothing is written through.
            files::remove_tree(self.root(), unfinished.as_ref())?;
            let file = files::create_file(self.root(), unfinished.as_ref(), 0o600)?;
            let mut writer = SegmentWriter::new(&file)?;
            merge(old, &entries, &mut writer)?;
            let count = writer.finish()?;
            file.sync_all()?;
            durable::rename(&self.path().join(&unfinished), &path)?;
            Ok(count)
        };
        write().map_err(|source| file_error("write", path.clone(), source))
    }

    fn lock_index(&self) -> Result<Lock, IndexError> {
        let path = self.path().join("index");
        self.prepare_parts()
            .and_then(|()| Lock::exclusive(&path))
            .map_err(|source| file_error("lock", path, source))
    }

    fn index_damaged(&self, source: DecodeError) -> IndexError {
        IndexError::Damaged {
            path: self.path().join(TABLE),
            source,
        }
    }
}

fn file_error(attempt: &'static str, path: PathBuf, source: io::Error) -> IndexError {
    IndexError::File {
        attempt,
        path,
        source,
    }
}

/// Writes two sorted lists as one. A block of the old one that is damaged is left out.
fn merge(old: Option<&Segment>, new: &[Entry], out: &mut SegmentWriter<'_>) -> io::Result<()> {
    let mut old = old.into_iter().flat_map(Segment::entries).peekable();
    for (position, (digest, located)) in new.iter().enumerate() {
        while let Some((kept, there)) = old.next_if(|(kept, _)| kept.0 < digest.0) {
            out.push(&kept, &there)?;
        }
        let _replaced = old.next_if(|(kept, _)| kept.0 == digest.0);
        let again = new
            .get(position + 1)
            .is_some_and(|(next, _)| next == digest);
        if !again {
            out.push(digest, located)?;
        }
    }
    old.try_for_each(|(kept, there)| out.push(&kept, &there))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bedplate_model::{ImageName, RuleSet};

    use super::*;
    use crate::refs::RefTarget;
    use crate::store::sha256;
    use crate::{GcPolicy, scan};

    const LARGE: &[u8] = &[b'x'; 5000];
    const SMALL: &[u8] = b"of no object";

    /// A store with one image that has a large file and a small one.
    fn store() -> (tempfile::TempDir, Store, ImageName) {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("large"), LARGE).unwrap();
        fs::write(tree.join("small"), SMALL).unwrap();
        let store = Store::create(&directory.path().join("store")).unwrap();
        let name: ImageName = "localhost/a:1".parse().unwrap();
        let transaction = store.begin().unwrap();
        let tree = scan(&tree, &transaction, &()).unwrap();
        let root = transaction.put_image(&tree, RuleSet::Exact1).unwrap();
        let target = RefTarget::new(root, 0);
        transaction.set_ref(&name, target).unwrap();
        transaction.commit().unwrap();
        (directory, store, name)
    }

    fn find(store: &Store, content: &[u8]) -> Option<Located> {
        store.index().unwrap().find(&sha256(content)).unwrap()
    }

    #[test]
    fn contents_are_found_by_their_sha256_until_gc_takes_them() {
        let (_directory, store, name) = store();
        assert_eq!(find(&store, LARGE), None, "nobody made an index yet");

        assert_eq!(store.rebuild_index().unwrap().entries, 2);
        let id = crate::verity::digest(store.algorithm(), LARGE);
        let large = Located::Whole { id, size: 5000 };
        assert_eq!(find(&store, LARGE), Some(large));
        assert_eq!(find(&store, SMALL), Some(Located::Bytes(SMALL.into())));
        assert_eq!(find(&store, b"another"), None);

        let transaction = store.begin().unwrap();
        transaction.remove_ref(&name);
        transaction.commit().unwrap();
        store.gc(&GcPolicy::default(), false).unwrap();
        assert_eq!(find(&store, LARGE), None);
    }

    #[test]
    fn what_is_added_joins_what_is_there_and_the_last_word_wins() {
        let (_directory, store, _) = store();
        store.rebuild_index().unwrap();
        let id = crate::verity::digest(store.algorithm(), LARGE);
        let part = Located::Part {
            id,
            offset: 10,
            length: 20,
        };
        let key = sha256(&LARGE[10..30]);
        let earlier = Located::Bytes(b"no".as_slice().into());
        store
            .extend_index(vec![(key, earlier), (key, part.clone())])
            .unwrap();
        assert_eq!(find(&store, &LARGE[10..30]), Some(part));
        assert_eq!(find(&store, SMALL), Some(Located::Bytes(SMALL.into())));
    }

    #[test]
    fn a_damaged_object_is_left_out_by_name() {
        let (_directory, store, _) = store();
        let id = crate::verity::digest(store.algorithm(), LARGE);
        let path = store.objects_dir().join(id.object_path());
        fs::remove_file(&path).unwrap();
        fs::write(&path, [b'y'; 5000]).unwrap();
        let report = store.rebuild_index().unwrap();
        assert_eq!((report.entries, report.left_out.len()), (1, 1));
        assert!(report.left_out[0].to_string().contains(&id.to_string()));
        assert_eq!(find(&store, &[b'y'; 5000]), None);
    }

    #[test]
    fn a_damaged_table_is_an_error_until_it_is_made_anew() {
        let (_directory, store, _) = store();
        store.rebuild_index().unwrap();
        let table = store.path().join(TABLE);
        fs::write(&table, b"not a table").unwrap();
        assert!(matches!(store.index(), Err(IndexError::Damaged { .. })));
        store.rebuild_index().unwrap();
        assert_eq!(find(&store, SMALL), Some(Located::Bytes(SMALL.into())));
    }
}
