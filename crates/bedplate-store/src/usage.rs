//! What a store takes of the disk, and what each image takes of that.
//!
//! ```text
//! images ─→ object → the one image that names it, or "several" ─→ unique and shared bytes of each
//! ```
//!
//! Sizes are those of files as far as they are allocated: a hole counts for nothing.
//!
//! Invariant: what an image has alone is what removing it, and nothing else, would free.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Mutex, PoisonError};

use bedplate_model::ObjectId;
use bedplate_sys::files;
use rustix::fs::{AtFlags, FileType, Stat};
use serde::Serialize;

use crate::item::Item;
use crate::object::sized_objects_of;
use crate::refs::{Pin, Ref, RefsError};
use crate::store::{ReadStoreError, Store};
use crate::work;

/// How much a store holds. The bytes of a file are its length, or what the disk has of it where that is less
/// (holes); only `disk_bytes` counts whole blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// How many objects.
    pub objects: u64,
    /// The bytes in them.
    pub object_bytes: u64,
    /// How many images.
    pub images: u64,
    /// The bytes in them.
    pub image_bytes: u64,
    /// How many tables of layers.
    pub layers: u64,
    /// The bytes in them.
    pub layer_bytes: u64,
    /// How many manifests and configs.
    pub blobs: u64,
    /// The bytes in them.
    pub blob_bytes: u64,
    /// The bytes that transactions have not committed yet, that crashes left, and that earlier versions condemned. Hard
    /// links to what the store has are counted, too.
    pub staging_bytes: u64,
    /// The bytes on the disk that objects, images, layers and blobs take, in whole blocks.
    pub disk_bytes: u64,
}

/// What an image takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUsage {
    /// The image.
    pub image: ObjectId,
    /// Who keeps it: names (`NAME`, or `NAME~1` for earlier images), then pins. Empty for garbage.
    pub names: Vec<String>,
    /// How many objects it names.
    pub objects: u64,
    /// The bytes of its objects and of its EROFS image.
    pub total_bytes: u64,
    /// The bytes of these that nothing else among the images has.
    pub unique_bytes: u64,
}

impl ImageUsage {
    /// Returns the bytes that another image has, too.
    pub fn shared_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.unique_bytes)
    }
}

