//! Pull: an image from a registry, or from a layout on a disk, into the store.
//!
//! ```text
//! manifest ─→ config ─→ layers (several at once):
//!     blob ─→ digest, length ─→ decompress ─→ diff_id ─┐
//!                                         └─→ tar ─→ objects, table
//! ─→ flatten ─→ root digest ─→ ref ─→ commit
//! ```
//!
//! Invariant: nothing is named before everything was checked: the manifest against the name's digest,
//! the config and each layer against the manifest, each tar against the config, the tree against the
//! root digest that the manifest announces. Memory does not grow with the size of layers.

mod repair;

use std::collections::HashSet;
use std::io::{self, Read as _};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use bedplate_model::format::Shown;
use bedplate_model::human::Size;
use bedplate_model::oci::{
    ANNOTATION_CONFIG, ANNOTATION_ROOT, Compression, Config, DOCUMENT_MAX, Descriptor, Document,
    DocumentError, Manifest,
};
use bedplate_model::{ImageName, RootDigest, RuleSet, Sha256, Tree};
use bedplate_store::layer::{self, Contents, FlattenError, Layer, LayerError};
use bedplate_store::{PutError, RefTarget, Store, Transaction};
use bytes::Bytes;

use crate::Client;
use crate::decompress::{self, Budget};
use crate::download::{Download, DownloadError, fetch_small};
use crate::event::{Event, Observer};
use crate::layers::{Layers, LayersError};
use crate::layout::LayoutError;
use crate::origin::{Origin, OriginError};
use crate::pipeline::{self, PIECE_LEN};
use crate::registry::{Fetched, RegistryError};
use crate::store_error::StoreError;

/// The most entries that all layers of an image may have together, a layer counted as often as it
/// appears: time and memory grow with them.
const ENTRIES_MAX: usize = 2 * layer::MAX_ENTRIES;
/// How many platforms of an index are named to somebody whose own is not among them.
const OFFERED_MAX: usize = 8;

pub use repair::RegistrySource;

/// How a pull is done.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The architecture that is taken from an index, as Go names it.
    pub architecture: String,
    /// How many layers are fetched at once.
    pub jobs: NonZeroUsize,
    /// How many bytes of layers are fetched at most.
    pub fetched_max: u64,
    /// How many bytes all layers together may unpack to.
    pub unpacked_max: u64,
    /// An OCI image layout that is read instead of the image's registry.
    pub layout: Option<PathBuf>,
    /// The time that the ref gets, in seconds since 1970.
    pub now: i64,
}

impl PullOptions {
    /// Returns what is usual for this machine.
    pub fn new(now: i64) -> Self {
        Self {
            architecture: architecture_here().to_owned(),
            jobs: NonZeroUsize::new(4).expect("four is not zero"),
            fetched_max: 64 << 30,
            unpacked_max: 64 << 30,
            layout: None,
            now,
        }
    }

    async fn open(&self, client: &Client, image: &ImageName) -> Result<Origin, OriginError> {
        Origin::open(client.shared(), image, self.layout.as_deref()).await
    }
}

impl From<OriginError> for PullError {
    fn from(error: OriginError) -> Self {
        match error {
            OriginError::Registry(error) => error.into(),
            OriginError::Layout(error) => error.into(),
        }
    }
}

/// Returns this machine's architecture as Go names it.
pub fn architecture_here() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "loongarch64" => "loong64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// What a pull brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The image.
    pub root: RootDigest,
    /// Its manifest.
    pub manifest: Sha256,
    /// Its config.
    pub config: Sha256,
    /// How many different layers it has.
    pub layers: usize,
    /// How many of them the store had.
    pub layers_reused: usize,
    /// The bytes of the layers that were fetched.
    pub bytes_fetched: u64,
}

impl Client {
    /// Asks a registry which manifest a name has now, and fetches nothing else.
    pub fn look(&self, image: &ImageName, options: &PullOptions) -> Result<Sha256, PullError> {
        let runtime = self.handle();
        let origin = runtime.block_on(options.open(self, image))?;
        let (fetched, _) = runtime.block_on(find_manifest(&origin, image, options))?;
        Ok(fetched.digest)
    }

