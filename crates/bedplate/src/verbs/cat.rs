//! `cat`: prints files of an image; what comes out was checked against its digest.
//!
//! Before the first byte comes out where the file fits in memory; of a larger one, an error at the end says
//! that what came is not it.

use std::io;

use anyhow::Context as _;
use bedplate_model::Content;

use super::ls::find;
use crate::Answer;
use crate::blame::Refusal;
use crate::cli::Cat;
use crate::context::{Context, find_image};

/// Files of at most this size are read and checked before they are printed, in bytes.
const CHECKED_FIRST: u64 = 16 << 20;

pub(super) fn run(cat: &Cat, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let image = find_image(&store, &cat.name)?.target;
    let tree = store
        .tree(&image.root)
        .with_context(|| format!("cannot read {}", cat.name))?;
    for path in &cat.paths {
        let attempted = || format!("cannot print {} of {}", path.display(), cat.name);
        let id = find(&tree, path, &cat.name.to_string())?;
        let Content::File(content) = &tree.node(id).content else {
            return Err(Refusal::usage(
                format!(
                    "{} in {} is a {}",
                    path.display(),
                    cat.name,
                    tree.node(id).content.type_name()
                ),
                "`bedplate ls -l` shows what it is",
            )
            .into());
        };
        if content.size() <= CHECKED_FIRST {
            let bytes = store
                .read_small(content, CHECKED_FIRST)
                .with_context(attempted)?;
            context.out.write_all(&bytes).with_context(attempted)?;
            continue;
        }
        let mut content = store.read_content(content).with_context(attempted)?;
        io::copy(&mut content, &mut context.out).with_context(attempted)?;
    }
    Ok(Answer::Yes)
}