/// Why it could not be found out what images take.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// The images could not be listed.
    #[error("cannot list the images of the store")]
    List(#[source] io::Error),
    /// An image could not be read.
    #[error("cannot tell what each image takes")]
    Read(#[from] ReadStoreError),
    /// A ref or pin could not be read.
    #[error("cannot tell which names hold which images")]
    Refs(#[from] RefsError),
}

/// Which images name an object.
#[derive(Clone, Copy)]
enum Owner {
    /// The image at this position alone.
    One(usize),
    Several,
}

/// What is known of the objects while images are read.
#[derive(Default)]
struct Tally {
    owners: HashMap<ObjectId, (Owner, u64)>,
    images: Vec<ImageUsage>,
}

impl Usage {
    fn add(&mut self, item: Item, stat: &Stat) {
        let (count, bytes) = match item {
            Item::Object(_) => (&mut self.objects, &mut self.object_bytes),
            Item::Image(_) => (&mut self.images, &mut self.image_bytes),
            Item::Layer(_) => (&mut self.layers, &mut self.layer_bytes),
            Item::Blob(_) => (&mut self.blobs, &mut self.blob_bytes),
        };
        *count += 1;
        *bytes = bytes.saturating_add(allocated(stat));
        let blocks = stat.st_blocks as u64;
        self.disk_bytes = self.disk_bytes.saturating_add(blocks.saturating_mul(512));
    }
}

impl Store {
    /// Counts what the store holds.
    pub fn usage(&self) -> io::Result<Usage> {
        let usage: Mutex<Usage> = Mutex::default();
        self.check_parts()?;
        let items = self.items()?;
        work::each_waiting(items.chunks(work::CHUNK).collect(), &|items: &[Item]| {
            let stat = |item: &Item| {
                let stat = rustix::fs::statat(self.root(), item.path(), AtFlags::SYMLINK_NOFOLLOW);
                // Or it was collected since the directory was read.
                stat.ok().map(|stat| (*item, stat))
            };
            let found: Vec<(Item, Stat)> = items.iter().filter_map(stat).collect();
            let mut usage = usage.lock().unwrap_or_else(PoisonError::into_inner);
            for (item, stat) in found {
                usage.add(item, &stat);
            }
        });
        let mut usage = usage.into_inner().unwrap_or_else(PoisonError::into_inner);
        for directory in ["tmp", "trash"] {
            let below = self.path().join(directory);
            usage.staging_bytes = usage
                .staging_bytes
                .saturating_add(bytes_below(&below, Counted::All)?);
        }
        Ok(usage)
    }

    /// Finds out what each image takes, and how much of that it shares; the largest come first.
    ///
    /// Reads every image once, on all cores, and of objects nothing but how long they are.
    pub fn image_usage(&self) -> Result<Vec<ImageUsage>, UsageError> {
        let mut names = holders(&self.all_refs()?, &self.pins()?);
        self.check_parts().map_err(UsageError::List)?;
        let items = self.items().map_err(UsageError::List)?;
        let (objects, others): (Vec<Item>, Vec<Item>) = items
            .into_iter()
            .partition(|item| matches!(item, Item::Object(_)));
        let allocated: HashMap<Item, u64> = self.sized(&objects).into_iter().collect();
        let images: Vec<ObjectId> = others
            .into_iter()
            .filter_map(|item| match item {
                Item::Image(id) => Some(id),
                Item::Object(_) | Item::Layer(_) | Item::Blob(_) => None,
            })
            .collect();
        let tally: Mutex<Tally> = Mutex::default();
        work::run(images, |id, _| {
            let tree = match self.image_tree(&id) {
                Ok(tree) => tree,
                Err(ReadStoreError::Missing(_)) => return Ok(()), // collected since it was listed
                Err(error) => return Err(error),
            };
            let mut objects = sized_objects_of(&tree);
            drop(tree);
            for (id, size) in &mut objects {
                // A hole is in the length that the image says, and takes nothing.
                *size = allocated.get(&Item::Object(*id)).map_or(*size, |it| *it);
            }
            let own = self.size_of(Item::Image(id));
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.add(id, own, &objects);
            Ok(())
        })?;
        let mut images = tally
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .finish();
        for image in &mut images {
            image.names = names.remove(&Item::Image(image.image)).unwrap_or_default();
        }
        images.sort_by(|one, other| {
            (other.total_bytes, &one.names).cmp(&(one.total_bytes, &other.names))
        });
        Ok(images)
    }

    /// Returns the bytes of an item that the disk has; 0 where it is not there.
    pub(crate) fn size_of(&self, item: Item) -> u64 {
        rustix::fs::statat(self.root(), item.path(), AtFlags::SYMLINK_NOFOLLOW)
            .map_or(0, |stat| allocated(&stat))
    }
}

/// Lists who keeps each image, manifest and config.
pub(crate) fn holders(refs: &[Ref], pins: &[Pin]) -> BTreeMap<Item, Vec<String>> {
    let mut holders: BTreeMap<Item, Vec<String>> = BTreeMap::new();
    for known in refs {
        for (back, target) in known.images().enumerate() {
            let name = match back {
                0 => known.name.to_string(),
                back => format!("{}~{back}", known.name),
            };
            for item in target.items() {
                holders.entry(item).or_default().push(name.clone());
            }
        }
    }
    for pin in pins {
        for item in pin.items() {
            holders.entry(item).or_default().push(pin.name.clone());
        }
    }
    holders
}

impl Tally {
    fn add(&mut self, image: ObjectId, own_bytes: u64, objects: &[(ObjectId, u64)]) {
        let position = self.images.len();
        let mut total_bytes = own_bytes;
        for (id, size) in objects {
            total_bytes = total_bytes.saturating_add(*size);
            self.owners
                .entry(*id)
                .and_modify(|(owner, _)| *owner = Owner::Several)
                .or_insert((Owner::One(position), *size));
        }
        self.images.push(ImageUsage {
            image,
            names: Vec::new(),
            objects: objects.len() as u64,
            total_bytes,
            unique_bytes: own_bytes,
        });
    }

    fn finish(mut self) -> Vec<ImageUsage> {
        for (owner, size) in self.owners.into_values() {
            match owner {
                Owner::One(position) => {
                    let unique = &mut self.images[position].unique_bytes;
                    *unique = unique.saturating_add(size);
                }
                Owner::Several => {}
            }
        }
        self.images
    }
}

/// Returns how many of a file's bytes the disk has: its length, without its holes.
pub(crate) fn allocated(stat: &Stat) -> u64 {
    let blocks = stat.st_blocks as u64;
    blocks.saturating_mul(512).min(stat.st_size as u64)
}

/// Which files below a directory count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    All,
    /// Those that have no other name: what is freed with the directory.
    Alone,
}

/// Adds up the allocated bytes of files below a directory; what vanishes meanwhile is passed over.
pub(crate) fn bytes_below(path: &std::path::Path, counted: Counted) -> io::Result<u64> {
    let mut sum: u64 = 0;
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        let directory = match files::open_root(&path) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in files::list(&directory)? {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let Ok(stat) = rustix::fs::statat(&directory, &entry.name, flags) else {
                continue;
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => pending.push(path.join(&entry.name)),
                _ if counted == Counted::Alone && stat.st_nlink > 1 => {}
                _ => sum = sum.saturating_add(allocated(&stat)),
            }
        }
    }
    Ok(sum)
}