    /// Pulls an image into a store, under its own name.
    pub fn pull(
        &self,
        store: &Store,
        image: &ImageName,
        options: &PullOptions,
        observer: &dyn Observer,
    ) -> Result<Pulled, PullError> {
        let runtime = self.handle();
        // 1. The manifest, by the name's digest or what the registry says of its own answer.
        let origin = runtime.block_on(options.open(self, image))?;
        let (fetched, manifest) = runtime.block_on(find_manifest(&origin, image, options))?;
        if let Some(pulled) = already_here(store, image, &fetched, &manifest, options)? {
            return Ok(pulled);
        }
        // 2. The config: it names the tar that each layer must unpack to.
        let (config_bytes, config) = runtime.block_on(find_config(&origin, &manifest))?;
        // 3. The layers.
        let layers = Layers::new(&manifest.layers, &config.rootfs.diff_ids)?;
        let transaction = store.begin().map_err(StoreError::from)?;
        let ingest = Ingest {
            client: self,
            store,
            transaction: &transaction,
            contents: &transaction,
            origin: &origin,
            observer,
            budget: Budget::new(options.unpacked_max),
            options,
        };
        let arrived = ingest.layers(&layers)?;
        // 4. The tree, by the rules of who made the image.
        let announced = announced_root(&manifest)?;
        let rules = announced.map_or(RuleSet::Bootc1, |root| root.rules);
        let tree = flatten(&layers, arrived.layers, rules)?;
        let root = transaction
            .put_image(&tree, rules)
            .map_err(StoreError::from)?;
        if let Some(announced) = announced
            && announced != root
        {
            return Err(PullError::WrongRoot {
                announced,
                got: root,
            });
        }
        // 5. Everything has its name at once.
        let (manifest_digest, config_digest) =
            name_image(&transaction, image, root, &fetched, &config_bytes, options)?;
        transaction.commit().map_err(StoreError::from)?;
        Ok(Pulled {
            root,
            manifest: manifest_digest,
            config: config_digest,
            layers: layers.different.len(),
            layers_reused: arrived.reused,
            bytes_fetched: arrived.bytes,
        })
    }
}

/// Puts the documents into the store, and the ref that names them and the tree.
fn name_image(
    transaction: &Transaction<'_>,
    image: &ImageName,
    root: RootDigest,
    fetched: &Fetched,
    config: &[u8],
    options: &PullOptions,
) -> Result<(Sha256, Sha256), StoreError> {
    let manifest = transaction.put_blob(&fetched.bytes)?;
    let config = transaction.put_blob(config)?;
    let target = RefTarget {
        manifest: Some(manifest),
        config: Some(config),
        ..RefTarget::new(root, options.now)
    };
    transaction.set_ref(&ref_name(image), target)?;
    Ok((manifest, config))
}

/// Makes one tree of an image's layers.
fn flatten(layers: &Layers<'_>, arrived: Vec<Layer>, rules: RuleSet) -> Result<Tree, PullError> {
    let stack: Vec<&Layer> = layers.order.iter().map(|at| &arrived[*at]).collect();
    let entries = stack.iter().map(|layer| layer.entries().len());
    if entries.fold(0, usize::saturating_add) > ENTRIES_MAX {
        return Err(PullError::TooManyEntries);
    }
    Ok(layer::flatten(&stack, rules)?)
}

/// Returns the name that a pulled image is kept under: its digest where it was asked for by that, for the
/// registry's tag may be another image; otherwise its tag.
fn ref_name(image: &ImageName) -> ImageName {
    match image.digest() {
        Some(digest) => image.by_digest(digest),
        None => image.clone(),
    }
}

async fn find_manifest(
    origin: &Origin,
    image: &ImageName,
    options: &PullOptions,
) -> Result<(Fetched, Manifest), PullError> {
    let mut fetched = origin.manifest(image).await?;
    let mut document = Document::parse(&fetched.bytes)?;
    if let Document::Index(index) = &document {
        let chosen = index
            .manifests
            .iter()
            .find(|entry| {
                entry.platform.as_ref().is_some_and(|platform| {
                    platform.os == "linux" && platform.architecture == options.architecture
                })
            })
            .ok_or_else(|| PullError::Platform {
                wanted: options.architecture.clone(),
                offered: index
                    .manifests
                    .iter()
                    .filter_map(|entry| entry.platform.as_ref())
                    .take(OFFERED_MAX)
                    .map(|platform| {
                        Shown(format!("{}/{}", platform.os, platform.architecture)).to_string()
                    })
                    .collect::<Vec<_>>()
                    .join(", "),
            })?;
        let digest = chosen.digest;
        fetched = origin.manifest_by_digest(digest).await?;
        document = Document::parse(&fetched.bytes)?;
    }
    match document {
        Document::Manifest(manifest) => Ok((fetched, manifest)),
        Document::Index(_) => Err(PullError::NestedIndex(fetched.digest)),
    }
}

