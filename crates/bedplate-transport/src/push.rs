//! Push: an image from the store to a registry.
//!
//! ```text
//! each layer that the registry lacks:
//!     table + objects ─→ the exact tar ─→ diff_id ✓ ─→ compress ─→ upload ─→ digest ✓
//! ─→ config ─→ manifest (under its tag, last)
//! ```
//!
//! A layer that we compressed is compressed again to the same bytes. Somebody else's cannot be: it
//! gets bytes, a digest and so a manifest of its own, and the outcome says so. A layer is never held in
//! memory or on the disk: it is made while it is sent.

use std::io;
use std::num::NonZeroUsize;

use bedplate_model::oci::{
    ANNOTATION_COMPRESSION, Compression, Config, DOCKER_MANIFEST, Descriptor, Document,
    DocumentError, Manifest, OCI_MANIFEST,
};
use bedplate_model::{ImageName, Sha256};
use bedplate_store::layer::{self, DecodeLayerError, Layer, RewriteError};
use bedplate_store::{RefTarget, Store};
use bytes::Bytes;
use sha2::Digest as _;
use tokio::sync::mpsc;

use crate::Client;
use crate::compress::{Compressor, Recipe};
use crate::event::{Event, Observer};
use crate::layers::{Layers, LayersError};
use crate::package::{PackageError, PackageOptions, contents_of, package};
use crate::pipeline::Pieces;
use crate::registry::{Access, Opened, RegistryError, Remote};
use crate::store_error::StoreError;

/// How often a layer is sent before the push gives up.
const ATTEMPTS: u32 = 3;
/// Pieces that wait for the network, of 256 KiB each.
const PIECES_WAITING: usize = 8;
/// Docker's media type of a gzipped layer.
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// How a push is done.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// How many layers are sent at once.
    pub jobs: NonZeroUsize,
    /// How an image that was never packaged is packaged; its recipe is also that of layers whose
    /// compressed bytes cannot be made again.
    pub package: PackageOptions,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self {
            jobs: NonZeroUsize::new(2).expect("two is not zero"),
            package: PackageOptions::default(),
        }
    }
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The manifest that the registry has now.
    pub manifest: Sha256,
    /// Whether that is another manifest than the store's, because a layer had to be compressed anew.
    pub remade: bool,
    /// How many different layers the image has.
    pub layers: usize,
    /// How many of them the registry had.
    pub layers_reused: usize,
    /// The bytes of the layers that were sent.
    pub bytes_sent: u64,
}

impl Client {
    /// Pushes an image of the store to a registry.
    ///
    /// An image that has no manifest yet gets one, which the store keeps.
    pub fn push(
        &self,
        store: &Store,
        source: &ImageName,
        destination: &ImageName,
        options: &PushOptions,
        observer: &dyn Observer,
    ) -> Result<Pushed, PushError> {
        // 1. The image, packaged where it was not yet.
        let target = store
            .resolve(source)
            .map_err(StoreError::from)?
            .ok_or_else(|| PushError::Missing(source.clone()))?;
        let (manifest_digest, config_digest) = match (target.manifest, target.config) {
            (Some(manifest), Some(config)) => (manifest, config),
            _ => package_now(store, source, target, options)?,
        };
        let manifest_bytes = store.blob(&manifest_digest).map_err(StoreError::from)?;
        let Document::Manifest(manifest) = Document::parse(&manifest_bytes)? else {
            return Err(PushError::Index(manifest_digest));
        };
        let config_bytes = store.blob(&config_digest).map_err(StoreError::from)?;
        let config: Config = serde_json::from_slice(&config_bytes).map_err(PushError::Config)?;
        let layers = Layers::new(&manifest.layers, &config.rootfs.diff_ids)?;
        check_digest(destination, manifest_digest)?;

        // 2. The layers, 3. the config, 4. what names them.
        let runtime = self.handle();
        let remote = runtime.block_on(Remote::open(self.shared(), destination, Access::Push))?;
        let sending = Sending {
            client: self,
            store,
            remote: &remote,
            mount_from: mount_source(source, destination),
            observer,
            options,
        };
        let sent = sending.layers(&layers, &manifest)?;
        runtime.block_on(send_small(&remote, &config_digest, config_bytes))?;
        let remade = sent.iter().any(|layer| layer.remade.is_some());
        let (manifest_digest, manifest_bytes) = if remade {
            let bytes = remake(&manifest_bytes, &layers, &sent)?;
            (Sha256(sha2::Sha256::digest(&bytes).into()), bytes)
        } else {
            (manifest_digest, manifest_bytes)
        };
        check_digest(destination, manifest_digest)?;
        let reference = destination
            .tag()
            .map_or_else(|| manifest_digest.to_string(), str::to_owned);
        let media_type = manifest.media_type.as_deref().unwrap_or(OCI_MANIFEST);
        runtime.block_on(remote.put_manifest(&reference, media_type, manifest_bytes.into()))?;
        Ok(Pushed {
            manifest: manifest_digest,
            remade,
            layers: sent.len(),
            layers_reused: sent.iter().filter(|layer| layer.bytes.is_none()).count(),
            bytes_sent: sent.iter().filter_map(|layer| layer.bytes).sum(),
        })
    }
}

