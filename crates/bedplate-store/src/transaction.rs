//! A transaction: everything that comes into the store comes in here, all of it or nothing.
//!
//! ```text
//! put_*   bytes → tmp/<txn>/object-<hex>       what is there already, and as long: link(2) into tmp/<txn>/
//! commit  1 the ref's document → tmp/<txn>/
//!         2 syncfs                             every byte is on the disk …
//!         3 lock (shared)                      … gc keeps out from here on …
//!         4 rename into place, link back       … before it gets its name …
//!         5 syncfs                             … and every name is on the disk …
//!         6 rename the ref (or, of several refs, the journal), fsync: the commit point
//!         7 unlock, remove tmp/<txn>
//! drop    remove tmp/<txn>: nothing happened
//! ```
//!
//! What is there already is trusted by its kind and length; what cannot be right counts as absent, and is
//! replaced in step 4.
//!
//! Invariants: what the transaction holds has a link in its directory until commit ends, so no gc can
//! take it away; the directory is held by a flock, so what a crash left behind can be told from what
//! is alive.

mod error;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bedplate_model::tree::INLINE_MAX;
use bedplate_model::{FileContent, ImageName, ObjectId, RootDigest, RuleSet, Sha256, Tree};
use bedplate_sys::lock::Lock;
use bedplate_sys::{durable, files, verity};

use crate::buffers::{BUFFER, Buffers};
use crate::erofs;
use crate::extents::{self, ExtentError};
use crate::item::Item;
use crate::large::{self, LargeFile, Way};
use crate::layer::{Layer, SparseMap};
use crate::object::sized_objects_of;
use crate::place::Standing;
use crate::refs::{self, RefChanges, RefTarget};
use crate::scan::ContentSink;
use crate::store::{BLOB_MAX, EROFS_VERSION, Sealing, Store, sha256};

pub use error::{BeginError, CommitError, PutError};

/// Contents are read-only from their first moment.
pub(crate) const FILE_MODE: u32 = 0o400;
/// How often a directory for the transaction is tried; each failure means that a gc was faster.
const BEGIN_TRIES: u32 = 1000;
/// Files of at least this size share their blocks with the source where the file system can.
const CLONE_MIN: u64 = BUFFER as u64;

/// Gives every transaction of this process its own name.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A transaction. Threads share it; [`Transaction::commit`] ends it.
#[derive(Debug)]
pub struct Transaction<'store> {
    store: &'store Store,
    name: String,
    /// The directory `tmp/<txn>`, open since before the first write and locked until the end.
    directory: Lock,
    staged: Mutex<Staged>,
    buffers: Buffers,
    /// Whether the store had no image at the beginning: then nothing is worth looking for.
    fresh: bool,
    /// Whether sharing blocks with the source is worth a try.
    clones: AtomicBool,
    /// A write failed: what others of us believe to be staged may not be.
    broken: AtomicBool,
    parts: AtomicU64,
}

#[derive(Debug, Default)]
struct Staged {
    items: HashMap<Item, Origin>,
    refs: Vec<(ImageName, Option<RefTarget>)>,
}

/// How something came into the transaction's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Written by this transaction.
    New,
    /// Linked from its place in the store, with everything that it names.
    Held,
    /// An image that a ref names: linked, but not with its objects, which the image itself keeps.
    Named,
}

impl<'store> Transaction<'store> {
    pub(crate) fn begin(store: &'store Store) -> Result<Self, BeginError> {
        let failed = |source| BeginError {
            path: store.path().to_owned(),
            source,
        };
        let (name, directory) = make_directory(store).map_err(failed)?;
        let images = files::open_root(&store.path().join("images")).map_err(failed)?;
        let transaction = Self {
            store,
            name,
            directory,
            staged: Mutex::default(),
            buffers: Buffers::default(),
            fresh: files::list(images).map_err(failed)?.is_empty(),
            clones: AtomicBool::new(true),
            broken: AtomicBool::new(false),
            parts: AtomicU64::new(0),
        };
        Ok(transaction)
    }

