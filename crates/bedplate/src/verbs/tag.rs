//! `tag` and `untag`: give images names, and take them away. One transaction for all names of a call: all
//! change at once, or none.

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
    let attempted = || "cannot untag".to_owned();
    let transaction = store.begin().with_context(attempted)?;
    for name in &untag.names {
        transaction.remove_ref(name);
    }
    transaction.commit().with_context(attempted)?;
    Ok(Answer::Yes)
}
