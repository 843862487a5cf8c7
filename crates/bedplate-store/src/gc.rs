//! Garbage collection: what no ref, pin or live transaction reaches goes.
//!
//! ```text
//! lock ─ mark: refs, pins, live transactions → images → objects; configs → layers → objects
//!      ─ choose: earlier images of names, by count, age and size; names forget the others
//!      ─ remove: images and layers, made durable, then objects and blobs
//! unlock ─ remove what dead transactions left
//! ```
//!
//! The lock is held against the last phase of commits alone, while names are given, and never while
//! bytes are read or written: a pull that runs for an hour does not stop a gc, and links back what it
//! holds.
//!
//! Invariants: an image below `images/` has all its objects, at every moment and after a power cut;
//! nothing is collected while a root of the marking cannot be read.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bedplate_model::oci::Config;
use bedplate_model::{ImageName, ObjectId, Sha256};
use bedplate_sys::lock::Lock;
use bedplate_sys::{durable, files};
use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::item::Item;
use crate::layer::{self, Layer};
use crate::object::objects_of;
use crate::refs::{RefDocument, RefTarget, RefsError, SetAside};
use crate::store::{ReadStoreError, Store};
use crate::usage;
use crate::work;

/// What is kept besides what names point at now, and pins and live transactions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcPolicy {
    /// Keep the tables of the layers of images that stay. They are what lets a layer be used again,
    /// and written out as it was; they cost what upper layers hide.
    pub keep_layers: bool,
    /// How many images each name keeps, the current one among them; `None` keeps all that it remembers.
    pub keep: Option<NonZeroU32>,
    /// Forget earlier images that were replaced before this moment, in seconds since 1970.
    pub replaced_before: Option<i64>,
    /// Forget earlier images, the longest replaced first, until what stays has at most so many bytes.
    pub max_bytes: Option<u64>,
}

impl Default for GcPolicy {
    fn default() -> Self {
        Self {
            keep_layers: true,
            keep: None,
            replaced_before: None,
            max_bytes: None,
        }
    }
}

/// What a gc removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Earlier images that names forget, in the order of the names, the newest first.
    pub forgotten: Vec<Forgotten>,
    /// Everything that goes, with the bytes that the disk has of it.
    pub removed: Vec<(Item, u64)>,
    /// Directories of transactions whose process is gone.
    pub abandoned: u64,
    /// The bytes of what they had written. What they shared with the store is not among them.
    pub abandoned_bytes: u64,
    /// How many items stay.
    pub kept: u64,
    /// Files of names that could not be read, and were set aside. As long as there are any, every image
    /// stays, and no name forgets one: nobody knows what these held.
    pub set_aside: Vec<SetAside>,
    /// How many images stay for these alone.
    pub kept_unnamed: u64,
    /// The bytes of what stays under every policy, where that is more than the policy allows.
    pub too_much: Option<u64>,
}

/// An earlier image that a name forgets. It goes unless something else holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// The name.
    pub name: ImageName,
    /// How many images back it was, from 1.
    pub back: u32,
    /// The image.
    pub target: RefTarget,
    /// Why.
    pub reason: Reason,
}

/// Why a name forgets an earlier image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The name keeps fewer images.
    Count,
    /// It was replaced too long ago.
    Age,
    /// The store is to be smaller.
    Size,
    /// The store has it no more: an older version of this program collected it.
    Gone,
}

impl GcReport {
    /// Returns the bytes of the items that go.
    pub fn removed_bytes(&self) -> u64 {
        self.removed
            .iter()
            .fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Returns the bytes that are freed: of items, and of abandoned transactions.
    pub fn freed_bytes(&self) -> u64 {
        self.removed_bytes().saturating_add(self.abandoned_bytes)
    }
}

/// Why garbage could not be collected. Nothing is lost then: what was removed was garbage.
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
    /// Removes everything that no ref, pin or live transaction reaches, and what the policy makes names
    /// forget; with `dry_run`, only says what.
    pub fn gc(&self, policy: &GcPolicy, dry_run: bool) -> Result<GcReport, GcError> {
        self.gc_without(policy, dry_run, &[])
    }