async fn find_config(origin: &Origin, manifest: &Manifest) -> Result<(Vec<u8>, Config), PullError> {
    let Descriptor { digest, size, .. } = manifest.config;
    if size > DOCUMENT_MAX {
        return Err(PullError::ConfigTooLong(size));
    }
    let bytes = fetch_small(origin.clone(), digest, size).await?;
    let config: Config = serde_json::from_slice(&bytes).map_err(PullError::Config)?;
    Ok((bytes, config))
}

/// Finds out whether the store has this very manifest, and then only sets the ref.
fn already_here(
    store: &Store,
    image: &ImageName,
    fetched: &Fetched,
    manifest: &Manifest,
    options: &PullOptions,
) -> Result<Option<Pulled>, PullError> {
    let known = store.resolve(&image.with_digest(fetched.digest));
    let Some(known) = known.map_err(StoreError::from)? else {
        return Ok(None);
    };
    let (Some(digest), Some(config)) = (known.manifest, known.config) else {
        return Ok(None);
    };
    if digest != fetched.digest {
        return Ok(None);
    }
    let root = known.root;
    if announced_root(manifest)?.is_some_and(|announced| announced != root) {
        return Ok(None);
    }
    let target = RefTarget {
        created: options.now,
        ..known
    };
    let lengths = [
        (digest, fetched.bytes.len() as u64),
        (config, manifest.config.size),
    ];
    match set_ref(store, image, target, lengths) {
        // The ref leads to something that is gone or damaged: fetching it again mends that.
        Err(StoreError::Put(PutError::Missing(_) | PutError::Damaged { .. })) => return Ok(None),
        other => other?,
    }
    let different: HashSet<Sha256> = manifest.layers.iter().map(|blob| blob.digest).collect();
    Ok(Some(Pulled {
        root,
        manifest: digest,
        config,
        layers: different.len(),
        layers_reused: different.len(),
        bytes_fetched: 0,
    }))
}

/// Sets a ref to an image that the store has, with documents of these lengths.
fn set_ref(
    store: &Store,
    image: &ImageName,
    target: RefTarget,
    documents: [(Sha256, u64); 2],
) -> Result<(), StoreError> {
    let transaction = store.begin()?;
    for (digest, size) in documents {
        transaction.need_blob(digest, size)?;
    }
    transaction.set_ref(&ref_name(image), target)?;
    Ok(transaction.commit()?)
}

fn announced_root(manifest: &Manifest) -> Result<Option<RootDigest>, PullError> {
    let own_config = manifest.config.digest.to_string();
    if manifest.annotations.get(ANNOTATION_CONFIG) != Some(&own_config) {
        return Ok(None);
    }
    manifest
        .annotations
        .get(ANNOTATION_ROOT)
        .map(|text| {
            text.parse()
                .map_err(|_| PullError::AnnouncedRoot(Shown(text.clone())))
        })
        .transpose()
}

/// What all layers of one pull share.
struct Ingest<'a> {
    client: &'a Client,
    store: &'a Store,
    transaction: &'a Transaction<'a>,
    /// Where the bodies of files go: the transaction, or a repair.
    contents: &'a dyn Contents,
    origin: &'a Origin,
    observer: &'a dyn Observer,
    budget: Budget,
    options: &'a PullOptions,
}

/// The different layers of an image, in the store's transaction.
struct Arrived {
    layers: Vec<Layer>,
    reused: usize,
    bytes: u64,
}

