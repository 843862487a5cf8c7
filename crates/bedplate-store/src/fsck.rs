//! Checking a store: everything against its name, every name against what it leads to.
//!
//! Invariant: fsck changes nothing, and what it does not complain about can be read.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bedplate_model::{Content, FileContent, ObjectId};
use bedplate_sys::{files, verity};

use crate::item::Item;
use crate::layer::Layer;
use crate::refs::RefsError;
use crate::store::{ReadStoreError, Store};
use crate::work;

/// One thing that is wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum Finding {
    /// Something cannot be read, has another digest than its name says, or is no image.
    #[error(transparent)]
    Unreadable(#[from] ReadStoreError),
    /// A file is sealed as something else than its name says.
    #[error("{0} is sealed under another digest")]
    SealedAsOther(Item),
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
    /// A ref or pin leads to something that the store does not have.
    #[error("{name} needs {missing}, which the store does not have")]
    Dangling {
        /// The name of the ref or pin.
        name: String,
        /// What is missing.
        missing: Item,
    },
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
        let failed = |source| FsckError {
            path: self.path().to_owned(),
            source,
        };
        let items = self.items().map_err(failed)?;
        let check = Check {
            store: self,
            present: items.iter().copied().collect(),
            sizes: Mutex::new(HashMap::new()),
            told: Mutex::new((tell, FsckReport::default())),
        };
        for path in self.strays().map_err(failed)? {
            check.tell(Finding::Stray(path));
        }
        // Objects first: images are compared with the lengths that were found.
        let (objects, others): (Vec<Item>, Vec<Item>) = items
            .into_iter()
            .partition(|item| matches!(item, Item::Object(_)));
        for items in [objects, others] {
            let outcome = work::run(items, |item, _| {
                if let Err(finding) = check.item(item) {
                    check.tell(*finding);
                }
                Ok::<(), std::convert::Infallible>(())
            });
            match outcome {
                Ok(()) => {}
            }
        }
        check.refs();
        let (_, report) = check
            .told
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(report)
    }

    /// Lists files in the places of items that have no item's name.
    fn strays(&self) -> io::Result<Vec<PathBuf>> {
        let mut strays = Vec::new();
        let fan_out = |name: &str| {
            let hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
            name.len() == 2 && name.chars().all(hex)
        };
        for entry in files::list(files::open_root(self.objects_dir())?)? {
            let path = self.objects_dir().join(&entry.name);
            let Some(prefix) = entry.name.to_str().filter(|name| fan_out(name)) else {
                strays.push(path);
                continue;
            };
            for entry in files::list(files::open_root(&path)?)? {
                let name = format!("object-{prefix}{}", entry.name.to_string_lossy());
                if Item::from_flat_name(name.as_ref()).is_none() {
                    strays.push(path.join(&entry.name));
                }
            }
        }
        for (directory, kind) in [("images", "image"), ("layers", "layer"), ("blobs", "blob")] {
            let path = self.path().join(directory);
            for entry in files::list(files::open_root(&path)?)? {
                let name = format!("{kind}-{}", entry.name.to_string_lossy());
                if Item::from_flat_name(name.as_ref()).is_none() {
                    strays.push(path.join(&entry.name));
                }
            }
        }
        Ok(strays)
    }
}

type Tell<'a> = &'a mut (dyn FnMut(Finding) + Send);

struct Check<'a, 'b> {
    store: &'a Store,
    present: HashSet<Item>,
    /// The length of each object.
    sizes: Mutex<HashMap<ObjectId, u64>>,
    told: Mutex<(Tell<'b>, FsckReport)>,
}

impl Check<'_, '_> {
    fn item(&self, item: Item) -> Result<(), Box<Finding>> {
        match item {
            Item::Object(id) => self.object(item, id),
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
                let layer = Layer::decode(&table)
                    .map_err(|source| boxed(Finding::Layer(diff_id, source)))?;
                for id in layer.objects() {
                    self.need(item, Item::Object(*id));
                }
                Ok(())
            }
        }
    }

    fn object(&self, item: Item, id: ObjectId) -> Result<(), Box<Finding>> {
        let file = self.store.open_object(&id).map_err(boxed)?;
        let (found, bytes) = crate::extents::digest(id.algorithm(), &file)
            .map_err(|source| boxed(ReadStoreError::Read { item, source }))?;
        self.count(bytes);
        self.sizes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, bytes);
        if found != id {
            return Err(boxed(ReadStoreError::Damaged {
                item,
                found: found.to_string(),
            }));
        }
        check_seal(item, id, &file)
    }

    fn image(&self, item: Item, id: ObjectId) -> Result<(), Box<Finding>> {
        let tree = self.store.image_tree(&id).map_err(boxed)?;
        let file = self.store.open_item(item).map_err(boxed)?;
        self.count(file.metadata().map_or(0, |metadata| metadata.len()));
        let mut seen = HashSet::new();
        let contents = tree.walk().map(|(_, node)| &tree.node(node).content);
        for content in contents {
            if let Content::File(FileContent::Object { id, size }) = content
                && seen.insert(*id)
            {
                let sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
                let found = sizes.get(id).copied();
                drop(sizes);
                match found {
                    Some(found) if found != *size => self.tell(Finding::WrongSize {
                        image: item,
                        object: *id,
                        wanted: *size,
                        found,
                    }),
                    Some(_) => {}
                    None => self.need(item, Item::Object(*id)),
                }
            }
        }
        check_seal(item, id, &file)
    }

    fn refs(&self) {
        let mut needed = Vec::new();
        match self.store.each_ref() {
            Err(error) => self.tell(error.into()),
            Ok(refs) => {
                for result in refs {
                    match result {
                        Err(error) => self.tell(error.into()),
                        Ok((name, target)) => needed.push((
                            name.to_string(),
                            target.root,
                            [target.manifest, target.config],
                        )),
                    }
                }
            }
        }
        match self.store.pins() {
            Err(error) => self.tell(error.into()),
            Ok(pins) => needed.extend(
                pins.into_iter()
                    .map(|pin| (pin.name, pin.root, [pin.manifest, pin.config])),
            ),
        }
        for (name, root, blobs) in needed {
            let blobs = blobs.into_iter().flatten().map(Item::Blob);
            for missing in [Item::Image(root.image)].into_iter().chain(blobs) {
                if !self.is_present(missing) {
                    let name = name.clone();
                    self.tell(Finding::Dangling { name, missing });
                }
            }
        }
    }

    fn need(&self, by: Item, missing: Item) {
        if !self.is_present(missing) {
            self.tell(Finding::Missing { by, missing });
        }
    }

    /// Looks again before it says no: a commit may have been faster than the listing.
    fn is_present(&self, item: Item) -> bool {
        self.present.contains(&item) || self.store.has(&item)
    }

    fn count(&self, bytes: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.1.items += 1;
        told.1.bytes += bytes;
    }

    fn tell(&self, finding: Finding) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.1.findings += 1;
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