    /// Does the same as if these pins had been given up: for a dry run.
    pub fn gc_without(
        &self,
        policy: &GcPolicy,
        dry_run: bool,
        given_up: &[String],
    ) -> Result<GcReport, GcError> {
        let lock = if dry_run {
            let parts = self.check_parts();
            parts.map_err(self.gc_failed("tell what is garbage"))?;
            None
        } else {
            let lock = self.lock_for_collecting();
            Some(lock.map_err(self.gc_failed("take the lock"))?)
        };
        let transactions = self.transactions()?;
        let refs = self.each_ref().map_err(GcError::Refs)?.into_iter();
        let mut refs: Vec<RefDocument> = refs.collect::<Result<_, _>>().map_err(GcError::Refs)?;
        refs.sort_by(|one, other| one.name.cmp(&other.name));
        let items = self.items().map_err(self.gc_failed("list what is"))?;

        let set_aside = self.names_set_aside().map_err(GcError::Refs)?;
        let policy = if set_aside.is_empty() {
            *policy
        } else {
            GcPolicy::default()
        };
        let mut marking = Marking::new(self, policy);
        self.mark_roots(&mut marking, &refs, given_up, &transactions.live)?;
        let Choice {
            forgotten,
            too_much,
        } = choose(&mut marking, &refs, &items)?;
        let kept_unnamed = if set_aside.is_empty() {
            0
        } else {
            marking.everything(&items)?
        };
        let mut report = GcReport {
            forgotten,
            set_aside,
            kept_unnamed,
            too_much,
            abandoned: transactions.dead.len() as u64,
            abandoned_bytes: self.abandoned_bytes(&transactions)?,
            ..GcReport::default()
        };
        let listed = items.len();
        let garbage = items
            .into_iter()
            .filter(|item| !marking.kept.contains(item));
        let garbage: Vec<Item> = garbage.collect();
        report.kept = (listed - garbage.len()) as u64;
        report.removed = self.sized(&garbage);
        if dry_run {
            return Ok(report);
        }
        // Names forget before the images go, so that a history names nothing that is not there; only on a
        // full disk afterwards, when there is room to write a shorter one. Until then it reads as gone.
        let forgot = match self.forget(&refs, &report.forgotten) {
            Err(error) if error.is_full() => false,
            other => other.map(|()| true).map_err(GcError::Refs)?,
        };
        self.remove(&report.removed)?;
        self.empty_trash()?;
        let tmp = files::open_directory(self.root(), "tmp".as_ref())
            .map_err(self.gc_failed("open tmp/"))?;
        for (name, _held) in &transactions.dead {
            files::remove_tree(&tmp, name).map_err(self.gc_failed("remove a dead transaction"))?;
        }
        if !forgot {
            match self.forget(&refs, &report.forgotten) {
                // What was asked for is done. A journal that waits is for the next change of a ref, and a
                // history that is too long for the next gc: its images read as gone.
                Err(error) if error.is_full() => {}
                other => other.map_err(GcError::Refs)?,
            }
        }
        drop(lock);
        Ok(report)
    }

    /// Marks what stays whatever the policy says.
    fn mark_roots(
        &self,
        marking: &mut Marking<'_>,
        refs: &[RefDocument],
        given_up: &[String],
        live: &[Item],
    ) -> Result<(), GcError> {
        let mut images = Vec::new();
        for document in refs {
            images.push(document.target.root.image);
            marking.documents(document.target.manifest, document.target.config)?;
        }
        for pin in self.pins().map_err(GcError::Refs)? {
            if given_up.contains(&pin.name) {
                continue;
            }
            images.push(pin.root.image);
            marking.documents(pin.manifest, pin.config)?;
        }
        for item in live {
            match item {
                // Its objects may be the transaction's alone yet: those need no mark here.
                Item::Image(id) if self.has(item) => images.push(*id),
                Item::Layer(diff_id) if self.has(item) => marking.layer(*diff_id)?,
                other => {
                    marking.kept.insert(*other);
                }
            }
        }
        marking.images(images)
    }