impl Ingest<'_> {
    /// Brings in all layers, several at once.
    fn layers(&self, layers: &Layers<'_>) -> Result<Arrived, PullError> {
        let (said, limit) = (layers.bytes(), self.options.fetched_max);
        if said > limit {
            return Err(LayersError::TooLarge { said, limit }.into());
        }
        self.observer.on(Event::Planned {
            layers: layers.different.len(),
            bytes: said,
        });
        let entries = AtomicUsize::new(0);
        let arrived = layers.each(self.options.jobs, |blob, diff_id| {
            let (layer, fetched) = self.layer(blob, diff_id)?;
            let count = layer.entries().len();
            // Each layer has a limit of its own, so the sum stays far below what a number holds.
            if entries.fetch_add(count, Ordering::Relaxed) + count > ENTRIES_MAX {
                return Err(PullError::TooManyEntries);
            }
            Ok((layer, fetched))
        })?;
        let fetched = || arrived.iter().filter_map(|(_, fetched)| *fetched);
        Ok(Arrived {
            reused: arrived.len() - fetched().count(),
            bytes: fetched().sum(),
            layers: arrived.into_iter().map(|(layer, _)| layer).collect(),
        })
    }

    /// Brings in one layer; returns it with the bytes that were fetched, unless the store had it.
    fn layer(
        &self,
        blob: &Descriptor,
        diff_id: &Sha256,
    ) -> Result<(Layer, Option<u64>), PullError> {
        if let Some(layer) = self.known_layer(diff_id)? {
            self.observer.on(Event::LayerReused {
                digest: blob.digest,
                size: blob.size,
            });
            return Ok((layer, None));
        }
        let compression = Compression::of_media_type(&blob.media_type)
            .ok_or_else(|| PullError::MediaType(Shown(blob.media_type.clone())))?;
        self.observer.on(Event::LayerStarted {
            digest: blob.digest,
            size: blob.size,
        });
        let layer = self.fetch_layer(blob, compression, diff_id)?;
        self.transaction
            .put_layer(*diff_id, &layer.encode(diff_id))
            .map_err(StoreError::from)?;
        self.observer.on(Event::LayerFinished {
            digest: blob.digest,
        });
        Ok((layer, Some(blob.size)))
    }

    /// Returns a layer that the store has whole.
    fn known_layer(&self, diff_id: &Sha256) -> Result<Option<Layer>, PullError> {
        // A damaged table, or one whose objects are gone or damaged, is as good as none: the layer is fetched.
        let Ok(Some(table)) = self.store.layer(diff_id) else {
            return Ok(None);
        };
        let Ok(layer) = Layer::decode(&table, diff_id) else {
            return Ok(None);
        };
        match self.transaction.hold_objects(layer.objects()) {
            Ok(()) => Ok(Some(layer)),
            Err(PutError::Missing(_) | PutError::Damaged { .. }) => Ok(None),
            Err(error) => Err(StoreError::from(error).into()),
        }
    }

    /// Fetches, checks and takes apart one layer.
    fn fetch_layer(
        &self,
        blob: &Descriptor,
        compression: Compression,
        diff_id: &Sha256,
    ) -> Result<Layer, PullError> {
        let download = Download::start(self.client.handle(), self.origin.clone(), blob);
        let Download { reader, outcome } = download;
        let counted = Counted {
            inner: reader,
            digest: blob.digest,
            observer: self.observer,
        };
        let (to_hasher, hashed) = pipeline::channel();
        let (to_parser, mut tar) = pipeline::channel();
        let (unpacked, got, layer) = std::thread::scope(|scope| {
            let unpacking = scope.spawn(move || {
                self.unpack(compression, counted, |piece: Bytes| {
                    // A parser that is gone has failed, and says why.
                    let parsed = to_parser.send(piece.clone()).is_ok();
                    parsed && to_hasher.send(piece).is_ok()
                })
            });
            let hashing = scope.spawn(move || hashed.digest());
            let layer = layer::read(&mut tar, self.contents);
            if layer.is_ok() {
                // Whatever follows the archive's end belongs to the tar's digest too. A pipe between
                // threads does not fail.
                let _ = io::copy(&mut tar, &mut io::sink());
            }
            drop(tar);
            (join(unpacking), join(hashing), layer)
        });
        // The first cause is reported: a broken download makes every later stage fail.
        match outcome.wait() {
            Err(DownloadError::Origin(error)) => return Err(error.into()),
            Ok(()) | Err(DownloadError::Abandoned) => {}
        }
        let whole = unpacked.map_err(|problem| match problem {
            Unpacking::Damaged(source) => PullError::Damaged {
                layer: blob.digest,
                source,
            },
            Unpacking::TooMuch => PullError::TooMuch {
                limit: self.options.unpacked_max,
            },
        })?;
        let layer = layer.map_err(|source| PullError::Layer {
            layer: blob.digest,
            source,
        })?;
        if !whole || got != *diff_id {
            return Err(PullError::WrongDiffId {
                layer: blob.digest,
                wanted: *diff_id,
                got,
            });
        }
        Ok(layer)
    }

    /// Decompresses a blob piece by piece; returns whether all pieces were wanted.
    fn unpack(
        &self,
        compression: Compression,
        source: Counted<'_>,
        mut give: impl FnMut(Bytes) -> bool,
    ) -> Result<bool, Unpacking> {
        let mut source = decompress::reader(compression, source).map_err(Unpacking::Damaged)?;
        loop {
            let mut piece = Vec::with_capacity(PIECE_LEN);
            let read = (&mut source)
                .take(PIECE_LEN as u64)
                .read_to_end(&mut piece)
                .map_err(Unpacking::Damaged)?;
            if read == 0 {
                return Ok(true);
            }
            if !self.budget.take(read as u64) {
                return Err(Unpacking::TooMuch);
            }
            if !give(piece.into()) {
                return Ok(false);
            }
        }
    }
}