    /// Returns the store that this transaction is for.
    pub fn store(&self) -> &'store Store {
        self.store
    }

    /// Stores the content of a file: exactly `size` bytes must come.
    pub fn put_object(&self, content: &mut dyn Read, size: u64) -> Result<FileContent, PutError> {
        if size < BUFFER as u64 {
            let mut buffer = self.buffers.take();
            // One byte more than should come, so that a longer source is noticed.
            let found = fill(content, &mut buffer[..=size as usize])?;
            if found as u64 != size {
                let found = found as u64;
                return Err(PutError::WrongSize {
                    wanted: size,
                    found,
                });
            }
            return self.put_bytes(&buffer[..found]);
        }
        let part = self.new_part("an object")?;
        // Past the page cache, unless it is to be sealed, for which the kernel would read it from the disk
        // again.
        let way = match self.store.sealing() {
            Sealing::Unsealed => Way::Direct,
            Sealing::Sealed => Way::Cached,
        };
        let mut out = self.large_file(&part.file, size, way)?;
        let mut buffer = self.buffers.take();
        let mut found = 0_u64;
        loop {
            let count = fill(content, &mut buffer)?;
            found = found.saturating_add(count as u64);
            if count == 0 || found > size {
                break;
            }
            out.write(&buffer[..count])
                .map_err(|error| self.write_error("an object", error))?;
        }
        if found != size {
            return Err(PutError::WrongSize {
                wanted: size,
                found,
            });
        }
        let id = out
            .finish()
            .map_err(|error| self.write_error("an object", error))?;
        self.finish_part(part, Item::Object(id))?;
        Ok(FileContent::Object { id, size })
    }

    /// Stores a file with holes, of which `data` gives the segments that the map names, one behind the other.
    pub fn put_sparse(
        &self,
        data: &mut dyn Read,
        map: &SparseMap,
    ) -> Result<FileContent, PutError> {
        let size = map.size();
        if size < BUFFER as u64 {
            return self.put_object(&mut map.expand(data), size);
        }
        let part = self.new_part("an object")?;
        let mut out = self.large_file(&part.file, size, Way::Cached)?;
        let mut buffer = self.buffers.take();
        let mut position = 0_u64;
        for segment in map.segments() {
            out.zeros(segment.start - position);
            position = segment.start;
            while position < segment.end {
                let wanted = (segment.end - position).min(BUFFER as u64) as usize;
                let count = fill(data, &mut buffer[..wanted])?;
                if count == 0 {
                    return Err(PutError::WrongSize {
                        wanted: size,
                        found: position,
                    });
                }
                out.write(&buffer[..count])
                    .map_err(|error| self.write_error("an object", error))?;
                position += count as u64;
            }
        }
        out.zeros(size - position);
        let id = out
            .finish()
            .map_err(|error| self.write_error("an object", error))?;
        self.finish_part(part, Item::Object(id))?;
        Ok(FileContent::Object { id, size })
    }

    /// Stores the content of an open file, which must have `size` bytes.
    ///
    /// Large files that the store has already are not written again, and where the file system can
    /// share blocks, none are copied. Holes stay holes.
    pub fn put_file(&self, file: &File, size: u64) -> Result<FileContent, PutError> {
        if size >= CLONE_MIN {
            if let Some(content) = self.put_clone(file, size)? {
                return Ok(content);
            }
            if !self.fresh
                && let Some(content) = self.find_content(file, size)?
            {
                return Ok(content);
            }
            if extents::may_have_holes(file, size) {
                return self.put_holes(file, size);
            }
            (&*file).rewind().map_err(PutError::Read)?; // looking for it may have moved
        }
        self.put_object(&mut &*file, size)
    }

    /// Stores some bytes as the content of a file.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<FileContent, PutError> {
        if bytes.len() <= INLINE_MAX {
            return Ok(FileContent::Inline(bytes.into()));
        }
        let id = crate::verity::digest(self.store.algorithm(), bytes);
        self.put_item(Item::Object(id), bytes)?;
        Ok(FileContent::Object {
            id,
            size: bytes.len() as u64,
        })
    }

    /// Stores a tree as an image. Every object that it names must be in the transaction or the store.
    pub fn put_image(&self, tree: &Tree, rules: RuleSet) -> Result<RootDigest, PutError> {
        let objects = sized_objects_of(tree);
        let wanted = self.store.algorithm();
        if let Some((id, _)) = objects.iter().find(|(id, _)| id.algorithm() != wanted) {
            return Err(PutError::Algorithm { id: *id, wanted });
        }
        let all_staged = objects.iter().all(|(id, _)| self.has(Item::Object(*id)));

        let part = self.new_part("an image")?;
        let options = erofs::Options {
            version: EROFS_VERSION,
            hard_links: erofs::HardLinks::Keep,
        };
        let mut out = BufWriter::with_capacity(BUFFER, &part.file);
        let written = erofs::write(tree, &options, &mut out).map_err(PutError::Image)?;
        out.flush()
            .map_err(|error| self.write_error("an image", error))?;
        drop(out);
        let item = Item::Image(written.id);
        let size = self.part_size(&part)?;
        // An image that is in its place has all its objects, and keeps them: where not all of them are
        // held already, that is enough.
        if all_staged
            || self.fresh
            || self.has(item)
            || self.hold(item, Origin::Named, Some(size))? != Standing::Fit
        {
            self.hold_objects(objects)?;
            self.finish_part(part, item)?;
        }
        Ok(RootDigest {
            rules,
            erofs: written.version,
            image: written.id,
        })
    }

    /// Stores a manifest or config as it was received.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Sha256, PutError> {
        if bytes.len() as u64 > BLOB_MAX {
            return Err(PutError::BlobTooLarge(bytes.len() as u64));
        }
        let digest = sha256(bytes);
        self.put_item(Item::Blob(digest), bytes)?;
        Ok(digest)
    }

    /// Stores the table of a layer, whose objects must be in the transaction or the store.
    ///
    /// They are held as those of an image are: a table in the store has all its objects, too.
    pub fn put_layer(&self, diff_id: Sha256, table: &[u8]) -> Result<(), PutError> {
        let layer = Layer::decode(table, &diff_id).map_err(|source| PutError::Layer {
            diff_id,
            source: Box::new(source),
        })?;
        self.hold_objects(layer.objects())?;
        self.put_item(Item::Layer(diff_id), table)
    }

    /// Keeps objects of these lengths that the store has from garbage collection until this transaction
    /// ends.
    pub fn hold_objects(
        &self,
        objects: impl IntoIterator<Item = (ObjectId, u64)>,
    ) -> Result<(), PutError> {
        objects
            .into_iter()
            .try_for_each(|(id, size)| self.need(Item::Object(id), Origin::Held, Some(size)))
    }

    /// Requires a manifest or config of this length for a ref that is set later.
    pub fn need_blob(&self, digest: Sha256, size: u64) -> Result<(), PutError> {
        self.need(Item::Blob(digest), Origin::Named, Some(size))
    }

    /// Takes what must be in the transaction or the store.
    fn need(&self, item: Item, origin: Origin, size: Option<u64>) -> Result<(), PutError> {
        if self.has(item) {
            return Ok(());
        }
        match self.hold(item, origin, size)? {
            Standing::Fit => Ok(()),
            Standing::Nothing => Err(PutError::Missing(item)),
            Standing::Unfit(source) => Err(PutError::Damaged {
                item,
                path: self.store.item_path(&item),
                source,
            }),
        }
    }

    /// Sets a ref when the transaction is committed. What it names must be in the transaction or the
    /// store.
    pub fn set_ref(&self, name: &ImageName, target: RefTarget) -> Result<(), PutError> {
        let blobs = [target.manifest, target.config].into_iter().flatten();
        let named = [Item::Image(target.root.image)]
            .into_iter()
            .chain(blobs.map(Item::Blob));
        for item in named {
            self.need(item, Origin::Named, None)?;
        }
        self.staged().refs.push((refs::key(name), Some(target)));
        Ok(())
    }

    /// Removes a ref when the transaction is committed; one that is not there is fine.
    pub fn remove_ref(&self, name: &ImageName) {
        self.staged().refs.push((refs::key(name), None));
    }

    /// Makes everything durable, then visible. The steps are those of the module's drawing.
    pub fn commit(self) -> Result<(), CommitError> {
        if self.broken.load(Ordering::Acquire) {
            return Err(CommitError::Broken(self.store.path().to_owned()));
        }
        let failed = |attempt| {
            move |source| CommitError::Write {
                path: self.store.path().to_owned(),
                attempt,
                source,
            }
        };
        let staged = std::mem::take(&mut *self.staged());
        let any_new = staged.items.values().any(|origin| *origin == Origin::New);
        let any_linked = staged.items.values().any(|origin| *origin != Origin::Named);

        // 1. The only ref's document, beside everything else that was written.
        let mut changes = RefChanges::new(staged.refs);
        changes.prepare(self.store, self.directory.as_fd())?;
        // 2. Every byte is on the disk.
        if any_new {
            durable::sync_filesystem(&self.directory)
                .map_err(failed("the disk reports an error"))?;
        }
        // 3. From here to the refs, gc keeps out.
        let naming = self
            .store
            .lock_for_naming()
            .map_err(failed("cannot lock the store"))?;
        // 4. Names: what they lead to is on the disk already.
        self.place(&staged.items)?;
        // 5. The names are on the disk, those that a concurrent transaction gave included.
        if any_linked {
            durable::sync_filesystem(&self.directory)
                .map_err(failed("the disk reports an error"))?;
        }
        // 6. The commit point: the rename of the ref, or of the journal of several refs.
        changes.commit(self.store, self.directory.as_fd(), any_new || any_linked)?;
        // 7. Done; dropping removes the directory.
        drop(naming);
        Ok(())
    }

    /// Gives every item its name, or gives it back where a gc took it.
    ///
    /// Objects come before what names them: a process that is killed in between leaves no image without
    /// its objects, and journalling file systems keep the order of renames across a power cut.
    fn place(&self, items: &HashMap<Item, Origin>) -> Result<(), CommitError> {
        let names_others = |item: &Item| match item {
            Item::Object(_) | Item::Blob(_) => false,
            Item::Image(_) | Item::Layer(_) => true,
        };
        let (later, first): (Vec<_>, Vec<_>) =
            items.iter().partition(|(item, _)| names_others(item));
        for (item, origin) in first.into_iter().chain(later) {
            let (name, to) = (item.flat_name(), item.path());
            let from = (&self.directory, OsStr::new(&name));
            let to = (self.store.root(), OsStr::new(&to));
            let outcome = match origin {
                Origin::New => match files::rename_if_free(from, to) {
                    // Somebody stored the same bytes first, or what is there was damaged before.
                    Ok(false) => self.store.replace_misfit((&self.directory, &name), item),
                    other => other.map(drop),
                },
                Origin::Held => files::link(from, to).map(drop),
                // An image that is in its place has all its objects; one that is not may not.
                Origin::Named if self.store.has(item) => Ok(()),
                Origin::Named => return Err(CommitError::Collected(*item)),
            };
            outcome.map_err(|source| CommitError::Write {
                path: self.store.path().to_owned(),
                attempt: "cannot give an object its name",
                source,
            })?;
        }
        Ok(())
    }

    /// Stores bytes under their digest, unless they are there.
    fn put_item(&self, item: Item, bytes: &[u8]) -> Result<(), PutError> {
        if !self.claim(item, bytes.len() as u64)? {
            return Ok(());
        }
        let name = item.flat_name();
        let write = || -> io::Result<()> {
            let file = files::create_file(&self.directory, name.as_ref(), FILE_MODE)?;
            large::append(&file, 0, bytes)
        };
        write()
            .map_err(|error| self.write_error(&item.to_string(), error))
            .and_then(|()| self.seal(item, &name))
            .inspect_err(|_| self.broken.store(true, Ordering::Release))
    }

    /// Returns whether the caller has to write the item: it is not here, nor in the store as a file of this
    /// length, and nobody else of this transaction is at it.
    fn claim(&self, item: Item, size: u64) -> Result<bool, PutError> {
        let mut staged = self.staged();
        match staged.items.get_mut(&item) {
            // Now its objects are held, too.
            Some(origin @ Origin::Named) => *origin = Origin::Held,
            Some(Origin::New | Origin::Held) => {}
            None => {
                drop(staged);
                return self.claim_missing(item, size);
            }
        }
        Ok(false)
    }

    fn claim_missing(&self, item: Item, size: u64) -> Result<bool, PutError> {
        if !self.fresh && self.hold(item, Origin::Held, Some(size))? == Standing::Fit {
            return Ok(false);
        }
        let mut staged = self.staged();
        if staged.items.contains_key(&item) {
            return Ok(false);
        }
        staged.items.insert(item, Origin::New);
        Ok(true)
    }

    /// Takes an item of the store into the transaction, where a file of its length stands in its place.
    ///
    /// What fits stays so: it is replaced by nothing but the same, and removed by nobody but a gc.
    fn hold(&self, item: Item, origin: Origin, size: Option<u64>) -> Result<Standing, PutError> {
        let failed = |error| self.write_error(&item.to_string(), error);
        let standing = self.store.standing(&item, size).map_err(failed)?;
        if standing != Standing::Fit {
            return Ok(standing);
        }
        let (from, to) = (item.path(), item.flat_name());
        match files::link(
            (self.store.root(), from.as_ref()),
            (&self.directory, to.as_ref()),
        ) {
            // `false`: another thread was faster, with the same.
            Ok(_) => {
                self.staged().items.entry(item).or_insert(origin);
                Ok(Standing::Fit)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Standing::Nothing),
            Err(error) => Err(failed(error)),
        }
    }

    fn has(&self, item: Item) -> bool {
        self.staged().items.contains_key(&item)
    }

    /// Hashes a file, and returns its content where the transaction or the store has it.
    fn find_content(&self, file: &File, size: u64) -> Result<Option<FileContent>, PutError> {
        let (id, found) = extents::digest(self.store.algorithm(), file).map_err(PutError::Read)?;
        if found != size {
            return Err(PutError::WrongSize {
                wanted: size,
                found,
            });
        }
        let item = Item::Object(id);
        if self.has(item) || self.hold(item, Origin::Held, Some(size))? == Standing::Fit {
            return Ok(Some(FileContent::Object { id, size }));
        }
        Ok(None)
    }

    /// Stores a file with holes: they are neither read nor written.
    fn put_holes(&self, file: &File, size: u64) -> Result<FileContent, PutError> {
        let part = self.new_part("an object")?;
        let (id, found) =
            extents::copy(self.store.algorithm(), file, size, &part.file).map_err(|error| {
                match error {
                    ExtentError::Read(error) => PutError::Read(error),
                    ExtentError::Write(error) => self.write_error("an object", error),
                }
            })?;
        if found != size {
            return Err(PutError::WrongSize {
                wanted: size,
                found,
            });
        }
        self.finish_part(part, Item::Object(id))?;
        Ok(FileContent::Object { id, size })
    }

    /// Stores a file by sharing its blocks, where the file system can.
    fn put_clone(&self, file: &File, size: u64) -> Result<Option<FileContent>, PutError> {
        if !self.clones.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let part = self.new_part("an object")?;
        let cloned = files::clone_file(file, &part.file)
            .map_err(|error| self.write_error("an object", error))?;
        if !cloned {
            self.clones.store(false, Ordering::Relaxed);
            return Ok(None);
        }
        // The copy is hashed, not the source: what is stored is what the name says.
        let (id, found) =
            extents::digest(self.store.algorithm(), &part.file).map_err(PutError::Read)?;
        if found != size {
            return Err(PutError::WrongSize {
                wanted: size,
                found,
            });
        }
        self.finish_part(part, Item::Object(id))?;
        Ok(Some(FileContent::Object { id, size }))
    }

    /// Gives a finished part the name of its item, unless the item is there.
    fn finish_part(&self, mut part: Part<'_, 'store>, item: Item) -> Result<(), PutError> {
        if !self.claim(item, self.part_size(&part)?)? {
            return Ok(()); // the part goes with its drop
        }
        let name = item.flat_name();
        let rename = rustix::fs::renameat(
            &self.directory,
            part.name.as_str(),
            &self.directory,
            name.as_str(),
        );
        part.name.clear();
        drop(part); // nobody may hold it open for writing when it is sealed
        rename
            .map_err(|error| self.write_error(&item.to_string(), error.into()))
            .and_then(|()| self.seal(item, &name))
            .inspect_err(|_| self.broken.store(true, Ordering::Release))
    }

    /// Seals a staged file, where the store seals, and compares what the kernel measures.
    fn seal(&self, item: Item, name: &str) -> Result<(), PutError> {
        let Some(wanted) = item.sealed_as() else {
            return Ok(());
        };
        if self.store.sealing() == Sealing::Unsealed {
            return Ok(());
        }
        let seal = || -> io::Result<_> {
            let file = files::open_file(&self.directory, name.as_ref())?;
            verity::enable(&file, wanted.algorithm().kernel_number())?;
            verity::measure(&file)
        };
        let measured = seal().map_err(|source| PutError::Seal { item, source })?;
        let same = measured.is_some_and(|(algorithm, digest)| {
            algorithm == wanted.algorithm().kernel_number() && digest == wanted.as_bytes()
        });
        if same {
            Ok(())
        } else {
            Err(PutError::Measured { item })
        }
    }

    fn new_part(&self, what: &str) -> Result<Part<'_, 'store>, PutError> {
        let name = format!("part-{}", self.parts.fetch_add(1, Ordering::Relaxed));
        let file = files::create_file(&self.directory, name.as_ref(), FILE_MODE)
            .map_err(|error| self.write_error(what, error))?;
        Ok(Part {
            transaction: self,
            name,
            file,
        })
    }

    fn part_size(&self, part: &Part<'_, '_>) -> Result<u64, PutError> {
        let metadata = part.file.metadata();
        metadata
            .map(|metadata| metadata.len())
            .map_err(|error| self.write_error("an object", error))
    }

    fn large_file<'a>(
        &self,
        file: &'a File,
        size: u64,
        way: Way,
    ) -> Result<LargeFile<'a>, PutError> {
        LargeFile::new(self.store.algorithm(), file, size, way)
            .map_err(|error| self.write_error("an object", error))
    }

    fn write_error(&self, what: &str, source: io::Error) -> PutError {
        PutError::Write {
            what: what.to_owned(),
            path: self.store.path().to_owned(),
            source,
        }
    }

    fn staged(&self) -> MutexGuard<'_, Staged> {
        // A thread that panicked while it held this cannot have left half an entry.
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next gc, once the lock is gone.
        if let Ok(tmp) = files::open_directory(self.store.root(), "tmp".as_ref()) {
            let _ = files::remove_tree(&tmp, self.name.as_ref());
        }
    }
}

