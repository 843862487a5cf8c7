//! What a person may name where both an image and a directory make sense.

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::Context as _;
use bedplate_model::{Algorithm, ImageSelector, RootDigest, Tree};
use bedplate_store::diff::{Package, packages, packages_of_directory};
use bedplate_store::{DigestOnly, Store};

use crate::blame::Refusal;
use crate::context::{Context, find_image};

/// Says where an image was not found, but a directory is called so.
fn or_directory(error: anyhow::Error, name: &ImageSelector) -> anyhow::Error {
    let written = name.to_string();
    // As it was typed: a name that is not complete has a host and a tag added.
    let typed = match name {
        ImageSelector::Name(revision) if revision.name().is_local() => {
            revision.name().repository().to_owned()
        }
        _ => written,
    };
    if error.is::<Refusal>() && Path::new(&typed).is_dir() {
        return Refusal::usage(
            format!("the store has no image {typed}"),
            format!("`./{typed}` is the directory of that name"),
        )
        .into();
    }
    error
}

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
    pub(super) fn read(&self, context: &Context<'_>) -> anyhow::Result<Contents> {
        self.find(context)?.read()
    }

    fn find(&self, context: &Context<'_>) -> anyhow::Result<Source<'_>> {
        match self {
            Self::Directory(path) => Ok(Source::Directory(path)),
            Self::Image(name) => {
                let store = context.store()?;
                let found = find_image(&store, name).map_err(|error| or_directory(error, name));
                let root = found?.target.root;
                Ok(Source::Image { name, store, root })
            }
        }
    }
}

/// A tree with its packages, where it has a database that is known.
pub(super) type Contents = (Tree, Option<Vec<Package>>);

/// Reads two of them at once.
pub(super) fn read_both(
    [old, new]: [&Subject; 2],
    context: &Context<'_>,
) -> anyhow::Result<[Contents; 2]> {
    let (old, new) = (old.find(context)?, new.find(context)?);
    let (old, new) = thread::scope(|scope| {
        let old = scope.spawn(|| old.read());
        let new = new.read();
        let old = old.join();
        (old.unwrap_or_else(|panic| resume_unwind(panic)), new)
    });
    Ok([old?, new?])
}

/// Where a tree is read from.
enum Source<'a> {
    Directory(&'a Path),
    Image {
        name: &'a ImageSelector,
        store: Store,
        root: RootDigest,
    },
}

impl Source<'_> {
    fn read(&self) -> anyhow::Result<Contents> {
        match self {
            Self::Directory(path) => {
                let contents = DigestOnly(Algorithm::Sha256);
                let tree = bedplate_store::scan(path, &contents, &())?;
                let packages = packages_of_directory(path, &tree)?;
                Ok((tree, packages))
            }
            Self::Image { name, store, root } => {
                let tree = store
                    .tree(root)
                    .with_context(|| format!("cannot read {name}"))?;
                let packages = packages(store, &tree)?;
                Ok((tree, packages))
            }
        }
    }
}
