//! The content of a new root: a directory that `mkfs.ext4` copies.
//!
//! ```text
//! bedplate/store/…          a store of its own: the image, its objects, its documents, one ref
//! bedplate/record.json      the first record, in a slot
//! bedplate/record.next      the slot of the next one, preallocated
//! bedplate/deployments/     empty: early boot makes what belongs to one deployment
//! ```
//!
//! Invariant: the image has its digest again when it is written from its tree, so what is installed
//! is what the plan says.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bedplate_model::record::Record;
use bedplate_model::{ImageName, ObjectId, RootDigest, Sha256, Tree, layout, oci};
use bedplate_store::{
    BeginError, CommitError, CreateError, PutError, ReadStoreError, RefTarget, Store, objects_of,
};

use crate::record_file::{self, WriteRecordError};

/// Fills `staging` with the content of a root.
pub(crate) fn stage(
    source: &Store,
    tree: &Tree,
    target: &RefTarget,
    name: &ImageName,
    record: &Record,
    staging: &Path,
) -> Result<(), ContentError> {
    let write = |path: &Path, source| ContentError::Write {
        path: path.to_owned(),
        source,
    };
    let make = |path: &str| {
        let path = staging.join(path);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| write(&path, error))
    };
    make(layout::BEDPLATE)?;
    make(layout::DEPLOYMENTS)?;

    // 1. The store: objects by link where that is possible, the rest through its own front door.
    let store = Store::create(&staging.join(layout::STORE))?;
    for id in objects_of(tree) {
        bring(source, &store, &id)?;
    }
    let transaction = store.begin()?;
    let root = transaction.put_image(tree, target.root.rules)?;
    if root != target.root {
        return Err(ContentError::OtherRoot {
            wanted: target.root,
            found: root,
        });
    }
    for blob in [target.manifest, target.config].into_iter().flatten() {
        transaction.put_blob(&source.blob(&blob)?)?;
    }
    for diff_id in diff_ids(source, target.config)? {
        if let Some(table) = source.layer(&diff_id)? {
            transaction.put_layer(diff_id, &table)?;
        }
    }
    transaction.set_ref(name, target.clone())?;
    transaction.commit()?;

    // 2. The record and the slot of the next one.
    for (path, bytes) in [
        (layout::RECORD, record_file::slot(record)?),
        (layout::RECORD_NEXT, record_file::EMPTY_SLOT.to_vec()),
    ] {
        let path = staging.join(path);
        File::options()
            .write(true)
            .create_new(true)
            .mode(record_file::MODE)
            .open(&path)
            .and_then(|mut file| file.write_all(&bytes))
            .map_err(|error| write(&path, error))?;
    }
    Ok(())
}

/// Brings one object over: as a link, or else as a copy.
///
/// Its content is not checked here. The first boot seals every object and compares what the kernel
/// measured with its name, before anything is read.
fn bring(source: &Store, destination: &Store, id: &ObjectId) -> Result<(), ContentError> {
    let path = id.object_path();
    let from = source.objects_dir().join(&path);
    let to = destination.objects_dir().join(&path);
    let error = |source| ContentError::Object { id: *id, source };
    if let Some(parent) = to.parent() {
        match fs::DirBuilder::new().mode(0o700).create(parent) {
            Err(problem) if problem.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error(problem));
            }
            // It is there, or it is there now.
            Ok(()) | Err(_) => {}
        }
    }
    let opened = source.open_object(id)?;
    let ours = rustix::process::geteuid().as_raw();
    // A link keeps its owner, and mkfs copies that; what belongs to somebody else is copied.
    if opened.metadata().map_err(error)?.uid() == ours && fs::hard_link(&from, &to).is_ok() {
        return Ok(());
    }
    let mut copy = File::options()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(&to)
        .map_err(error)?;
    io::copy(&mut &opened, &mut copy).map_err(error)?;
    Ok(())
}

/// Lists the layers that an image's config names.
fn diff_ids(source: &Store, config: Option<Sha256>) -> Result<Vec<Sha256>, ContentError> {
    let Some(digest) = config else {
        return Ok(Vec::new());
    };
    serde_json::from_slice::<oci::Config>(&source.blob(&digest)?)
        .map(|config| config.rootfs.diff_ids)
        .map_err(|source| ContentError::Config { digest, source })
}

/// Why the content of a root could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The new store could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Its transaction could not begin.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// Something could not be read from the source.
    #[error(transparent)]
    Read(#[from] ReadStoreError),
    /// Something could not be put into the new store.
    #[error("cannot fill the new store")]
    Put(#[from] PutError),
    /// The new store could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// An object could not be brought over.
    #[error("cannot bring over object {id}")]
    Object {
        /// The object.
        id: ObjectId,
        /// Why.
        source: io::Error,
    },
    /// The image has another digest when it is written again.
    #[error("the image {wanted} became {found} when it was written again")]
    OtherRoot {
        /// What it should be.
        wanted: RootDigest,
        /// What it is.
        found: RootDigest,
    },
    /// The config is not one.
    #[error("the image's config {digest} cannot be read")]
    Config {
        /// The config.
        digest: Sha256,
        /// Why.
        source: serde_json::Error,
    },
    /// The record cannot be written.
    #[error(transparent)]
    Record(#[from] WriteRecordError),
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