/// Why a blob was not unpacked to its end.
enum Unpacking {
    Damaged(io::Error),
    TooMuch,
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Tells an observer how much of a blob was read.
struct Counted<'a> {
    inner: crate::download::BlobReader,
    digest: Sha256,
    observer: &'a dyn Observer,
}

impl io::Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.tell(count);
        Ok(count)
    }
}

impl io::BufRead for Counted<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
        self.tell(amount);
    }
}

impl Counted<'_> {
    fn tell(&self, count: usize) {
        if count > 0 {
            self.observer.on(Event::Bytes {
                digest: self.digest,
                count: count as u64,
            });
        }
    }
}

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The layout did not give it.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The manifest is none that can be read.
    #[error("the image's manifest cannot be used")]
    Document(#[from] DocumentError),
    /// The image is not for this architecture.
    #[error("the image has no version for linux/{wanted} (it has {offered})")]
    Platform {
        /// The architecture that was wanted.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// An index in an index.
    #[error("{0} is an index inside an index")]
    NestedIndex(Sha256),
    /// The config is longer than any config is.
    #[error("the image's config is said to have {}, and at most {} are read", Size(*.0), Size(DOCUMENT_MAX))]
    ConfigTooLong(u64),
    /// The config cannot be read.
    #[error("the image's config cannot be used")]
    Config(#[source] serde_json::Error),
    /// There are too many layers, too large ones, or other ones than the config says.
    #[error(transparent)]
    Layers(#[from] LayersError),
    /// The layers have more entries than is allowed.
    #[error("the image's layers have more than {ENTRIES_MAX} files, which is the limit")]
    TooManyEntries,
    /// A layer is none.
    #[error("a layer is of type {0}, which is not supported")]
    MediaType(Shown),
    /// A layer cannot be decompressed.
    #[error("the layer {layer} is damaged")]
    Damaged {
        /// The layer.
        layer: Sha256,
        /// What went wrong.
        source: io::Error,
    },
    /// The layers unpack to more than is allowed.
    #[error("the image unpacks to more than {}, which is the limit", Size(*.limit))]
    TooMuch {
        /// The limit, in bytes.
        limit: u64,
    },
    /// A layer is no proper tar, or cannot be stored.
    #[error("the layer {layer} cannot be taken in")]
    Layer {
        /// The layer.
        layer: Sha256,
        /// What went wrong.
        source: LayerError,
    },
    /// A layer unpacks to something else than the config says.
    #[error("the layer {layer} should unpack to {wanted} and unpacks to {got}")]
    WrongDiffId {
        /// The layer.
        layer: Sha256,
        /// What the config says.
        wanted: Sha256,
        /// What it is.
        got: Sha256,
    },
    /// The manifest announces a root digest that is none.
    #[error("the manifest announces the root digest `{0}`, which is none")]
    AnnouncedRoot(Shown),
    /// The layers give another tree than the manifest announces.
    #[error("the manifest announces the root digest {announced}, and its layers give {got}")]
    WrongRoot {
        /// What the manifest says.
        announced: RootDigest,
        /// What the layers give.
        got: RootDigest,
    },
    /// The layers make no tree.
    #[error("the image's layers make no tree")]
    Flatten(#[from] FlattenError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PullError {
    /// Returns whether the same pull may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Registry(error) if error.is_transient())
    }
}
