//! `checkout`: restores an image to a directory, every attribute exactly; or without privileges, what a
//! plain user may restore.

use anyhow::Context as _;
use bedplate_store::{CheckoutOptions, Differing};

use crate::Answer;
use crate::cli::Checkout;
use crate::context::{Context, find_image};
use crate::render::{moment, note};

pub(super) fn run(checkout: &Checkout, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let target = find_image(&store, &checkout.name)?.target;
    let attempted = || format!("cannot check out {}", checkout.name);
    let tree = store.tree(&target.root).with_context(attempted)?;
    let options = CheckoutOptions {
        unprivileged: checkout.unprivileged,
    };
    let made = bedplate_store::checkout(&store, &tree, &checkout.directory, options)
        .with_context(attempted)?;
    if made.left_out > 0 {
        writeln!(
            context.out,
            "left out {} owners, device nodes, setuid bits and extended attributes, which only root can restore",
            made.left_out
        )?;
    }
    if let Differing {
        count,
        example: Some((path, wanted, found)),
    } = made.other_times
    {
        note(&format!(
            "the file system has no room for the times of {count} files; {} has {} instead of {}",
            path.display(),
            moment(found.seconds),
            moment(wanted.seconds),
        ));
    }
    if let Differing {
        count,
        example: Some((path, wanted, found)),
    } = made.other_modes
    {
        note(&format!(
            "{count} files have another mode than in the image, because it contradicts their access lists, or \
             because they are symbolic links, which have no other; {} has {found:04o} instead of {wanted:04o}",
            path.display(),
        ));
    }
    Ok(Answer::Yes)
}
