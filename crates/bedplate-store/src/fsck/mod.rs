//! Checking a store: everything against its name, every name against what it leads to.
//!
//! ```text
//! fsck        objects (digest, length) ─→ images, layers, blobs ─→ refs, pins
//! fsck_quick  names and lengths alone: no content of an object is read
//! repair      fsck, and what is wrong comes again from somewhere else
//! ```
//!
//! Invariant: fsck changes nothing, and what it does not complain about can be read.

mod needs;
mod repair;
mod strays;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bedplate_model::ObjectId;
use bedplate_sys::verity;

use crate::item::Item;
use crate::layer::Layer;
use crate::object::sized_objects_of;
use crate::refs::{RefsError, SetAside};
use crate::store::{ReadStoreError, Store};
use crate::work;

pub use needs::{Need, Needs};
pub use repair::{Repair, RepairError, RepairReport, Source, SourceError, StoreSource};

/// One thing that is wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum Finding {
    /// Something cannot be read, has another digest than its name says, or is no image.
    #[error(transparent)]
    Unreadable(#[from] ReadStoreError),
    /// A file is sealed as something else than its name says.
    #[error("{0} is sealed under another digest")]
    SealedAsOther(Item),
    /// In the place of an object is something that is no file.
    #[error("{0} is no file")]
    NotAFile(Item),
    /// A layer's table cannot be decoded.
    #[error("the table of layer {0} is damaged: {1}")]
    Layer(bedplate_model::Sha256, crate::layer::DecodeLayerError),
    /// An image or layer names something that the store does not have.
    #[error("{by} needs {missing}, which the store does not have")]
    Missing {
        /// What names it.
        by: Item,
        /// What is missing.
        missing: Item,
    },
    /// An image names an object with another length than the object has.
    #[error("{image} says that object {object} has {wanted} bytes; it has {found}")]
    WrongSize {
        /// The image.
        image: Item,
        /// The object.
        object: ObjectId,
        /// The length that the image says.
        wanted: u64,
        /// The length that it has.
        found: u64,
    },
    /// A ref or pin cannot be read.
    #[error(transparent)]
    Ref(#[from] RefsError),
    /// A name is gone: a repair set its file aside.
    #[error(
        "{} is lost: its file was damaged, and is {}",
        .0.name.as_ref().map_or_else(|| "a name".to_owned(), |name| format!("the name {name}")),
        .0.path.display()
    )]
    LostName(SetAside),
    /// A ref or pin leads to something that the store does not have.
    #[error("{name} needs {missing}, which the store does not have")]
    Dangling {
        /// The name of the ref or pin.
        name: String,
        /// What is missing.
        missing: Item,
    },
    /// A change of several names does not count, because an older version changed one of them after it.
    #[error(
        "{} is a change of several names that an older version of bedplate did not know of, and overtook: \
         names are as their own files say; set them again where that is not what you want, and remove it",
        .0.display()
    )]
    OvertakenJournal(PathBuf),
    /// A directory of the store is none, or gone.
    #[error(transparent)]
    Part(#[from] crate::parts::PartError),
    /// A file that nothing of ours is called like.
    #[error("{} does not belong into a store", .0.display())]
    Stray(PathBuf),
}

/// What an fsck looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsckReport {
    /// How many items were checked.
    pub items: u64,
    /// The bytes that were read and hashed.
    pub bytes: u64,
    /// How many findings there were.
    pub findings: u64,
}

/// Why a store could not be checked at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot list {}", path.display())]
pub struct FsckError {
    /// The store.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl Store {
    /// Checks everything, on all cores; each finding is told as it is found.
    pub fn fsck(&self, tell: &mut (dyn FnMut(Finding) + Send)) -> Result<FsckReport, FsckError> {
        self.check(Depth::Contents, tell)
    }

    /// Checks that everything is there and has the right length; no object's content is read.
    pub fn fsck_quick(
        &self,
        tell: &mut (dyn FnMut(Finding) + Send),
    ) -> Result<FsckReport, FsckError> {
        self.check(Depth::Names, tell)
    }

