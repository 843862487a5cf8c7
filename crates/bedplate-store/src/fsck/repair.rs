//! Repair: what fsck found damaged or missing comes again from a source that has it.
//!
//! ```text
//! fsck ─ findings ─→ wanted items ─→ Source::bring ─→ tmp/<txn>/part-<n>   checked against the name …
//!                        ↑                            ─ syncfs ─ rename over the damaged file: the
//!                        └── objects that a repaired image or layer names     commit point of each
//! ```
//!
//! Invariants: a damaged file stays until its checked replacement is on the disk, and is replaced by one
//! rename; nothing that is whole is fetched; a source that lies or fails changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::io::{self, Read, Write as _};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bedplate_model::oci::Config;
use bedplate_model::{FileContent, ImageName, ObjectId, Sha256};
use bedplate_sys::lock::Lock;
use bedplate_sys::{durable, files, verity};
use sha2::Digest as _;

use super::{Finding, FsckError, FsckReport};
use crate::buffers::BUFFER;
use crate::erofs;
use crate::item::Item;
use crate::large::{self, LargeFile, Way};
use crate::layer::{self, Layer};
use crate::object::{objects_of, sized_objects_of};
use crate::refs::{Ref, RefTarget, RefsError, SetAside};
use crate::store::{ReadStoreError, Sealing, Store, whole_max};
use crate::transaction;
use crate::verity::Hasher;

/// Somewhere that may have what a store lacks.
pub trait Source {
    /// Returns the name that people know it by.
    fn name(&self) -> String;

    /// Returns what a name points at there, where the source has names.
    fn find_ref(&self, _name: &ImageName) -> Option<Ref> {
        None
    }

