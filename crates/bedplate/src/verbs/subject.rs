//! What a person may name where both an image and a directory make sense.

use std::path::PathBuf;

use anyhow::Context as _;
use bedplate_model::{Algorithm, ImageSelector, Tree};
use bedplate_store::DigestOnly;
use bedplate_store::diff::{Package, packages, packages_of_directory};

use crate::context::{Context, find_image};

/// An image or a directory.
pub(super) enum Subject {
    Directory(PathBuf),
    Image(ImageSelector),
}

impl Subject {
    /// Reads a word: with a slash or a dot in front it is a directory, otherwise an image.
    pub(super) fn parse(word: &str) -> anyhow::Result<Self> {
        if word.starts_with(['/', '.']) {
            Ok(Self::Directory(word.into()))
        } else {
            Ok(Self::Image(word.parse()?))
        }
    }

    /// Reads the tree and its packages; the contents of a directory are hashed, not stored.
    pub(super) fn read(
        &self,
        context: &Context<'_>,
    ) -> anyhow::Result<(Tree, Option<Vec<Package>>)> {
        match self {
            Self::Directory(path) => {
                let contents = DigestOnly(Algorithm::Sha256);
                let tree = bedplate_store::scan(path, &contents, &())?;
                let packages = packages_of_directory(path, &tree)?;
                Ok((tree, packages))
            }
            Self::Image(name) => {
                let store = context.store()?;
                let target = find_image(&store, name)?.target;
                let tree = store
                    .tree(&target.root)
                    .with_context(|| format!("cannot read {name}"))?;
                let packages = packages(&store, &tree)?;
                Ok((tree, packages))
            }
        }
    }
}