    fn check(
        &self,
        depth: Depth,
        tell: &mut (dyn FnMut(Finding) + Send),
    ) -> Result<FsckReport, FsckError> {
        let failed = |source| FsckError {
            path: self.path().to_owned(),
            source,
        };
        let items = self.items().map_err(failed)?;
        let mut check = Check {
            store: self,
            depth,
            sizes: HashMap::new(),
            items: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            told: Mutex::new((tell, 0)),
        };
        for problem in self.parts().map_err(failed)?.broken {
            check.tell(problem.into());
        }
        for path in self.strays().map_err(failed)? {
            check.tell(Finding::Stray(path));
        }
        // Objects first: images are compared with the lengths that were found.
        let (mut objects, others): (Vec<Item>, Vec<Item>) = items
            .into_iter()
            .partition(|item| matches!(item, Item::Object(_)));
        // In the order of their names they lie close together.
        objects.sort_unstable();
        let sizes = Mutex::new(HashMap::with_capacity(objects.len()));
        let batches = objects.chunks(BATCH).rev().map(<[Item]>::to_vec).collect();
        let each_batch = match depth {
            Depth::Names => work::each_waiting,
            Depth::Contents => work::each,
        };
        each_batch(batches, &|batch: Vec<Item>| {
            let mut found = Vec::with_capacity(batch.len());
            for item in batch {
                match check.object(item) {
                    Ok((id, size)) => found.push((id, size)),
                    Err(finding) => check.tell_unless_gone(item, *finding),
                }
            }
            let mut sizes = sizes.lock().unwrap_or_else(PoisonError::into_inner);
            sizes.extend(found);
        });
        check.sizes = sizes.into_inner().unwrap_or_else(PoisonError::into_inner);
        work::each(others, &|item| {
            if let Err(finding) = check.named(item) {
                check.tell_unless_gone(item, *finding);
            }
        });
        check.refs();
        let (_, findings) = check
            .told
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(FsckReport {
            items: check.items.into_inner(),
            bytes: check.bytes.into_inner(),
            findings,
        })
    }
}

/// How many objects a thread takes at once.
const BATCH: usize = 32;

/// How much of a store is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// Names and lengths, and what images, layers, refs and pins name.
    Names,
    /// Every byte.
    Contents,
}

type Tell<'a> = &'a mut (dyn FnMut(Finding) + Send);

struct Check<'a, 'b> {
    store: &'a Store,
    depth: Depth,
    /// The length of each object that could be checked.
    sizes: HashMap<ObjectId, u64>,
    items: AtomicU64,
    bytes: AtomicU64,
    /// With how many findings there were.
    told: Mutex<(Tell<'b>, u64)>,
}

impl Check<'_, '_> {
    /// Checks an object; returns its length.
    fn object(&self, item: Item) -> Result<(ObjectId, u64), Box<Finding>> {
        let Item::Object(id) = item else {
            return Err(Box::new(Finding::NotAFile(item)));
        };
        if self.depth == Depth::Names {
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            let stat = rustix::fs::statat(self.store.root(), item.path(), flags);
            let stat = stat.map_err(|error| {
                let source = error.into();
                boxed(ReadStoreError::Read { item, source })
            })?;
            if rustix::fs::FileType::from_raw_mode(stat.st_mode)
                != rustix::fs::FileType::RegularFile
            {
                return Err(Box::new(Finding::NotAFile(item)));
            }
            self.count(0);
            return Ok((id, stat.st_size as u64));
        }
        let file = self.store.open_object(&id).map_err(boxed)?;
        let (found, bytes) = crate::extents::digest(id.algorithm(), &file)
            .map_err(|source| boxed(ReadStoreError::Read { item, source }))?;
        self.count(bytes);
        if found != id {
            return Err(boxed(ReadStoreError::Damaged {
                item,
                found: found.to_string(),
            }));
        }
        check_seal(item, id, &file)?;
        Ok((id, bytes))
    }

    /// Checks an image, a layer's table, a manifest or a config.
    fn named(&self, item: Item) -> Result<(), Box<Finding>> {
        match item {
            Item::Object(_) => Ok(()),
            Item::Image(id) => self.image(item, id),
            Item::Blob(digest) => {
                let bytes = self.store.blob(&digest).map_err(boxed)?;
                self.count(bytes.len() as u64);
                Ok(())
            }
            Item::Layer(diff_id) => {
                let Some(table) = self.store.layer(&diff_id).map_err(boxed)? else {
                    return Err(boxed(ReadStoreError::Missing(item)));
                };
                self.count(table.len() as u64);
                let layer = Layer::decode(&table, &diff_id)
                    .map_err(|source| boxed(Finding::Layer(diff_id, source)))?;
                let objects: HashSet<ObjectId> = layer.objects().map(|(id, _)| id).collect();
                for id in objects {
                    self.need(item, Item::Object(id));
                }
                Ok(())
            }
        }
    }

