//! A registry as a source of repairs: what is damaged comes again out of the layers that it lay in.
//!
//! ```text
//! wanted ─→ manifest (by digest) ─→ config ─→ layers whose table names something wanted
//!                                                └─→ tar ─→ each body against the wanted digests
//! ```
//!
//! Invariant: a layer without anything that is wanted is not fetched; nothing of a layer is taken whose
//! own digest is not the wanted one.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::{Mutex, PoisonError};

use bedplate_model::oci::{Compression, Config, Descriptor, Manifest};
use bedplate_model::tree::INLINE_MAX;
use bedplate_model::{FileContent, ImageName, ObjectId, Sha256};
use bedplate_store::fsck::{Repair, RepairError, Source, SourceError};
use bedplate_store::layer::{Contents, Layer};
use bedplate_store::{Item, PutError, RefTarget, verity};

use super::{Ingest, PullError, PullOptions, find_config, find_manifest};
use crate::Client;
use crate::decompress::Budget;
use crate::event::Observer;
use crate::origin::Origin;

/// A registry that an image of the store came from.
#[derive(Debug)]
pub struct RegistrySource<'a> {
    client: &'a Client,
    /// The repository, with the manifest's digest.
    name: ImageName,
    manifest: Sha256,
    config: Option<Sha256>,
    options: &'a PullOptions,
}

impl<'a> RegistrySource<'a> {
    /// Makes a source of the registry that a name stands for; `None` where that is no registry, or the
    /// image never came from one.
    pub fn new(
        client: &'a Client,
        name: &ImageName,
        target: &RefTarget,
        options: &'a PullOptions,
    ) -> Option<Self> {
        let manifest = target.manifest.filter(|_| !name.is_local())?;
        Some(Self {
            client,
            name: name.by_digest(manifest),
            manifest,
            config: target.config,
            options,
        })
    }

    fn bring_from(&self, repair: &Repair<'_>) -> Result<(), BringError> {
        if !self.may_help(repair) {
            return Ok(());
        }
        let runtime = self.client.handle();
        let origin = runtime
            .block_on(self.options.open(self.client, &self.name))
            .map_err(PullError::from)?;
        let found = runtime.block_on(find_manifest(&origin, &self.name, self.options))?;
        let (fetched, manifest) = found;
        repair.put(Item::Blob(fetched.digest), &mut &fetched.bytes[..])?;
        let (bytes, config) = runtime.block_on(find_config(&origin, &manifest))?;
        repair.put(Item::Blob(manifest.config.digest), &mut &bytes[..])?;
        self.bring_layers(repair, &origin, &manifest, &config)
    }

    fn bring_layers(
        &self,
        repair: &Repair<'_>,
        origin: &Origin,
        manifest: &Manifest,
        config: &Config,
    ) -> Result<(), BringError> {
        // Never committed: it only holds what the layers' own contents would be put into.
        let transaction = repair
            .store()
            .begin()
            .map_err(|error| PullError::Store(error.into()))?;
        let bodies = Bodies {
            repair,
            failed: Mutex::default(),
        };
        let observer: &dyn Observer = &|_| {};
        let ingest = Ingest {
            client: self.client,
            store: repair.store(),
            transaction: &transaction,
            contents: &bodies,
            origin,
            observer,
            budget: Budget::new(self.options.unpacked_max),
            options: self.options,
        };
        for (blob, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            if !needs(repair, diff_id) {
                continue;
            }
            let layer = fetch(&ingest, blob, diff_id);
            // A store that cannot be written to is not the registry's fault.
            let failed = bodies
                .failed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(error) = failed {
                return Err(error.into());
            }
            repair.put_layer(*diff_id, &layer?)?;
        }
        Ok(())
    }

    /// Returns whether the image has, or may have, something that is wanted.
    fn may_help(&self, repair: &Repair<'_>) -> bool {
        let blobs = [Some(self.manifest), self.config];
        if blobs
            .into_iter()
            .flatten()
            .any(|digest| repair.wants(&Item::Blob(digest)))
        {
            return true;
        }
        let config = self.config.and_then(|digest| {
            let bytes = repair.store().blob(&digest).ok()?;
            serde_json::from_slice::<Config>(&bytes).ok()
        });
        match config {
            Some(config) => {
                let mut diff_ids = config.rootfs.diff_ids.iter();
                diff_ids.any(|diff_id| needs(repair, diff_id))
            }
            None => !repair.is_done(),
        }
    }
}

impl Source for RegistrySource<'_> {
    fn name(&self) -> String {
        self.name.to_string()
    }

    fn bring(&self, repair: &Repair<'_>) -> Result<(), SourceError> {
        self.bring_from(repair).map_err(|error| match error {
            BringError::Repair(error) => SourceError::Repair(error),
            BringError::Pull(error) => SourceError::Source(error),
        })
    }
}

/// Why a registry brought nothing more.
enum BringError {
    Repair(RepairError),
    Pull(Box<PullError>),
}

impl From<RepairError> for BringError {
    fn from(error: RepairError) -> Self {
        Self::Repair(error)
    }
}

impl<E: Into<PullError>> From<E> for BringError {
    fn from(error: E) -> Self {
        Self::Pull(Box::new(error.into()))
    }
}

fn fetch(ingest: &Ingest<'_>, blob: &Descriptor, diff_id: &Sha256) -> Result<Layer, PullError> {
    let compression = Compression::of_media_type(&blob.media_type).ok_or_else(|| {
        PullError::MediaType(bedplate_model::format::Shown(blob.media_type.clone()))
    })?;
    ingest.fetch_layer(blob, compression, diff_id)
}

/// Returns whether a layer has something that is wanted, as far as its table tells.
fn needs(repair: &Repair<'_>, diff_id: &Sha256) -> bool {
    let wanted: BTreeSet<Item> = repair.wanted();
    if wanted.contains(&Item::Layer(*diff_id)) {
        return true;
    }
    let table = repair.store().layer(diff_id).ok().flatten();
    match table.and_then(|table| Layer::decode(&table, diff_id).ok()) {
        Some(layer) => layer
            .objects()
            .any(|(id, _)| wanted.contains(&Item::Object(id))),
        // Without its table nobody knows, and any object may be in it.
        None => wanted.iter().any(|item| matches!(item, Item::Object(_))),
    }
}

/// Names the bodies of a layer's files, and keeps those that are wanted.
struct Bodies<'a> {
    repair: &'a Repair<'a>,
    /// The first failure of the store.
    failed: Mutex<Option<RepairError>>,
}

impl Bodies<'_> {
    fn fail(&self, error: RepairError) -> PutError {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert(error);
        PutError::Read(std::io::Error::other("the store cannot be repaired"))
    }
}

impl Contents for Bodies<'_> {
    fn put(&self, content: &mut dyn Read, size: u64) -> Result<FileContent, PutError> {
        let (id, found) = self
            .repair
            .put_unnamed(content, size)
            .map_err(|error| self.fail(error))?;
        if found != size {
            return Err(PutError::WrongSize {
                wanted: size,
                found,
            });
        }
        Ok(FileContent::Object { id, size })
    }

    fn put_bytes(&self, bytes: &[u8]) -> Result<FileContent, PutError> {
        if bytes.len() <= INLINE_MAX {
            return Ok(FileContent::Inline(bytes.into()));
        }
        let id: ObjectId = verity::digest(self.repair.store().algorithm(), bytes);
        self.repair
            .put(Item::Object(id), &mut &*bytes)
            .map_err(|error| self.fail(error))?;
        Ok(FileContent::Object {
            id,
            size: bytes.len() as u64,
        })
    }
}
