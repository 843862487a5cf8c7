//! `commit`: stores a directory as an image, exactly as it lies on the disk.
//!
//! Files that have not changed since the last commit are not read again, unless `--no-cache` is given.

use std::path::Path;

use anyhow::Context as _;
use bedplate_model::{ImageName, RootDigest, RuleSet, Tree};
use bedplate_store::{CommitError, PutError, Remembering, Store, Transaction};
use serde::Serialize;

use crate::Answer;
use crate::blame::Refusal;
use crate::cli::Commit;
use crate::context::{Context, tag_name};
use crate::render::json;
use crate::render::progress::Progress;

/// What was stored, for programs.
#[derive(Serialize)]
struct Stored {
    name: String,
    root_digest: String,
}

pub(super) fn run(commit: &Commit, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let name = tag_name(&commit.name)?;
    let store = context.writable_store()?;
    let attempted = || format!("cannot commit {}", commit.directory.display());
    let [of_store, of_tree] = [store.path(), &commit.directory].map(Path::canonicalize);
    if let (Ok(of_store), Ok(of_tree)) = (of_store, of_tree)
        && of_tree.starts_with(&of_store)
    {
        return Err(Refusal::usage(
            format!("{}: it is in the store itself", attempted()),
            "name the directory of a system; `cp -a` copies a store",
        )
        .into());
    }
    let progress = Progress::new(context.quiet);
    let cached = if commit.no_cache {
        None
    } else {
        commit_cached(&store, commit, &name, &progress, context).with_context(attempted)?
    };
    let root = if let Some(root) = cached {
        root
    } else {
        let transaction = store.begin().with_context(attempted)?;
        let tree = bedplate_store::scan(&commit.directory, &transaction, &progress)
            .with_context(attempted)?;
        name_tree(transaction, &tree, &name, context).with_context(attempted)?
    };
    progress.finish();
    draw(&name, root, commit.json, context)
}

/// Commits without reading what has not changed since the last time.
///
/// Returns `None` where a gc took what was not held yet, or it was damaged: then everything has to be read.
fn commit_cached(
    store: &Store,
    commit: &Commit,
    name: &ImageName,
    progress: &Progress,
    context: &Context<'_>,
) -> anyhow::Result<Option<RootDigest>> {
    let transaction = store.begin()?;
    let contents = Remembering::new(&transaction, &commit.directory);
    let tree = bedplate_store::scan(&commit.directory, &contents, progress)?;
    contents.save();
    match name_tree(transaction, &tree, name, context) {
        Ok(root) => Ok(Some(root)),
        Err(error) if was_lost(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn was_lost(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(PutError::Missing(_) | PutError::Damaged { .. })
    ) || matches!(error.downcast_ref(), Some(CommitError::Collected(_)))
}

/// Makes an image of a tree whose contents are in a transaction, and names and commits it.
pub(super) fn name_tree(
    transaction: Transaction<'_>,
    tree: &Tree,
    name: &ImageName,
    context: &Context<'_>,
) -> anyhow::Result<RootDigest> {
    let root = transaction.put_image(tree, RuleSet::Exact1)?;
    transaction.set_ref(name, context.target(root))?;
    transaction.commit()?;
    Ok(root)
}

/// Says what was stored.
pub(super) fn draw(
    name: &ImageName,
    root: RootDigest,
    as_json: bool,
    context: &mut Context<'_>,
) -> anyhow::Result<Answer> {
    if as_json {
        let stored = Stored {
            name: name.to_string(),
            root_digest: root.to_string(),
        };
        json(context.out, &stored)?;
    } else {
        writeln!(context.out, "{root}")?;
    }
    Ok(Answer::Yes)
}