/// Packages an image that only has a tree, and notes that at its ref.
fn package_now(
    store: &Store,
    source: &ImageName,
    target: RefTarget,
    options: &PushOptions,
) -> Result<(Sha256, Sha256), PushError> {
    let transaction = store.begin().map_err(StoreError::from)?;
    let packaged = package(store, &transaction, &target.root, &options.package)?;
    let target = RefTarget {
        manifest: Some(packaged.manifest),
        config: Some(packaged.config),
        ..target
    };
    transaction
        .set_ref(source, target)
        .map_err(StoreError::from)?;
    transaction.commit().map_err(StoreError::from)?;
    Ok((packaged.manifest, packaged.config))
}

fn check_digest(destination: &ImageName, manifest: Sha256) -> Result<(), PushError> {
    match destination.digest() {
        Some(wanted) if wanted != manifest => Err(PushError::OtherDigest { wanted, manifest }),
        _ => Ok(()),
    }
}

/// Returns the repository of the same registry that the image's layers may be in already.
fn mount_source(source: &ImageName, destination: &ImageName) -> Option<String> {
    let same_host = source.host() == destination.host();
    let other = source.repository() != destination.repository();
    (same_host && other).then(|| source.repository().to_owned())
}

/// What all layers of one push share.
struct Sending<'a> {
    client: &'a Client,
    store: &'a Store,
    remote: &'a Remote,
    mount_from: Option<String>,
    observer: &'a dyn Observer,
    options: &'a PushOptions,
}

/// What became of one layer.
struct SentLayer {
    /// Its new descriptor, where its bytes are not those of the manifest.
    remade: Option<Descriptor>,
    /// How many bytes were sent; nothing where the registry had it.
    bytes: Option<u64>,
}

