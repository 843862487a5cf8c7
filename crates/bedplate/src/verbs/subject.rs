//! What a person may name where both an image and a directory make sense.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::Context as _;
use bedplate_model::{Algorithm, ImageSelector, RootDigest, Tree, TreePath};
use bedplate_store::diff::{Package, SummaryError, packages, packages_of_directory};
use bedplate_store::{DigestOnly, Look, Scope, Store, Unsteady};

use crate::blame::{Refusal, sentence};
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

/// One side of a comparison.
pub(super) struct Side {
    pub(super) tree: Tree,
    pub(super) packages: Option<Vec<Package>>,
    /// Why its packages cannot be read, where it has a database that is broken.
    pub(super) broken_packages: Option<String>,
    /// What a directory has beyond the tree.
    pub(super) beyond: Beyond,
}

/// What a look at a directory did not take.
#[derive(Default)]
pub(super) struct Beyond {
    /// What is no part of an image.
    pub(super) left_out: Vec<TreePath>,
    /// What changed while it was read.
    pub(super) unsteady: Vec<(TreePath, Unsteady)>,
}

/// Reads two of them at once, to compare them: directories may change meanwhile.
pub(super) fn read_both(
    [old, new]: [&Subject; 2],
    context: &Context<'_>,
) -> anyhow::Result<[Side; 2]> {
    let (old, new) = (old.find(context)?, new.find(context)?);
    let (old, new) = thread::scope(|scope| {
        let old = scope.spawn(|| old.look());
        let new = new.look();
        let old = old.join();
        (old.unwrap_or_else(|panic| resume_unwind(panic)), new)
    });
    Ok([old?, new?])
}

/// Finds out whether a directory is the root of the running system.
fn scope_of(directory: &Path) -> anyhow::Result<Scope> {
    let identity = |path: &Path| {
        let found =
            fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        anyhow::Ok((found.dev(), found.ino()))
    };
    Ok(Scope::of(identity(directory)?, identity(Path::new("/"))?))
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

fn read_tree(store: &Store, name: &ImageSelector, root: &RootDigest) -> anyhow::Result<Tree> {
    let tree = store.tree(root);
    tree.with_context(|| format!("cannot read {name}"))
}

impl Side {
    /// Puts a side together. A database of packages that is broken keeps nobody from comparing the rest.
    fn new(
        packages: Result<Option<Vec<Package>>, SummaryError>,
        tree: Tree,
        beyond: Beyond,
    ) -> anyhow::Result<Self> {
        let (packages, broken_packages) = match packages {
            Ok(packages) => (packages, None),
            Err(error @ (SummaryError::Parse { .. } | SummaryError::ReadFile { .. })) => {
                (None, Some(sentence(&error)))
            }
            // The store is damaged, and says more itself.
            Err(error @ SummaryError::Read { .. }) => return Err(error.into()),
        };
        Ok(Self {
            tree,
            packages,
            broken_packages,
            beyond,
        })
    }
}

impl Source<'_> {
    /// Reads to compare: a directory as it is found, whatever happens in it meanwhile.
    fn look(&self) -> anyhow::Result<Side> {
        let path = match self {
            Self::Directory(path) => path,
            Self::Image { name, store, root } => {
                let tree = read_tree(store, name, root)?;
                return Side::new(packages(store, &tree), tree, Beyond::default());
            }
        };
        let Look {
            tree,
            left_out,
            unsteady,
        } = bedplate_store::look(path, scope_of(path)?, &DigestOnly(Algorithm::Sha256), &())?;
        let packages = packages_of_directory(path, &tree);
        Side::new(packages, tree, Beyond { left_out, unsteady })
    }

    fn read(&self) -> anyhow::Result<Contents> {
        match self {
            Self::Directory(path) => {
                let contents = DigestOnly(Algorithm::Sha256);
                let tree = bedplate_store::scan(path, &contents, &())?;
                let packages = packages_of_directory(path, &tree)?;
                Ok((tree, packages))
            }
            Self::Image { name, store, root } => {
                let tree = read_tree(store, name, root)?;
                let packages = packages(store, &tree)?;
                Ok((tree, packages))
            }
        }
    }
}
