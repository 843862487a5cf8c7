//! Why a transaction failed.

use std::io;
use std::path::PathBuf;

use bedplate_model::human::Size;
use bedplate_model::{ObjectId, Sha256};

use crate::erofs;
use crate::item::Item;
use crate::layer::DecodeLayerError;
use crate::place::Misfit;
use crate::refs::RefsError;
use crate::store::BLOB_MAX;

/// Why a transaction could not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a transaction in {}", path.display())]
pub struct BeginError {
    /// The store.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Why something could not be put into a transaction.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The source could not be read.
    #[error("cannot read the content")]
    Read(#[source] io::Error),
    /// The source has another length than it was said to have.
    #[error("the content has {found} bytes instead of {wanted}")]
    WrongSize {
        /// The length that was promised.
        wanted: u64,
        /// The length that came; one more than wanted stands for "more".
        found: u64,
    },
    /// The store could not be written to.
    #[error("cannot write {what} to the store {}", path.display())]
    Write {
        /// What was written.
        what: String,
        /// The store.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file could not be sealed.
    #[error("cannot seal {item}")]
    Seal {
        /// What was sealed.
        item: Item,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel measures another digest than was computed: memory or disk are at fault.
    #[error("{item} was sealed, and the kernel measures another digest")]
    Measured {
        /// What was sealed.
        item: Item,
    },
    /// A manifest or config is larger than one that is read again.
    #[error("a manifest or config has {}, and at most {} are kept", Size(*.0), Size(BLOB_MAX))]
    BlobTooLarge(u64),
    /// A tree or ref names something that the store does not have.
    #[error("the store has no {0}")]
    Missing(Item),
    /// What the store has in its place cannot be it, and the right bytes are not at hand.
    #[error("{item} is damaged (the file {})", path.display())]
    Damaged {
        /// What is needed.
        item: Item,
        /// Its file.
        path: PathBuf,
        /// What is wrong with the file.
        source: Misfit,
    },
    /// The tree has objects of another algorithm than the store.
    #[error("the tree names the object {id}, which is not of the algorithm {}", wanted.name())]
    Algorithm {
        /// The object.
        id: ObjectId,
        /// The store's algorithm.
        wanted: bedplate_model::Algorithm,
    },
    /// The table of a layer cannot be decoded.
    #[error("cannot store the table of layer {diff_id}")]
    Layer {
        /// The layer.
        diff_id: Sha256,
        /// What is wrong with it.
        source: Box<DecodeLayerError>,
    },
    /// The tree cannot be written as an image.
    #[error("cannot make an image of the tree")]
    Image(#[source] erofs::WriteError),
}

/// Why a transaction could not be committed. Unless said otherwise, nothing happened.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// An earlier write failed, so that not everything is there.
    #[error("cannot commit to {}: an earlier write failed", .0.display())]
    Broken(PathBuf),
    /// Something could not be written, renamed or made durable.
    #[error("cannot commit to {}: {attempt}", path.display())]
    Write {
        /// The store.
        path: PathBuf,
        /// What was attempted.
        attempt: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A ref could not be read or changed.
    #[error(transparent)]
    Ref(#[from] RefsError),
    /// The image that a ref was to name has been collected in the meantime.
    #[error("cannot set a ref to {0}: it was removed from the store in the meantime")]
    Collected(Item),
}