impl Sending<'_> {
    /// Sends all layers that the registry lacks, several at once.
    fn layers(
        &self,
        layers: &Layers<'_>,
        manifest: &Manifest,
    ) -> Result<Vec<SentLayer>, PushError> {
        self.observer.on(Event::Planned {
            layers: layers.different.len(),
            bytes: layers.bytes(),
        });
        let docker = manifest.media_type.as_deref() == Some(DOCKER_MANIFEST);
        layers.each(self.options.jobs, |blob, diff_id| {
            self.layer(blob, diff_id, docker)
        })
    }

    fn layer(
        &self,
        blob: &Descriptor,
        diff_id: &Sha256,
        docker: bool,
    ) -> Result<SentLayer, PushError> {
        let runtime = self.client.handle();
        let mut reused = runtime.block_on(self.remote.has_blob(&blob.digest))?;
        let mut opened = None;
        if !reused && let Some(from) = &self.mount_from {
            let mount = self.remote.open_upload(Some((&blob.digest, from)));
            match runtime.block_on(mount)? {
                Opened::Mounted => reused = true,
                Opened::Upload(upload) => opened = Some(upload),
            }
        }
        if reused {
            self.observer.on(Event::LayerReused {
                digest: blob.digest,
                size: blob.size,
            });
            return Ok(SentLayer {
                remade: None,
                bytes: None,
            });
        }
        let recipe = recipe_of(blob).unwrap_or(if docker {
            // Docker's media types know no Zstandard.
            Recipe::GZIP
        } else {
            self.options.package.recipe
        });
        let table = self
            .store
            .layer(diff_id)
            .map_err(StoreError::from)?
            .ok_or(PushError::MissingLayer(*diff_id))?;
        let layer = Layer::decode(&table, diff_id).map_err(|source| PushError::Table {
            diff_id: *diff_id,
            source,
        })?;
        self.observer.on(Event::LayerStarted {
            digest: blob.digest,
            size: blob.size,
        });
        let mut attempt = 1;
        let (digest, size) = loop {
            let upload = match opened.take() {
                Some(upload) => upload,
                None => match runtime.block_on(self.remote.open_upload(None))? {
                    Opened::Upload(upload) => upload,
                    Opened::Mounted => return Err(PushError::Unasked),
                },
            };
            match self.send(&upload, blob, &layer, diff_id, recipe) {
                Err(PushError::Registry(error)) if error.is_transient() && attempt < ATTEMPTS => {
                    attempt += 1;
                    self.observer.on(Event::LayerRestarted {
                        digest: blob.digest,
                    });
                }
                outcome => break outcome?,
            }
        };
        self.observer.on(Event::LayerFinished {
            digest: blob.digest,
        });
        let remade = (digest != blob.digest).then(|| {
            let mut annotations = blob.annotations.clone();
            annotations.insert(ANNOTATION_COMPRESSION.into(), recipe.to_string());
            Descriptor {
                media_type: if docker {
                    DOCKER_LAYER.into()
                } else {
                    recipe.compression().media_type().into()
                },
                digest,
                size,
                annotations,
                platform: None,
            }
        });
        Ok(SentLayer {
            remade,
            bytes: Some(size),
        })
    }

    /// Makes a layer and sends it while it is made; returns its digest and length.
    fn send(
        &self,
        upload: &hyper::Uri,
        blob: &Descriptor,
        layer: &Layer,
        diff_id: &Sha256,
        recipe: Recipe,
    ) -> Result<(Sha256, u64), PushError> {
        let runtime = self.client.handle();
        let (to_network, pieces) = mpsc::channel(PIECES_WAITING);
        let (remote, address) = (self.remote.clone(), upload.clone());
        let sending = runtime.spawn(async move { remote.send(&address, pieces).await });

        let mut hasher = sha2::Sha256::new();
        let mut size = 0;
        let made = self.make(layer, recipe, |piece: Bytes| {
            hasher.update(&piece);
            let count = piece.len() as u64;
            size += count;
            to_network
                .blocking_send(Ok(piece))
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            self.observer.on(Event::Bytes {
                digest: blob.digest,
                count,
            });
            Ok(())
        });
        let broken = match &made {
            Ok(got) if got == diff_id => None,
            Ok(_) => Some(io::Error::other("the layer is damaged")),
            Err(_) => Some(io::Error::other("the layer cannot be made")),
        };
        if let Some(error) = broken {
            // Breaks the upload off; a request that is over already has broken by itself.
            let _ = to_network.blocking_send(Err(error));
        }
        drop(to_network);
        let sent = match runtime.block_on(sending) {
            Ok(sent) => sent,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        match (made, sent) {
            (Ok(got), Ok(_)) if got != *diff_id => Err(PushError::WrongDiffId {
                wanted: *diff_id,
                got,
            }),
            (Ok(_), Ok(upload)) => {
                let digest = Sha256(hasher.finalize().into());
                let finish = self.remote.finish_upload(&upload, &digest, Bytes::new());
                runtime.block_on(finish)?;
                Ok((digest, size))
            }
            (made, sent) => {
                runtime.block_on(self.remote.cancel_upload(upload));
                // Whichever failed first made the other fail.
                match (made, sent) {
                    (Ok(got), _) if got != *diff_id => Err(PushError::WrongDiffId {
                        wanted: *diff_id,
                        got,
                    }),
                    (Err(MakeError::Tar(source)), _) => Err(PushError::Tar {
                        diff_id: *diff_id,
                        source,
                    }),
                    (Err(MakeError::Compress(source)), _) => Err(PushError::Compress(source)),
                    (_, Err(error)) => Err(error.into()),
                    (_, Ok(_)) => Err(PushError::Interrupted(blob.digest)),
                }
            }
        }
    }

    /// Makes a layer's compressed bytes; returns the digest of its tar.
    fn make(
        &self,
        layer: &Layer,
        recipe: Recipe,
        give: impl FnMut(Bytes) -> io::Result<()>,
    ) -> Result<Sha256, MakeError> {
        let threads = self.options.package.threads.get();
        let mut tar = Hashed {
            hasher: sha2::Sha256::new(),
            out: Compressor::new(recipe, threads, Pieces::new(give))?,
        };
        match layer::rewrite_tar(layer, &contents_of(self.store), &mut tar) {
            Err(RewriteError::Write(error)) => return Err(error.into()),
            Err(error) => return Err(MakeError::Tar(error)),
            Ok(()) => {}
        }
        tar.out.finish()?.finish()?;
        Ok(Sha256(tar.hasher.finalize().into()))
    }
}

