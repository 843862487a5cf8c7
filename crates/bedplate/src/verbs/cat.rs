//! `cat`: prints files of an image; what comes out was checked against its digest.

use std::io;

use anyhow::Context as _;
use bedplate_model::Content;

use super::ls::find;
use crate::Answer;
use crate::blame::Refusal;
use crate::cli::Cat;
use crate::context::{Context, find_image};

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
        let mut content = store.read_content(content).with_context(attempted)?;
        io::copy(&mut content, &mut context.out).with_context(attempted)?;
    }
    Ok(Answer::Yes)
}