    /// Takes entries out of the histories of names.
    fn forget(&self, refs: &[RefDocument], forgotten: &[Forgotten]) -> Result<(), RefsError> {
        let changing = self.lock_refs()?;
        changing.finish_journal()?;
        changing.sweep()?;
        let mut by_name: HashMap<&ImageName, HashSet<usize>> = HashMap::new();
        for entry in forgotten {
            let positions = by_name.entry(&entry.name).or_default();
            positions.insert(entry.back as usize - 1);
        }
        let mut shorter = Vec::new();
        for document in refs {
            if let Some(gone) = by_name.get(&document.name) {
                let mut document = document.clone();
                document.forget(|position| gone.contains(&position));
                shorter.push(document);
            }
        }
        changing.rewrite(&shorter)
    }

    /// Removes what is garbage. What names comes before what is named, durably.
    fn remove(&self, removed: &[(Item, u64)]) -> Result<(), GcError> {
        let names_others = |item: &Item| matches!(item, Item::Image(_) | Item::Layer(_));
        let (naming, named): (Vec<Item>, Vec<Item>) = removed
            .iter()
            .map(|(item, _)| *item)
            .partition(names_others);
        if !naming.is_empty() {
            self.remove_items(&naming)?;
            durable::sync_filesystem(self.root()).map_err(self.gc_failed("remove garbage"))?;
        }
        self.remove_items(&named)
    }

    fn remove_items(&self, items: &[Item]) -> Result<(), GcError> {
        work::run_waiting(items.chunks(work::CHUNK).collect(), |items, _| {
            for item in items {
                match rustix::fs::unlinkat(self.root(), item.path(), AtFlags::empty()) {
                    // Or somebody removed it by hand.
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(self.gc_failed("remove garbage")(error.into())),
                }
            }
            Ok(())
        })
    }

    /// Adds up what dead transactions had written.
    fn abandoned_bytes(&self, transactions: &Transactions) -> Result<u64, GcError> {
        transactions
            .dead
            .iter()
            .try_fold(0, |sum: u64, (name, _held)| {
                let below = self.path().join("tmp").join(name);
                let bytes = usage::bytes_below(&below, usage::Counted::Alone);
                bytes.map(|bytes| sum.saturating_add(bytes))
            })
            .map_err(self.gc_failed("measure a dead transaction"))
    }

    /// Looks up the bytes of items.
    pub(crate) fn sized(&self, items: &[Item]) -> Vec<(Item, u64)> {
        let sized = Mutex::new(Vec::with_capacity(items.len()));
        let chunks = items.chunks(work::CHUNK).enumerate().collect();
        work::each_waiting(chunks, &|(number, items): (usize, &[Item])| {
            let chunk: Vec<_> = items
                .iter()
                .map(|item| (*item, self.size_of(*item)))
                .collect();
            let mut sized = sized.lock().unwrap_or_else(PoisonError::into_inner);
            sized.push((number, chunk));
        });
        let mut sized = sized.into_inner().unwrap_or_else(PoisonError::into_inner);
        sized.sort_unstable_by_key(|(number, _)| *number);
        sized.into_iter().flat_map(|(_, chunk)| chunk).collect()
    }