    fn image(&self, item: Item, id: ObjectId) -> Result<(), Box<Finding>> {
        let tree = self.store.image_tree(&id).map_err(boxed)?;
        let file = self.store.open_item(item).map_err(boxed)?;
        self.count(file.metadata().map_or(0, |metadata| metadata.len()));
        for (object, wanted) in sized_objects_of(&tree) {
            match self.sizes.get(&object) {
                Some(found) if *found != wanted => self.tell(Finding::WrongSize {
                    image: item,
                    object,
                    wanted,
                    found: *found,
                }),
                Some(_) => {}
                None => self.need(item, Item::Object(object)),
            }
        }
        check_seal(item, id, &file)
    }

    /// Checks that what refs and pins name is there.
    fn refs(&self) {
        let mut findings = Vec::new();
        let mut dangling = self.dangling(&mut |finding| findings.push(finding));
        if !dangling.is_empty() {
            // Untagged and collected since the names were read: only what is so twice is so.
            let again = self.dangling(&mut |_| {});
            dangling.retain(|entry| again.contains(entry));
        }
        for finding in findings {
            self.tell(finding);
        }
        match self.store.names_set_aside() {
            Ok(files) => {
                for file in files.into_iter().filter(SetAside::is_lost_name) {
                    self.tell(Finding::LostName(file));
                }
            }
            Err(error) => self.tell(error.into()),
        }
        // One that cannot be read was told above.
        let overtaken = self.store.overtaken_journals().unwrap_or_default();
        for path in overtaken {
            self.tell(Finding::OvertakenJournal(path));
        }
        for (name, missing) in dangling {
            self.tell(Finding::Dangling { name, missing });
        }
    }

    /// Returns the names of refs and pins with what they name and the store lacks.
    fn dangling(&self, tell: &mut dyn FnMut(Finding)) -> Vec<(String, Item)> {
        let mut named: Vec<(String, Item)> = Vec::new();
        match self.store.each_ref() {
            Err(error) => tell(error.into()),
            Ok(refs) => {
                for result in refs {
                    match result {
                        Err(error) => tell(error.into()),
                        // An earlier image may be gone: an older version's gc does not know of it.
                        Ok(it) => {
                            let items = it.target.items();
                            named.extend(items.map(|item| (it.name.to_string(), item)));
                        }
                    }
                }
            }
        }
        match self.store.each_pin() {
            Err(error) => tell(error.into()),
            Ok(pins) => {
                for result in pins {
                    let pin = match result {
                        Ok(pin) => pin,
                        Err(error) => {
                            tell(error.into());
                            continue;
                        }
                    };
                    named.extend(pin.items().map(|item| (pin.name.clone(), item)));
                }
            }
        }
        named.retain(|(_, item)| !self.store.has(item));
        named
    }

    /// Tells when something that is named is not there, unless what names it went, too.
    fn need(&self, by: Item, missing: Item) {
        // A gc takes images and layers before their objects, so this order of questions tells them apart.
        if !self.store.has(&missing) && self.store.has(&by) {
            self.tell(Finding::Missing { by, missing });
        }
    }

    fn count(&self, bytes: u64) {
        self.items.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Tells what is wrong with an item, unless a gc took it since it was listed: whoever needs it is
    /// looked at later.
    fn tell_unless_gone(&self, item: Item, finding: Finding) {
        if self.store.has(&item) {
            self.tell(finding);
        }
    }

    fn tell(&self, finding: Finding) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.1 += 1;
        (told.0)(finding);
    }
}

/// Compares what the kernel has sealed a file as, where it is sealed.
fn check_seal(item: Item, id: ObjectId, file: &std::fs::File) -> Result<(), Box<Finding>> {
    let measured =
        verity::measure(file).map_err(|source| boxed(ReadStoreError::Read { item, source }))?;
    match measured {
        Some((algorithm, digest))
            if algorithm != id.algorithm().kernel_number() || digest != id.as_bytes() =>
        {
            Err(boxed(Finding::SealedAsOther(item)))
        }
        _ => Ok(()),
    }
}

/// Puts a finding where a result can carry it cheaply.
fn boxed(finding: impl Into<Finding>) -> Box<Finding> {
    Box::new(finding.into())
}
