//! `commit`: stores a directory as an image, exactly as it lies on the disk.

use anyhow::Context as _;
use bedplate_model::RuleSet;
use serde::Serialize;

use crate::Answer;
use crate::cli::Commit;
use crate::context::{Context, tag_name};
use crate::render::json;
use crate::render::progress::Progress;

/// What was stored, for programs.
#[derive(Serialize)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) root_digest: String,
}

pub(super) fn run(commit: &Commit, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let name = tag_name(&commit.name)?;
    let store = context.writable_store()?;
    let attempted = || format!("cannot commit {}", commit.directory.display());
    let transaction = store.begin().with_context(attempted)?;
    let progress = Progress::new(context.quiet);
    let tree =
        bedplate_store::scan(&commit.directory, &transaction, &progress).with_context(attempted)?;
    let root = transaction
        .put_image(&tree, RuleSet::Exact1)
        .with_context(attempted)?;
    transaction
        .set_ref(&name, context.target(root))
        .with_context(attempted)?;
    transaction.commit().with_context(attempted)?;
    progress.finish();
    if commit.json {
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