    /// Brings what it has of what the repair wants. What it does not have, it passes over.
    fn bring(&self, repair: &Repair<'_>) -> Result<(), SourceError>;
}

/// Why a source brought nothing more.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The store that is repaired cannot be written to: no other source helps.
    #[error(transparent)]
    Repair(#[from] RepairError),
    /// The source failed; another one may have more luck.
    #[error("the source failed")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why a store could not be repaired. What was repaired before stays so.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The store could not be checked.
    #[error(transparent)]
    Check(#[from] FsckError),
    /// The journal of names, or the file of one, could be neither used nor set aside.
    #[error(transparent)]
    Names(#[from] RefsError),
    /// The store could not be written to.
    #[error("cannot {attempt} in {}", path.display())]
    Write {
        /// The store.
        path: PathBuf,
        /// What was attempted.
        attempt: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// What a repair did.
#[derive(Debug, Default)]
pub struct RepairReport {
    /// What the check looked at.
    pub checked: FsckReport,
    /// What was brought back, with the name of its source.
    pub repaired: Vec<(Item, String)>,
    /// The journal of names, where it could not be read: set aside under this name.
    pub set_aside: Option<PathBuf>,
    /// The files of names that could not be read, and were set aside.
    pub names_set_aside: Vec<SetAside>,
    /// Names that a source had, with its name: given again.
    pub names_restored: Vec<(ImageName, String)>,
    /// What is still wrong.
    pub left: Vec<Finding>,
    /// Sources that failed, with the reason.
    pub failed: Vec<(String, Box<dyn std::error::Error + Send + Sync>)>,
}

/// A repair while it runs: what is wanted, and where replacements wait. Threads share it.
#[derive(Debug)]
pub struct Repair<'store> {
    store: &'store Store,
    /// The name of the directory below `tmp/`.
    name: String,
    directory: Lock,
    /// How long the wanted objects are that images name: a source may offer anything under a name.
    lengths: HashMap<ObjectId, u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    wanted: BTreeSet<Item>,
    /// Checked replacements, and the names of their files.
    staged: BTreeMap<Item, String>,
    parts: u64,
}

impl Finding {
    /// Returns what has to come again to set this right, where that would.
    pub fn wanted(&self) -> Option<Item> {
        match self {
            Self::Unreadable(error) => match error {
                ReadStoreError::Missing(item)
                | ReadStoreError::Read { item, .. }
                | ReadStoreError::Damaged { item, .. }
                | ReadStoreError::TooLarge { item, .. }
                | ReadStoreError::Image { item, .. } => Some(*item),
            },
            Self::SealedAsOther(item) | Self::NotAFile(item) => Some(*item),
            Self::Layer(diff_id, _) => Some(Item::Layer(*diff_id)),
            Self::Missing { missing, .. } | Self::Dangling { missing, .. } => Some(*missing),
            // The object as it should be: with the right bytes, it has the right length.
            Self::WrongSize { object, .. } => Some(Item::Object(*object)),
            Self::Ref(_)
            | Self::LostName(_)
            | Self::Stray(_)
            | Self::OvertakenJournal(_)
            | Self::Part(_) => None,
        }
    }
}

impl Store {
    /// Checks everything, and brings back from the sources what is damaged or missing.
    pub fn repair(&self, sources: &[&dyn Source]) -> Result<RepairReport, RepairError> {
        self.prepare_parts().map_err(|source| RepairError::Write {
            path: self.path().to_owned(),
            attempt: "repair anything",
            source,
        })?;
        let set_journal_aside = self.set_journal_aside()?;
        let now_aside = self.set_refs_aside()?;
        let (named_again, lost): (Vec<_>, Vec<_>) = self
            .names_set_aside()?
            .into_iter()
            .partition(|file| file.is_named_again);
        // Who gave the name again was told what it pointed at.
        self.forget_set_aside(&named_again)?;
        let mut report = RepairReport {
            set_aside: set_journal_aside,
            names_set_aside: lost
                .iter()
                .chain(&named_again)
                .filter(|file| now_aside.contains(&file.path))
                .cloned()
                .collect(),
            ..RepairReport::default()
        };
        report.checked = self.fsck(&mut |finding| report.left.push(finding))?;
        let mut wanted: BTreeSet<Item> = report.left.iter().filter_map(Finding::wanted).collect();
        let offered = offered_names(&lost, sources);
        let targets = offered.iter().flat_map(|(known, _)| known.target.items());
        wanted.extend(targets.filter(|item| !self.has(item)));
        let mut repaired = BTreeSet::new();
        // What comes back may name more that is missing, or help to make again what is: each round looks
        // for that alone.
        while !wanted.is_empty() {
            let repair = Repair::begin(self, wanted)?;
            for source in [&OwnLayers as &dyn Source].iter().chain(sources) {
                if repair.is_done() {
                    break;
                }
                let before = repair.staged();
                match source.bring(&repair) {
                    Ok(()) => {}
                    Err(SourceError::Repair(error)) => return Err(error),
                    Err(SourceError::Source(error)) => report.failed.push((source.name(), error)),
                }
                let brought = repair.staged();
                report.repaired.extend(
                    brought
                        .difference(&before)
                        .map(|item| (*item, source.name())),
                );
            }
            wanted = repair.wanted();
            let brought = repair.finish()?;
            if brought.is_empty() {
                break;
            }
            repaired.extend(&brought);
            for item in brought {
                wanted.extend(self.missing_below(item)?);
            }
        }
        report.left.retain(|finding| {
            finding
                .wanted()
                .is_none_or(|item| !repaired.contains(&item))
        });
        // What a repaired image or layer names, and nobody had, was not known before.
        for by in &repaired {
            for missing in self.missing_below(*by)? {
                report.left.push(Finding::Missing { by: *by, missing });
            }
        }
        self.restore_names(offered, &lost, &mut report)?;
        Ok(report)
    }

    /// Gives names again that a source has, where their images are whole.
    fn restore_names(
        &self,
        offered: Vec<(Ref, String)>,
        lost: &[SetAside],
        report: &mut RepairReport,
    ) -> Result<(), RepairError> {
        let mut whole = Vec::new();
        let mut from: BTreeMap<ImageName, String> = BTreeMap::new();
        for (known, source) in offered {
            let image = known.target.root.image;
            let missing = self.image_tree(&image).map(|tree| {
                let mut objects = objects_of(&tree).into_iter();
                objects.any(|id| !self.has(&Item::Object(id)))
            });
            if let Ok(false) = missing {
                from.insert(known.name.clone(), source);
                whole.push(known);
            }
        }
        let restored = self.restore_refs(whole)?;
        // A file that knows of more images than the source is kept, and they with it.
        let is_over = |file: &&SetAside| {
            let name = restored
                .iter()
                .find(|known| Some(&known.name) == file.name.as_ref());
            name.is_some_and(|known| {
                let known: HashSet<_> = known.images().map(|target| target.root).collect();
                file.roots.iter().all(|root| known.contains(root))
            })
        };
        let over: Vec<SetAside> = lost.iter().filter(is_over).cloned().collect();
        self.forget_set_aside(&over)?;
        report.left.retain(|finding| match finding {
            Finding::LostName(file) => !restored
                .iter()
                .any(|known| Some(&known.name) == file.name.as_ref()),
            _ => true,
        });
        for Ref { name, .. } in restored {
            let source = from.remove(&name).unwrap_or_default();
            report.names_restored.push((name, source));
        }
        Ok(())
    }

    /// Returns what a repaired item names and the store does not have.
    fn missing_below(&self, item: Item) -> Result<Vec<Item>, RepairError> {
        let unreadable = |error: ReadStoreError| RepairError::Write {
            path: self.path().to_owned(),
            attempt: "read what was repaired",
            source: io::Error::other(error),
        };
        let objects: Vec<ObjectId> = match item {
            Item::Image(id) => objects_of(&self.image_tree(&id).map_err(unreadable)?),
            Item::Layer(diff_id) => match self.layer(&diff_id).map_err(unreadable)? {
                Some(table) => Layer::decode(&table, &diff_id)
                    .map(|layer| layer.objects().map(|(id, _)| id).collect())
                    .unwrap_or_default(),
                None => Vec::new(),
            },
            Item::Object(_) | Item::Blob(_) => Vec::new(),
        };
        let objects: HashSet<ObjectId> = objects.into_iter().collect();
        let objects = objects.into_iter().map(Item::Object);
        Ok(objects.filter(|item| !self.has(item)).collect())
    }
}

impl<'store> Repair<'store> {
    fn begin(store: &'store Store, wanted: BTreeSet<Item>) -> Result<Self, RepairError> {
        let (name, directory) =
            transaction::make_directory(store).map_err(|source| RepairError::Write {
                path: store.path().to_owned(),
                attempt: "start a repair",
                source,
            })?;
        Ok(Self {
            store,
            name,
            directory,
            lengths: lengths_of(store, &wanted),
            state: Mutex::new(State {
                wanted,
                ..State::default()
            }),
        })
    }

    /// Returns the store that is repaired: what is whole in it may be read.
    pub fn store(&self) -> &'store Store {
        self.store
    }

    /// Returns everything that is still wanted.
    pub fn wanted(&self) -> BTreeSet<Item> {
        self.state().wanted.clone()
    }

    /// Returns whether something is still wanted.
    pub fn wants(&self, item: &Item) -> bool {
        self.state().wanted.contains(item)
    }

    /// Returns whether nothing more is wanted.
    pub fn is_done(&self) -> bool {
        self.state().wanted.is_empty()
    }

    /// Takes the content of an object, image, manifest or config; returns whether it is what its name
    /// says. A source that fails in the middle has not got it.
    pub fn put(&self, item: Item, content: &mut dyn Read) -> Result<bool, RepairError> {
        if !self.wants(&item) || matches!(item, Item::Layer(_)) {
            return Ok(false);
        }
        let (name, file) = self.new_part()?;
        let mut check = Check::of(&item);
        let mut buffer = vec![0; BUFFER];
        let mut length = 0_u64;
        let max = match item {
            Item::Object(id) => self.lengths.get(&id).copied().unwrap_or(u64::MAX),
            Item::Image(_) | Item::Layer(_) | Item::Blob(_) => whole_max(item),
        };
        let mut content = content.take(max.saturating_add(1));
        loop {
            let count = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Ok(false), // the part goes with the directory
            };
            check.update(&buffer[..count]);
            large::append(&file, length, &buffer[..count])
                .map_err(self.failed("write a replacement"))?;
            length = length.saturating_add(count as u64);
        }
        drop(file); // nobody may hold it open for writing when it is sealed
        if length > max || !check.is(&item) {
            return Ok(false);
        }
        self.seal(&item, &name)?;
        self.stage(item, name);
        Ok(true)
    }

    /// Takes a content whose name is not known yet, and keeps it where it is wanted; returns its name and
    /// its length, of which at most one byte more than `size` is read.
    pub fn put_unnamed(
        &self,
        content: &mut dyn Read,
        size: u64,
    ) -> Result<(ObjectId, u64), RepairError> {
        let (name, file) = self.new_part()?;
        let failed = || self.failed("write a replacement");
        let algorithm = self.store.algorithm();
        let nothing = crate::verity::digest(algorithm, &[]);
        let Ok(mut out) = LargeFile::new(algorithm, &file, size, Way::Cached) else {
            return Ok((nothing, 0)); // longer than a file can be here: nobody wants it
        };
        let mut limited = content.take(size.saturating_add(1));
        let mut buffer = vec![0; BUFFER];
        let mut found = 0_u64;
        loop {
            match limited.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    out.write(&buffer[..count]).map_err(failed())?;
                    found = found.saturating_add(count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A source that fails in the middle has not got it; the part goes with the directory.
                Err(_) => return Ok((nothing, 0)),
            }
        }
        let id = out.finish().map_err(failed())?;
        drop(file);
        let item = Item::Object(id);
        if found == size && self.wants(&item) {
            self.seal(&item, &name)?;
            self.stage(item, name);
        } else {
            let flags = rustix::fs::AtFlags::empty();
            // What stays goes with the directory.
            let _ = rustix::fs::unlinkat(&self.directory, name.as_str(), flags);
        }
        Ok((id, found))
    }

    /// Takes the table of a layer. The caller has checked that its tar has this digest.
    pub fn put_layer(&self, diff_id: Sha256, layer: &Layer) -> Result<(), RepairError> {
        let item = Item::Layer(diff_id);
        if self.wants(&item) {
            let (name, file) = self.new_part()?;
            (&file)
                .write_all(&layer.encode(&diff_id))
                .map_err(self.failed("write a replacement"))?;
            self.stage(item, name);
        }
        Ok(())
    }

    /// Puts the replacements into their places; returns what was repaired.
    fn finish(self) -> Result<BTreeSet<Item>, RepairError> {
        let staged = std::mem::take(&mut self.state().staged);
        if staged.is_empty() {
            return Ok(BTreeSet::new());
        }
        let sync = || {
            durable::sync_filesystem(&self.directory).map_err(self.failed("make a repair durable"))
        };
        sync()?; // 1. every byte is on the disk …
        let naming = self
            .store
            .lock_for_naming()
            .map_err(self.failed("take the lock"))?;
        let names_others = |item: &Item| matches!(item, Item::Image(_) | Item::Layer(_));
        for later in [false, true] {
            for (item, name) in &staged {
                if names_others(item) == later {
                    self.store
                        .replace_item((&self.directory, name), item) // 2. … before it takes the place of what is damaged.
                        .map_err(self.failed("replace what is damaged"))?;
                }
            }
        }
        sync()?;
        drop(naming);
        Ok(staged.into_keys().collect())
    }

    fn seal(&self, item: &Item, name: &str) -> Result<(), RepairError> {
        let Some(wanted) = item.sealed_as() else {
            return Ok(());
        };
        if self.store.sealing() == Sealing::Unsealed {
            return Ok(());
        }
        let seal = || -> io::Result<()> {
            let file = files::open_file(&self.directory, OsStr::new(name))?;
            verity::enable(&file, wanted.algorithm().kernel_number())
        };
        seal().map_err(self.failed("seal a replacement"))
    }

    fn stage(&self, item: Item, name: String) {
        let mut state = self.state();
        state.wanted.remove(&item);
        state.staged.insert(item, name);
    }

    fn staged(&self) -> BTreeSet<Item> {
        self.state().staged.keys().copied().collect()
    }

    fn new_part(&self) -> Result<(String, std::fs::File), RepairError> {
        let mut state = self.state();
        let name = format!("part-{}", state.parts);
        state.parts += 1;
        drop(state);
        let file = files::create_file(&self.directory, name.as_ref(), transaction::FILE_MODE)
            .map_err(self.failed("write a replacement"))?;
        Ok((name, file))
    }

    fn failed(&self, attempt: &'static str) -> impl FnOnce(io::Error) -> RepairError {
        let path = self.store.path().to_owned();
        move |source| RepairError::Write {
            path,
            attempt,
            source,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked while it held this cannot have left half an entry.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next gc, once the lock is gone.
        if let Ok(tmp) = files::open_directory(self.store.root(), "tmp".as_ref()) {
            let _ = files::remove_tree(&tmp, self.name.as_ref());
        }
    }
}

/// Asks the sources for names that are lost. What a source has another image for than the damaged file
/// names is not what was lost.
fn offered_names(lost: &[SetAside], sources: &[&dyn Source]) -> Vec<(Ref, String)> {
    let mut offered: BTreeMap<ImageName, (Ref, String)> = BTreeMap::new();
    for file in lost {
        let Some(name) = &file.name else { continue };
        let fits = |known: &Ref| {
            let first = file.roots.first();
            first.is_none_or(|root| known.images().any(|target| target.root == *root))
        };
        let known = sources.iter().find_map(|source| {
            let known = source.find_ref(name).filter(fits)?;
            Some((known, source.name()))
        });
        if let Some(known) = known {
            offered.entry(name.clone()).or_insert(known);
        }
    }
    offered.into_values().collect()
}

/// Reads the lengths of wanted objects from the images that can be read.
fn lengths_of(store: &Store, wanted: &BTreeSet<Item>) -> HashMap<ObjectId, u64> {
    let mut lengths = HashMap::new();
    if !wanted.iter().any(|item| matches!(item, Item::Object(_))) {
        return lengths;
    }
    for item in store.items().unwrap_or_default() {
        let Item::Image(id) = item else { continue };
        let Ok(tree) = store.image_tree(&id) else {
            continue; // it is wanted itself
        };
        let named = sized_objects_of(&tree).into_iter();
        lengths.extend(named.filter(|(id, _)| wanted.contains(&Item::Object(*id))));
    }
    lengths
}

/// Computes the digest that an item is named by.
enum Check {
    Verity(Box<Hasher>),
    Sha256(sha2::Sha256),
}

impl Check {
    fn of(item: &Item) -> Self {
        match item {
            Item::Object(id) | Item::Image(id) => {
                Self::Verity(Box::new(Hasher::new(id.algorithm())))
            }
            Item::Layer(_) | Item::Blob(_) => Self::Sha256(sha2::Sha256::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Verity(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
        }
    }

    fn is(self, item: &Item) -> bool {
        match (self, item) {
            (Self::Verity(hasher), Item::Object(id) | Item::Image(id)) => hasher.finish() == *id,
            (Self::Sha256(hasher), Item::Layer(digest) | Item::Blob(digest)) => {
                Sha256(hasher.finalize().into()) == *digest
            }
            (Self::Verity(_) | Self::Sha256(_), _) => false,
        }
    }
}

/// The store's own layers, as a source of images: what a tree was made of once makes it again.
#[derive(Debug)]
struct OwnLayers;

impl Source for OwnLayers {
    fn name(&self) -> String {
        "its layers".to_owned()
    }

    fn bring(&self, repair: &Repair<'_>) -> Result<(), SourceError> {
        if !repair
            .wanted()
            .iter()
            .any(|item| matches!(item, Item::Image(_)))
        {
            return Ok(());
        }
        let refs = match repair.store.each_ref() {
            Ok(refs) => refs,
            Err(error) => return Err(SourceError::Source(error.into())),
        };
        // A ref that cannot be read is a finding of its own.
        for known in refs.into_iter().flatten().map(Ref::from) {
            for target in known.images() {
                let item = Item::Image(target.root.image);
                if repair.wants(&item)
                    && let Some(image) = image_of_layers(repair.store, target)
                {
                    repair.put(item, &mut &image[..])?;
                }
            }
        }
        Ok(())
    }
}

/// Makes an image of its layers again, where the store has them all. Who uses it checks its digest.
fn image_of_layers(store: &Store, target: &RefTarget) -> Option<Vec<u8>> {
    let config = store.blob(&target.config?).ok()?;
    let config: Config = serde_json::from_slice(&config).ok()?;
    let layers: Vec<Layer> = config
        .rootfs
        .diff_ids
        .iter()
        .map(|diff_id| Layer::decode(&store.layer(diff_id).ok()??, diff_id).ok())
        .collect::<Option<_>>()?;
    let tree = layer::flatten(&layers, target.root.rules).ok()?;
    let options = erofs::Options {
        version: target.root.erofs,
        hard_links: erofs::HardLinks::Keep,
    };
    let mut image = Vec::new();
    erofs::write(&tree, &options, &mut image).ok()?;
    Some(image)
}

/// Another store, as a source.
#[derive(Debug)]
pub struct StoreSource {
    store: Store,
}

impl StoreSource {
    /// Makes a source of a store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Returns a layer whose tar has the right digest, where the store has it whole.
    fn layer(&self, diff_id: &Sha256) -> Option<Layer> {
        let table = self.store.layer(diff_id).ok()??;
        let layer = Layer::decode(&table, diff_id).ok()?;
        // The table's name is not the digest of the table: only the tar that it stands for tells.
        let mut hasher = TarHasher(sha2::Sha256::new());
        let open = |content: &FileContent| -> io::Result<Box<dyn Read + '_>> {
            Ok(self.store.read_content(content).map_err(io::Error::other)?)
        };
        layer::rewrite_tar(&layer, &open, &mut hasher).ok()?;
        (Sha256(hasher.0.finalize().into()) == *diff_id).then_some(layer)
    }
}

struct TarHasher(sha2::Sha256);

impl io::Write for TarHasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for StoreSource {
    fn name(&self) -> String {
        self.store.path().display().to_string()
    }

    fn find_ref(&self, name: &ImageName) -> Option<Ref> {
        self.store.find_ref(name).ok()?
    }

    fn bring(&self, repair: &Repair<'_>) -> Result<(), SourceError> {
        for item in repair.wanted() {
            if let Item::Layer(diff_id) = item {
                if let Some(layer) = self.layer(&diff_id) {
                    repair.put_layer(diff_id, &layer)?;
                }
                continue;
            }
            match self.store.open_item(item) {
                Ok(mut file) => {
                    repair.put(item, &mut file)?;
                }
                Err(ReadStoreError::Missing(_)) => {}
                Err(error) => return Err(SourceError::Source(error.into())),
            }
        }
        Ok(())
    }
}
