//! What the store says in the middle of a transfer.

use std::error::Error;

use bedplate_store::{BeginError, CommitError, PutError, ReadStoreError, RefsError};

/// Why the store does not take part in a transfer any more: one of its own errors.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It could not be read.
    #[error(transparent)]
    Read(#[from] ReadStoreError),
    /// Its refs could not be read or written.
    #[error(transparent)]
    Refs(#[from] RefsError),
    /// It takes nothing in.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// Something could not be stored.
    #[error(transparent)]
    Put(#[from] PutError),
    /// It could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl StoreError {
    /// Returns the store's own error, for who sorts errors by their types.
    pub fn own(&self) -> &(dyn Error + 'static) {
        match self {
            Self::Read(error) => error,
            Self::Refs(error) => error,
            Self::Begin(error) => error,
            Self::Put(error) => error,
            Self::Commit(error) => error,
        }
    }
}
