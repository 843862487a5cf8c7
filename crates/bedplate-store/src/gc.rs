//! Garbage collection: what no ref, pin or live transaction reaches goes.
//!
//! ```text
//! lock ─ mark: refs, pins, live transactions → images → objects; configs → layers → objects
//!      ─ condemn: images and layers → trash/, made durable, then objects and blobs
//! unlock ─ empty trash/ ─ remove what dead transactions left
//! ```
//!
//! The lock is held against the last phase of commits alone, while names are moved, and never while
//! bytes are read or written: a pull that runs for an hour does not stop a gc, and links back what it
//! holds.
//!
//! Invariants: an image below `images/` has all its objects, at every moment and after a power cut;
//! nothing is collected while a root of the marking cannot be read.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use bedplate_model::oci::Config;
use bedplate_model::{ObjectId, Sha256};
use bedplate_sys::lock::Lock;
use bedplate_sys::{durable, files};

use crate::item::Item;
use crate::layer::{self, Layer};
use crate::object::objects_of;
use crate::refs::RefsError;
use crate::store::{ReadStoreError, Store};

/// What is kept besides what refs and pins name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcPolicy {
    /// Keep the tables of the layers of images that stay. They are what lets a layer be used again,
    /// and written out as it was; they cost what upper layers hide.
    pub keep_layers: bool,
}

impl Default for GcPolicy {
    fn default() -> Self {
        Self { keep_layers: true }
    }
}

/// What a gc removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Everything that goes, with its size in bytes.
    pub removed: Vec<(Item, u64)>,
    /// Directories of transactions whose process is gone.
    pub abandoned: u64,
    /// How many items stay.
    pub kept: u64,
}

