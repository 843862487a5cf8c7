//! Package: what makes an image of ours out of a tree: one layer, a config, a manifest.
//!
//! ```text
//! tree ─→ tar ─┬─→ SHA-256: diff_id ─→ config ─┐
//!              ├─→ layer table                 ├─→ manifest (with the root digest)
//!              └─→ compress ─→ SHA-256, length ┘
//! ```
//!
//! The compressed layer is not kept: its recipe is written into the manifest, and a push makes the
//! same bytes again. The same tree and options always give the same manifest.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;

use bedplate_model::oci::{
    ANNOTATION_COMPRESSION, ANNOTATION_CONFIG, ANNOTATION_ROOT, Config, Descriptor, History,
    Manifest, OCI_CONFIG, OCI_MANIFEST, RootFs, RunConfig,
};
use bedplate_model::tree::INLINE_MAX;
use bedplate_model::{Algorithm, FileContent, NodeId, RootDigest, Sha256, Tree};
use bedplate_store::layer::{self, Contents, Layer, LayerError, SparseMap, WriteTarError};
use bedplate_store::{PutError, Store, Transaction, verity};
use sha2::Digest as _;

use crate::compress::{Compressor, Recipe};
use crate::pipeline::{self, PieceReader, Pieces};
use crate::pull::architecture_here;
use crate::store_error::StoreError;

/// How an image is packaged.
#[derive(Clone, Debug)]
pub struct PackageOptions {
    /// How the layer is compressed.
    pub recipe: Recipe,
    /// How many threads compress; the result does not depend on it.
    pub threads: NonZeroUsize,
    /// Labels, and how to run a container of the image.
    pub config: RunConfig,
    /// The architecture, as Go names it.
    pub architecture: String,
    /// When the image was made, in seconds since 1970; the newest time in the tree when not given.
    pub created: Option<i64>,
    /// What stands in the image's history.
    pub created_by: String,
    /// Annotations of the manifest, besides the root digest.
    pub annotations: BTreeMap<String, String>,
}

impl Default for PackageOptions {
    fn default() -> Self {
        Self {
            recipe: Recipe::default(),
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            config: RunConfig::default(),
            architecture: architecture_here().to_owned(),
            created: None,
            created_by: "bedplate".into(),
            annotations: BTreeMap::new(),
        }
    }
}

/// The documents of a packaged image. They and the layer's table are in the transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packaged {
    /// The digest of the manifest.
    pub manifest: Sha256,
    /// The digest of the config.
    pub config: Sha256,
    /// The layer, as it will travel.
    pub layer: Descriptor,
    /// The digest of the uncompressed layer.
    pub diff_id: Sha256,
}

/// Packages an image that the store has.
///
/// The caller sets a ref to the result and commits.
pub fn package(
    store: &Store,
    transaction: &Transaction<'_>,
    root: &RootDigest,
    options: &PackageOptions,
) -> Result<Packaged, PackageError> {
    let tree = store.tree(root).map_err(StoreError::from)?;
    let made = make_layer(store, &tree, options)?;
    let seconds = options.created.unwrap_or_else(|| newest(&tree));
    let created = rfc3339(seconds);
    let config = Config {
        created: Some(created.clone()),
        architecture: options.architecture.clone(),
        os: "linux".into(),
        config: options.config.clone(),
        rootfs: RootFs {
            kind: "layers".into(),
            diff_ids: vec![made.diff_id],
        },
        history: vec![History {
            created: Some(created),
            created_by: Some(options.created_by.clone()),
            empty_layer: false,
        }],
    };
    let config_bytes = serde_json::to_vec(&config).map_err(PackageError::Json)?;
    let config = transaction
        .put_blob(&config_bytes)
        .map_err(StoreError::from)?;
    let mut annotations = options.annotations.clone();
    annotations.insert(ANNOTATION_ROOT.into(), root.to_string());
    annotations.insert(ANNOTATION_CONFIG.into(), config.to_string());
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.into()),
        config: Descriptor {
            media_type: OCI_CONFIG.into(),
            digest: config,
            size: config_bytes.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
        },
        layers: vec![made.descriptor.clone()],
        annotations,
    };
    let manifest_bytes = serde_json::to_vec(&manifest).map_err(PackageError::Json)?;
    let manifest = transaction
        .put_blob(&manifest_bytes)
        .map_err(StoreError::from)?;
    transaction
        .put_layer(made.diff_id, &made.layer.encode(&made.diff_id))
        .map_err(StoreError::from)?;
    Ok(Packaged {
        manifest,
        config,
        layer: made.descriptor,
        diff_id: made.diff_id,
    })
}

struct Made {
    descriptor: Descriptor,
    diff_id: Sha256,
    layer: Layer,
}

