//! `undeploy`: a deployment goes.

use anyhow::Context as _;
use bedplate_deploy::Machine;
use serde_json::json;

use crate::Answer;
use crate::cli::Undeploy;
use crate::context::Context;
use crate::render;

pub(super) fn run(undeploy: &Undeploy, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let host = context.machine()?;
    let machine = Machine::open(&host)?;
    let which = &undeploy.deployment;
    let attempted = || format!("cannot undeploy {which}");
    let plan = if undeploy.dry_run {
        machine.plan_undeploy(which).with_context(attempted)?
    } else {
        let store = context.store()?;
        let plan = machine.undeploy(&store, which).with_context(attempted)?;
        machine.publish().with_context(attempted)?;
        plan
    };
    let deployment = &plan.deployment;
    if undeploy.json {
        let outcome = json!({
            "deployment": deployment.id,
            "cancels": plan.cancels,
            "last_previous": plan.last_previous,
            "done": !undeploy.dry_run,
        });
        render::json(context.out, &outcome)?;
        return Ok(Answer::Yes);
    }
    let what = if undeploy.dry_run { "would be" } else { "is" };
    let (id, title) = (deployment.id, &deployment.title);
    writeln!(context.out, "deployment {id} ({title}) {what} removed")?;
    if plan.cancels {
        writeln!(context.out, "what was staged {what} cancelled")?;
    }
    if plan.last_previous {
        writeln!(context.out, "nothing {what} left to roll back to")?;
    }
    Ok(Answer::Yes)
}
