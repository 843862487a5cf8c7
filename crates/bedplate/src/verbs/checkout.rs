//! `checkout`: restores an image to a directory, every attribute exactly.

use anyhow::Context as _;
use bedplate_store::CheckoutOptions;

use crate::Answer;
use crate::cli::Checkout;
use crate::context::{Context, find_image};

pub(super) fn run(checkout: &Checkout, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let target = find_image(&store, &checkout.name)?;
    let attempted = || format!("cannot check out {}", checkout.name);
    let tree = store.tree(&target.root).with_context(attempted)?;
    bedplate_store::checkout(
        &store,
        &tree,
        &checkout.directory,
        CheckoutOptions::default(),
    )
    .with_context(attempted)?;
    Ok(Answer::Yes)
}