    /// Removes what an earlier version of this program condemned: it moved garbage here before it removed
    /// it.
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
        let tmp = match files::open_directory(self.root(), "tmp".as_ref()) {
            Ok(tmp) => tmp,
            // A dry run makes nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(transactions),
            Err(error) => return Err(failed()(error)),
        };
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

/// What a policy comes to.
struct Choice {
    forgotten: Vec<Forgotten>,
    /// See [`GcReport::too_much`].
    too_much: Option<u64>,
}

/// Decides which earlier images stay, marks those, and returns the others.
fn choose(
    marking: &mut Marking<'_>,
    refs: &[RefDocument],
    items: &[Item],
) -> Result<Choice, GcError> {
    let policy = marking.policy;
    let mut forgotten = Vec::new();
    // With the moment at which each was replaced.
    let mut staying: Vec<(i64, &RefDocument, usize)> = Vec::new();
    for document in refs {
        let replaced = std::iter::once(&document.target)
            .chain(&document.history)
            .map(|newer| newer.created);
        for (position, (target, replaced)) in document.history.iter().zip(replaced).enumerate() {
            let reason = if !target.items().all(|item| marking.store.has(&item)) {
                Some(Reason::Gone)
            } else if policy
                .keep
                .is_some_and(|keep| position + 1 >= keep.get() as usize)
            {
                Some(Reason::Count)
            } else if policy.replaced_before.is_some_and(|limit| replaced < limit) {
                Some(Reason::Age)
            } else {
                None
            };
            match reason {
                None => staying.push((replaced, document, position)),
                Some(reason) => forgotten.push(Forgotten::new(document, position, reason)),
            }
        }
    }
    let Some(max) = policy.max_bytes else {
        marking.images(staying.iter().map(|(_, it, at)| it.history[*at].root.image))?;
        for (_, document, position) in staying {
            let target = &document.history[position];
            marking.documents(target.manifest, target.config)?;
        }
        return Ok(Choice {
            forgotten,
            too_much: None,
        });
    };
    let sizes: HashMap<Item, u64> = marking.store.sized(items).into_iter().collect();
    let bytes_of = |kept: &HashSet<Item>| {
        kept.iter().fold(0, |sum: u64, item| {
            sum.saturating_add(sizes.get(item).copied().unwrap_or(0))
        })
    };
    let mut total = bytes_of(&marking.kept);
    let too_much = (total > max).then_some(total);
    // The newest first; the first one that does not fit takes all older ones with it, but for those that
    // something else keeps whole: to forget them frees nothing.
    staying.sort_by_key(|(replaced, ..)| std::cmp::Reverse(*replaced));
    let mut full = false;
    for (_, document, position) in staying {
        let target = &document.history[position];
        if target.items().all(|item| marking.kept.contains(&item)) {
            continue;
        }
        let mut more = Marking::new(marking.store, policy);
        more.image(target.root.image)?;
        more.documents(target.manifest, target.config)?;
        more.kept.retain(|item| !marking.kept.contains(item));
        let cost = bytes_of(&more.kept);
        let with = total.saturating_add(cost);
        if cost == 0 || (!full && with <= max) {
            total = with;
            marking.kept.extend(more.kept);
            continue;
        }
        full = true;
        forgotten.push(Forgotten::new(document, position, Reason::Size));
    }
    forgotten.sort_by(|one, other| (&one.name, one.back).cmp(&(&other.name, other.back)));
    Ok(Choice {
        forgotten,
        too_much,
    })
}

impl Forgotten {
    fn new(document: &RefDocument, position: usize, reason: Reason) -> Self {
        Self {
            name: document.name.clone(),
            back: position as u32 + 1,
            target: document.history[position].clone(),
            reason,
        }
    }
}

struct Marking<'a> {
    store: &'a Store,
    policy: GcPolicy,
    kept: HashSet<Item>,
}

impl<'a> Marking<'a> {
    fn new(store: &'a Store, policy: GcPolicy) -> Self {
        Self {
            store,
            policy,
            kept: HashSet::new(),
        }
    }

    /// Marks images and their objects, on all cores.
    fn images(&mut self, ids: impl IntoIterator<Item = ObjectId>) -> Result<(), GcError> {
        let fresh: Vec<ObjectId> = ids
            .into_iter()
            .filter(|id| self.kept.insert(Item::Image(*id)))
            .collect();
        let kept = Mutex::new(&mut self.kept);
        work::run(fresh, |id, _| {
            let tree = self.store.image_tree(&id).map_err(GcError::Read)?;
            let objects = objects_of(&tree);
            drop(tree);
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(objects.into_iter().map(Item::Object));
            Ok(())
        })
    }

    /// Marks every image, layer, manifest and config with what they name; returns how many images that are
    /// more.
    fn everything(&mut self, items: &[Item]) -> Result<u64, GcError> {
        let mut images = Vec::new();
        for item in items {
            match item {
                Item::Image(id) if !self.kept.contains(item) => images.push(*id),
                Item::Object(_) | Item::Image(_) => {}
                Item::Layer(diff_id) => self.layer(*diff_id)?,
                Item::Blob(_) => {
                    self.kept.insert(*item);
                }
            }
        }
        let count = images.len() as u64;
        self.images(images)?;
        Ok(count)
    }

    fn image(&mut self, id: ObjectId) -> Result<(), GcError> {
        self.images([id])
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
            let layer = Layer::decode(&table, &diff_id).map_err(|source| GcError::Layer {
                diff_id,
                source: Box::new(source),
            })?;
            self.kept
                .extend(layer.objects().map(|(id, _)| Item::Object(id)));
        }
        Ok(())
    }
}
