//! `pin` and `unpin`: whether a deployment stays, whatever comes after it.

use anyhow::Context as _;
use bedplate_deploy::Machine;
use bedplate_deploy::pin::Pinned;
use serde_json::json;

use crate::Answer;
use crate::cli::Pin;
use crate::context::Context;
use crate::render;

pub(super) fn pin(arguments: &Pin, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let host = context.machine()?;
    let machine = Machine::open(&host)?;
    let store = context.store()?;
    let attempted = || format!("cannot pin {}", arguments.deployment);
    let pinned = machine
        .pin(&store, &arguments.deployment)
        .with_context(attempted)?;
    machine.publish().with_context(attempted)?;
    draw(context, arguments, &pinned)
}

pub(super) fn unpin(arguments: &Pin, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let host = context.machine()?;
    let machine = Machine::open(&host)?;
    let store = context.store()?;
    let attempted = || format!("cannot unpin {}", arguments.deployment);
    let pinned = machine
        .unpin(&store, &arguments.deployment)
        .with_context(attempted)?;
    machine.publish().with_context(attempted)?;
    draw(context, arguments, &pinned)
}

fn draw(context: &mut Context<'_>, arguments: &Pin, pinned: &Pinned) -> anyhow::Result<Answer> {
    let deployment = &pinned.deployment;
    if arguments.json {
        let outcome = json!({
            "deployment": deployment.id,
            "pinned": deployment.pinned,
            "changed": pinned.changed,
            "removed": pinned.removed,
        });
        render::json(context.out, &outcome)?;
        return Ok(Answer::Yes);
    }
    let what = match (deployment.pinned, pinned.changed, pinned.removed) {
        (true, true, _) => "is pinned",
        (true, false, _) => "was pinned already",
        (false, true, true) => "was kept by its pin alone, and is removed",
        (false, true, false) => "is not pinned any more",
        (false, false, _) => "was not pinned",
    };
    writeln!(
        context.out,
        "deployment {} ({}) {what}",
        deployment.id, deployment.title
    )?;
    Ok(Answer::Yes)
}
