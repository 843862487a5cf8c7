//! `tag` and `untag`: give images names, and take them away. All names of a call change at once, or none;
//! only on a full disk names go one after another.

use anyhow::Context as _;

use crate::Answer;
use crate::blame::Refusal;
use crate::cli::{Tag, Untag};
use crate::context::{Context, find_image, tag_name};

pub(super) fn tag(tag: &Tag, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let image = find_image(&store, &tag.source)?.target;
    let attempted = || format!("cannot tag {}", tag.source);
    let transaction = store.begin().with_context(attempted)?;
    for name in &tag.names {
        transaction
            .set_ref(&tag_name(name)?, context.set_now(image.clone()))
            .with_context(attempted)?;
    }
    transaction.commit().with_context(attempted)?;
    Ok(Answer::Yes)
}

pub(super) fn untag(untag: &Untag, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let known = store.refs().context("cannot list the names of the store")?;
    for name in &untag.names {
        // Exactly what is there can be taken away; a typing error must not pass for success.
        if !known.iter().any(|(known, _)| known == name) {
            return Err(Refusal::usage(
                format!("the store has no name {name}"),
                "`bedplate images` lists the names as they are taken away",
            )
            .into());
        }
    }
    store.remove_refs(&untag.names).context("cannot untag")?;
    Ok(Answer::Yes)
}