/// Why a layer's bytes were not made.
enum MakeError {
    /// The store does not give its tar.
    Tar(RewriteError),
    /// It could not be compressed.
    Compress(io::Error),
    /// The connection takes no more; the request says why.
    Unsent,
}

impl From<io::Error> for MakeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Unsent,
            _ => Self::Compress(error),
        }
    }
}

/// Hashes what goes through.
struct Hashed<W> {
    hasher: sha2::Sha256,
    out: W,
}

impl<W: io::Write> io::Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Returns how a layer's compressed bytes are made again, where that is known.
fn recipe_of(blob: &Descriptor) -> Option<Recipe> {
    match blob.annotations.get(ANNOTATION_COMPRESSION) {
        Some(recipe) => recipe.parse().ok(),
        None => match Compression::of_media_type(&blob.media_type)? {
            Compression::None => Some(Recipe::None),
            Compression::Gzip | Compression::Zstd => None,
        },
    }
}

/// Sends a small blob from memory, where the registry lacks it.
async fn send_small(remote: &Remote, digest: &Sha256, bytes: Vec<u8>) -> Result<(), RegistryError> {
    if remote.has_blob(digest).await? {
        return Ok(());
    }
    match remote.open_upload(None).await? {
        Opened::Mounted => Ok(()),
        Opened::Upload(upload) => remote.finish_upload(&upload, digest, bytes.into()).await,
    }
}

/// Puts the descriptors of remade layers into a manifest; whatever else stands there stays.
fn remake(manifest: &[u8], sources: &Layers<'_>, sent: &[SentLayer]) -> Result<Vec<u8>, PushError> {
    let mut document: serde_json::Value =
        serde_json::from_slice(manifest).map_err(PushError::Manifest)?;
    let layers = document["layers"].as_array_mut().into_iter().flatten();
    for (layer, at) in layers.zip(&sources.order) {
        if let Some(remade) = &sent[*at].remade {
            *layer = serde_json::to_value(remade).map_err(PushError::Manifest)?;
        }
    }
    serde_json::to_vec(&document).map_err(PushError::Manifest)
}

/// Why an image could not be pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// There is no such image.
    #[error("the store has no image {0}")]
    Missing(ImageName),
    /// The destination's name fixes another manifest.
    #[error("the destination's name says {wanted}, and the image is {manifest}")]
    OtherDigest {
        /// What the name says.
        wanted: Sha256,
        /// What would be pushed.
        manifest: Sha256,
    },
    /// What the ref names is no single image.
    #[error("{0} is an index, not a manifest")]
    Index(Sha256),
    /// The manifest cannot be used.
    #[error("the image's manifest cannot be used")]
    Document(#[from] DocumentError),
    /// The manifest cannot be rewritten.
    #[error("the image's manifest cannot be rewritten")]
    Manifest(#[source] serde_json::Error),
    /// The config cannot be read.
    #[error("the image's config cannot be used")]
    Config(#[source] serde_json::Error),
    /// There are too many layers, or other ones than the config says.
    #[error(transparent)]
    Layers(#[from] LayersError),
    /// The store does not have a layer.
    #[error("the store does not have the layer {0}")]
    MissingLayer(Sha256),
    /// A layer's table is damaged.
    #[error("the table of the layer {diff_id} is damaged")]
    Table {
        /// The layer.
        diff_id: Sha256,
        /// What is wrong with it.
        source: DecodeLayerError,
    },
    /// A layer cannot be made from the store.
    #[error("cannot make the layer {diff_id} from the store")]
    Tar {
        /// The layer.
        diff_id: Sha256,
        /// What went wrong.
        source: RewriteError,
    },
    /// A layer could not be compressed.
    #[error("cannot compress a layer")]
    Compress(#[source] io::Error),
    /// The registry answered before it had all of a layer.
    #[error("the registry stopped listening in the middle of the layer {0}")]
    Interrupted(Sha256),
    /// The store gives another tar than it should.
    #[error("the store gives {got} for the layer {wanted}")]
    WrongDiffId {
        /// The layer.
        wanted: Sha256,
        /// What the store gives.
        got: Sha256,
    },
    /// The registry answers what it was not asked.
    #[error("the registry mounts a blob that it was not asked to mount")]
    Unasked,
    /// The registry did not take it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The image could not be packaged.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PushError {
    /// Returns whether the same push may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Registry(error) if error.is_transient())
    }
}