impl GcReport {
    /// Returns the bytes that are freed.
    pub fn freed_bytes(&self) -> u64 {
        self.removed.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Why garbage could not be collected. Nothing is lost then: what was condemned was garbage.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// A ref or pin could not be read, so that it is not known what it keeps.
    #[error("cannot tell what is garbage")]
    Refs(#[source] RefsError),
    /// An image, config or layer that is kept could not be read.
    #[error("cannot tell what is garbage; `fsck` finds out more")]
    Read(#[source] ReadStoreError),
    /// A layer's table could not be decoded.
    #[error("cannot tell what is garbage: the table of layer {diff_id} is damaged")]
    Layer {
        /// The layer.
        diff_id: Sha256,
        /// What is wrong with it.
        source: Box<layer::DecodeLayerError>,
    },
    /// Something could not be listed, moved or removed.
    #[error("cannot {attempt} in {}", path.display())]
    Store {
        /// The store.
        path: PathBuf,
        /// What was attempted.
        attempt: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Store {
    /// Removes everything that no ref, pin or live transaction reaches; with `dry_run`, only says what.
    pub fn gc(&self, policy: &GcPolicy, dry_run: bool) -> Result<GcReport, GcError> {
        let lock = if dry_run {
            None
        } else {
            let lock = self.lock_for_collecting();
            Some(lock.map_err(self.gc_failed("take the lock"))?)
        };
        let transactions = self.transactions()?;
        let kept = self.mark(policy, &transactions.live)?;
        let mut report = GcReport {
            abandoned: transactions.dead.len() as u64,
            ..GcReport::default()
        };
        for item in self.items().map_err(self.gc_failed("list what is"))? {
            if kept.contains(&item) {
                report.kept += 1;
            } else {
                report.removed.push((item, self.size_of(item)));
            }
        }
        if dry_run {
            return Ok(report);
        }
        self.condemn(&report.removed)?;
        drop(lock);
        self.empty_trash()?;
        let tmp = files::open_directory(self.root(), "tmp".as_ref())
            .map_err(self.gc_failed("open tmp/"))?;
        for (name, _held) in &transactions.dead {
            files::remove_tree(&tmp, name).map_err(self.gc_failed("remove a dead transaction"))?;
        }
        Ok(report)
    }

    /// Finds everything that stays.
    fn mark(&self, policy: &GcPolicy, live: &[Item]) -> Result<HashSet<Item>, GcError> {
        let mut marking = Marking {
            store: self,
            policy: *policy,
            kept: HashSet::new(),
        };
        for (_, target) in self.refs().map_err(GcError::Refs)? {
            marking.image(target.root.image)?;
            marking.documents(target.manifest, target.config)?;
        }
        for pin in self.pins().map_err(GcError::Refs)? {
            marking.image(pin.root.image)?;
            marking.documents(pin.manifest, pin.config)?;
        }
        for item in live {
            match item {
                // Its objects may be the transaction's alone yet: those need no mark here.
                Item::Image(id) if self.has(item) => marking.image(*id)?,
                Item::Layer(diff_id) if self.has(item) => marking.layer(*diff_id)?,
                Item::Blob(digest) if self.has(item) => {
                    marking.kept.insert(Item::Blob(*digest));
                }
                other => {
                    marking.kept.insert(*other);
                }
            }
        }
        Ok(marking.kept)
    }

    /// Moves what is garbage out of sight. What names comes before what is named, durably.
    fn condemn(&self, removed: &[(Item, u64)]) -> Result<(), GcError> {
        let failed = || self.gc_failed("move garbage away");
        let trash = files::open_directory(self.root(), "trash".as_ref()).map_err(failed())?;
        let names_others = |item: &Item| matches!(item, Item::Image(_) | Item::Layer(_));
        for first in [true, false] {
            let mut moved = false;
            for (item, _) in removed {
                if names_others(item) == first {
                    match rustix::fs::renameat(self.root(), item.path(), &trash, item.flat_name()) {
                        Ok(()) => moved = true,
                        // Somebody removed it by hand.
                        Err(rustix::io::Errno::NOENT) => {}
                        Err(error) => return Err(failed()(error.into())),
                    }
                }
            }
            if first && moved {
                durable::sync_filesystem(&trash).map_err(failed())?;
            }
        }
        Ok(())
    }

    /// Removes what this or an earlier gc condemned. A transaction that uses some of it has links of
    /// its own.
    fn empty_trash(&self) -> Result<(), GcError> {
        let failed = || self.gc_failed("empty trash/");
        let trash = files::open_directory(self.root(), "trash".as_ref()).map_err(failed())?;
        for entry in files::list(&trash).map_err(failed())? {
            files::remove_tree(&trash, &entry.name).map_err(failed())?;
        }
        Ok(())
    }

    /// Tells live transactions from dead ones; the dead ones are locked, so that they stay dead.
    fn transactions(&self) -> Result<Transactions, GcError> {
        let failed = || self.gc_failed("list the transactions");
        let mut transactions = Transactions::default();
        let tmp = files::open_directory(self.root(), "tmp".as_ref()).map_err(failed())?;
        for entry in files::list(&tmp).map_err(failed())? {
            let path = self.path().join("tmp").join(&entry.name);
            let lock = match Lock::try_exclusive(&path) {
                Ok(lock) => lock,
                // It ended in the meantime.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed()(error)),
            };
            if let Some(lock) = lock {
                transactions.dead.push((entry.name, lock));
                continue;
            }
            let listed = File::open(&path).and_then(files::list);
            match listed {
                Ok(held) => transactions.live.extend(
                    held.iter()
                        .filter_map(|entry| Item::from_flat_name(&entry.name)),
                ),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed()(error)),
            }
        }
        Ok(transactions)
    }

    fn size_of(&self, item: Item) -> u64 {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::statat(self.root(), item.path(), flags).map_or(0, |stat| stat.st_size as u64)
    }

    fn gc_failed(&self, attempt: &'static str) -> impl FnOnce(io::Error) -> GcError {
        let path = self.path().to_owned();
        move |source| GcError::Store {
            path,
            attempt,
            source,
        }
    }
}

#[derive(Default)]
struct Transactions {
    /// What live transactions hold.
    live: Vec<Item>,
    dead: Vec<(std::ffi::OsString, Lock)>,
}

struct Marking<'a> {
    store: &'a Store,
    policy: GcPolicy,
    kept: HashSet<Item>,
}

impl Marking<'_> {
    fn image(&mut self, id: ObjectId) -> Result<(), GcError> {
        if self.kept.insert(Item::Image(id)) {
            let tree = self.store.image_tree(&id).map_err(GcError::Read)?;
            self.kept
                .extend(objects_of(&tree).into_iter().map(Item::Object));
        }
        Ok(())
    }

    fn documents(
        &mut self,
        manifest: Option<Sha256>,
        config: Option<Sha256>,
    ) -> Result<(), GcError> {
        self.kept.extend(manifest.map(Item::Blob));
        let Some(config) = config else {
            return Ok(());
        };
        if !self.kept.insert(Item::Blob(config)) || !self.policy.keep_layers {
            return Ok(());
        }
        let bytes = match self.store.blob(&config) {
            Ok(bytes) => bytes,
            Err(error) => return Err(GcError::Read(error)),
        };
        // A config of another kind names no layers that we could have.
        let Ok(config) = serde_json::from_slice::<Config>(&bytes) else {
            return Ok(());
        };
        config
            .rootfs
            .diff_ids
            .into_iter()
            .try_for_each(|diff_id| self.layer(diff_id))
    }

    fn layer(&mut self, diff_id: Sha256) -> Result<(), GcError> {
        if !self.store.has(&Item::Layer(diff_id)) || !self.kept.insert(Item::Layer(diff_id)) {
            return Ok(());
        }
        if let Some(table) = self.store.layer(&diff_id).map_err(GcError::Read)? {
            let layer = Layer::decode(&table).map_err(|source| GcError::Layer {
                diff_id,
                source: Box::new(source),
            })?;
            self.kept.extend(layer.objects().copied().map(Item::Object));
        }
        Ok(())
    }
}
