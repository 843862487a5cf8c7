//! `rollback`: the previous deployment boots next; a second rollback swaps back.

use anyhow::Context as _;
use bedplate_deploy::Machine;
use bedplate_deploy::rollback::RollbackPlan;
use serde_json::json;

use super::upgrade::reboot;
use crate::Answer;
use crate::cli::Rollback;
use crate::context::Context;
use crate::render;

pub(super) fn run(rollback: &Rollback, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let host = context.machine()?;
    let machine = Machine::open(&host)?;
    let attempted = "cannot roll back";
    let to = rollback.to.as_ref();
    let plan = if rollback.dry_run {
        machine.plan_rollback(to).context(attempted)?
    } else {
        let store = context.store()?;
        let plan = machine.rollback(&store, to).context(attempted)?;
        machine.publish().context(attempted)?;
        plan
    };
    draw(context, rollback, &plan)?;
    if rollback.apply {
        reboot(context, rollback.json)?;
    }
    Ok(Answer::Yes)
}

fn draw(context: &mut Context<'_>, rollback: &Rollback, plan: &RollbackPlan) -> anyhow::Result<()> {
    if rollback.json {
        let outcome = json!({
            "from": plan.from,
            "to": plan.to.id,
            "discards": plan.discards,
            "done": !rollback.dry_run,
        });
        return Ok(render::json(context.out, &outcome)?);
    }
    if let Some(staged) = plan.discards {
        writeln!(context.out, "the staged deployment {staged} is given up")?;
    }
    let what = if rollback.dry_run {
        "would boot"
    } else {
        "will boot"
    };
    writeln!(
        context.out,
        "deployment {} ({}) {what} next, instead of {}",
        plan.to.id, plan.to.title, plan.from
    )?;
    Ok(())
}
