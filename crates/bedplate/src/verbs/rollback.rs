//! `rollback`: the previous deployment boots next; a second rollback swaps back.

use anyhow::Context as _;
use bedplate_deploy::Machine;
use bedplate_deploy::rollback::RollbackPlan;

use super::upgrade::reboot;
use crate::Answer;
use crate::cli::Rollback;
use crate::context::Context;

pub(super) fn run(rollback: &Rollback, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let host = context.machine()?;
    let machine = Machine::open(&host)?;
    let attempted = "cannot roll back";
    if rollback.dry_run {
        let plan = machine.plan_rollback(rollback.to).context(attempted)?;
        draw(context, "would boot", &plan)?;
        return Ok(Answer::Yes);
    }
    let store = context.store()?;
    let plan = machine.rollback(&store, rollback.to).context(attempted)?;
    machine.publish().context(attempted)?;
    draw(context, "will boot", &plan)?;
    if rollback.apply {
        reboot(context)?;
    }
    Ok(Answer::Yes)
}

fn draw(context: &mut Context<'_>, what: &str, plan: &RollbackPlan) -> anyhow::Result<()> {
    if let Some(staged) = plan.discards {
        writeln!(context.out, "the staged deployment {staged} is given up")?;
    }
    writeln!(
        context.out,
        "deployment {} ({}) {what} next, instead of {}",
        plan.to.id, plan.to.title, plan.from
    )?;
    Ok(())
}
