//! Where a pull takes its documents and blobs from: a registry, or a layout on a disk.

use std::path::Path;
use std::sync::Arc;

use bedplate_model::{ImageName, Sha256};

use crate::client::Shared;
use crate::layout::{Layout, LayoutError};
use crate::registry::{Access, Fetched, RegistryError, Remote};

/// Where a pull takes its documents and blobs from.
#[derive(Clone)]
pub(crate) enum Origin {
    Registry(Remote),
    Layout(Layout),
}

/// Why it did not give something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OriginError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl Origin {
    /// Opens a layout, or finds out how an image's registry is reached.
    pub(crate) async fn open(
        shared: &Arc<Shared>,
        image: &ImageName,
        layout: Option<&Path>,
    ) -> Result<Self, OriginError> {
        Ok(match layout {
            Some(path) => Self::Layout(Layout::open(path)?),
            None => Self::Registry(Remote::open(shared, image, Access::Pull).await?),
        })
    }

    /// Fetches the manifest or index that an image's name stands for.
    pub(crate) async fn manifest(&self, image: &ImageName) -> Result<Fetched, OriginError> {
        Ok(match self {
            Self::Registry(remote) => {
                remote
                    .manifest(&image.manifest_reference(), image.digest())
                    .await?
            }
            Self::Layout(layout) => layout.manifest(image)?,
        })
    }

    /// Fetches a manifest by its digest.
    pub(crate) async fn manifest_by_digest(&self, digest: Sha256) -> Result<Fetched, OriginError> {
        Ok(match self {
            Self::Registry(remote) => remote.manifest(&digest.to_string(), Some(digest)).await?,
            Self::Layout(layout) => layout.manifest_by_digest(digest)?,
        })
    }
}