impl ContentSink for Transaction<'_> {
    fn put_file(&self, file: &File, size: u64) -> Result<FileContent, PutError> {
        Transaction::put_file(self, file, size)
    }
}

/// A file that is being written and whose digest is not known yet; removed unless it is finished.
struct Part<'a, 'store> {
    transaction: &'a Transaction<'store>,
    /// Empty once the file has another name.
    name: String,
    file: File,
}

impl Drop for Part<'_, '_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            let flags = rustix::fs::AtFlags::empty();
            // What stays goes with the transaction's directory.
            let _ = rustix::fs::unlinkat(&self.transaction.directory, self.name.as_str(), flags);
        }
    }
}

/// Makes and locks a directory below `tmp/`.
pub(crate) fn make_directory(store: &Store) -> io::Result<(String, Lock)> {
    store.prepare_parts()?;
    let process = rustix::process::getpid().as_raw_nonzero();
    for _ in 0..BEGIN_TRIES {
        let name = format!("{process}-{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let path = store.path().join("tmp").join(&name);
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            // Left over from a process that had our number before.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        }
        // Between these two a gc may take it for a dead one, lock it and remove it: then try again.
        match Lock::try_exclusive(&path) {
            Ok(Some(lock)) if rustix::fs::fstat(&lock)?.st_nlink > 0 => return Ok((name, lock)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("every name for a transaction was taken"))
}

/// Reads until the buffer is full or the source ends.
fn fill(source: &mut dyn Read, buffer: &mut [u8]) -> Result<usize, PutError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(PutError::Read(error)),
        }
    }
    Ok(filled)
}