/// Makes the one layer of a tree: its tar goes to three readers at once.
fn make_layer(store: &Store, tree: &Tree, options: &PackageOptions) -> Result<Made, PackageError> {
    let (to_hasher, hashed) = pipeline::channel();
    let (to_parser, mut parsed) = pipeline::channel();
    let (to_compressor, compressed) = pipeline::channel();
    let contents = contents_of(store);
    let (written, diff_id, layer, blob) = std::thread::scope(|scope| {
        let hashing = scope.spawn(move || hashed.digest());
        let parsing = scope.spawn(move || layer::read(&mut parsed, &Named(store.algorithm())));
        let compressing = scope.spawn(move || measure(compressed, options));
        let mut pieces = Pieces::new(move |piece: bytes::Bytes| {
            let all = [&to_hasher, &to_parser, &to_compressor];
            // A reader that is gone has failed, and says why.
            if all.into_iter().all(|to| to.send(piece.clone()).is_ok()) {
                Ok(())
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        });
        let written =
            layer::write_tar(tree, layer::TarKind::Layer, &contents, &mut pieces).map(drop);
        let finished = pieces.finish().map(drop);
        let written = written.and(finished.map_err(WriteTarError::Write));
        (written, join(hashing), join(parsing), join(compressing))
    });
    let (digest, size) = blob.map_err(PackageError::Compress)?;
    let layer = layer.map_err(PackageError::Parse)?;
    written.map_err(PackageError::Tar)?;
    let recipe = options.recipe;
    Ok(Made {
        descriptor: Descriptor {
            media_type: recipe.compression().media_type().into(),
            digest,
            size,
            annotations: [(ANNOTATION_COMPRESSION.to_owned(), recipe.to_string())].into(),
            platform: None,
        },
        diff_id,
        layer,
    })
}

/// Returns the digest and the length of a tar's compressed form.
fn measure(mut tar: PieceReader, options: &PackageOptions) -> io::Result<(Sha256, u64)> {
    let mut out = Measured::default();
    let mut compressor = Compressor::new(options.recipe, options.threads.get(), &mut out)?;
    io::copy(&mut tar, &mut compressor)?;
    compressor.finish()?;
    Ok((Sha256(out.hasher.finalize().into()), out.len))
}

/// Hashes and counts what is written.
#[derive(Default)]
struct Measured {
    hasher: sha2::Sha256,
    len: u64,
}

impl Write for Measured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Names contents by their digest without storing them: the store has them already.
struct Named(Algorithm);

impl Contents for Named {
    fn put(&self, content: &mut dyn Read, size: u64) -> Result<FileContent, PutError> {
        if size <= INLINE_MAX as u64 {
            let mut bytes = Vec::new();
            content
                .take(size)
                .read_to_end(&mut bytes)
                .map_err(PutError::Read)?;
            return self.put_bytes(&bytes);
        }
        let (id, found) = verity::digest_reader(self.0, content).map_err(PutError::Read)?;
        object(id, size, found)
    }

    fn put_sparse(&self, data: &mut dyn Read, map: &SparseMap) -> Result<FileContent, PutError> {
        let size = map.size();
        if size <= INLINE_MAX as u64 {
            return self.put(&mut map.expand(data), size);
        }
        let (id, found) = map.digest(self.0, data).map_err(PutError::Read)?;
        object(id, size, found)
    }

    fn put_bytes(&self, bytes: &[u8]) -> Result<FileContent, PutError> {
        if bytes.len() <= INLINE_MAX {
            return Ok(FileContent::Inline(bytes.into()));
        }
        Ok(FileContent::Object {
            id: verity::digest(self.0, bytes),
            size: bytes.len() as u64,
        })
    }
}

/// Names a content that was hashed, if it was as long as it should be.
fn object(id: bedplate_model::ObjectId, size: u64, found: u64) -> Result<FileContent, PutError> {
    if found == size {
        Ok(FileContent::Object { id, size })
    } else {
        Err(PutError::WrongSize {
            wanted: size,
            found,
        })
    }
}

/// Returns what opens the contents of files for a tar; each is checked while it is read.
#[expect(
    clippy::elidable_lifetime_names,
    reason = "elided, it would mean the content's lifetime inside the signature of `Fn`"
)]
pub(crate) fn contents_of<'a>(
    store: &'a Store,
) -> impl Fn(&FileContent) -> io::Result<Box<dyn Read + 'a>> + 'a {
    |content| match store.read_content(content) {
        Ok(reader) => Ok(reader),
        Err(error) => Err(io::Error::other(error)),
    }
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Returns the newest time in a tree.
fn newest(tree: &Tree) -> i64 {
    let of = |id: NodeId| tree.node(id).metadata.mtime.seconds;
    tree.walk()
        .map(|(_, id)| of(id))
        .fold(of(Tree::ROOT), i64::max)
}

/// Prints a time as OCI documents have it.
fn rfc3339(seconds: i64) -> String {
    // Outside of the years 0 to 9999 there is no such text: the epoch stands for it.
    jiff::Timestamp::from_second(seconds)
        .unwrap_or_default()
        .to_string()
}

/// Why an image could not be packaged.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its tar could not be written.
    #[error("cannot make a layer of the image")]
    Tar(#[source] WriteTarError),
    /// Its own tar could not be read again.
    #[error("cannot take the image's own layer apart")]
    Parse(#[source] LayerError),
    /// It could not be compressed.
    #[error("cannot compress the image's layer")]
    Compress(#[source] io::Error),
    /// A document could not be printed.
    #[error("cannot write the image's documents")]
    Json(#[source] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_as_oci_has_them() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339(i64::MAX), "1970-01-01T00:00:00Z");
    }
}
