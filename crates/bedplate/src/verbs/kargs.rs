//! `kargs`: the kernel arguments of what boots next, and where each comes from; and changing them.

use std::io::{self, Write};

use anyhow::Context as _;
use bedplate_deploy::Machine;
use bedplate_deploy::kargs::{Edit, Karg, KargsChange, Outcome, Source};
use serde_json::json;

use super::upgrade::reboot;
use crate::Answer;
use crate::cli::Kargs;
use crate::context::Context;
use crate::render;

pub(super) fn run(arguments: &Kargs, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let edit = Edit {
        delete: arguments.delete.clone(),
        replace: arguments.replace.clone(),
        append: arguments.append.clone(),
    };
    let host = context.machine()?;
    let machine = Machine::open(&host)?;
    let store = context.store()?;
    if edit.is_empty() {
        let kargs = machine
            .kargs(&store)
            .context("cannot read the kernel arguments")?;
        if arguments.json {
            render::json(context.out, &kargs)?;
        } else {
            draw(context.out, &kargs.arguments)?;
        }
        return Ok(Answer::Yes);
    }
    let attempted = "cannot change the kernel arguments";
    let change = if arguments.dry_run {
        machine.plan_kargs(&store, &edit).context(attempted)?
    } else {
        let change = machine.change_kargs(&store, &edit).context(attempted)?;
        machine.publish().context(attempted)?;
        change
    };
    if arguments.json {
        render::json(context.out, &outcome(&change, !arguments.dry_run))?;
    } else {
        draw(context.out, &change.after.arguments)?;
        say(context.out, change.outcome, arguments.dry_run)?;
    }
    if arguments.apply && matches!(change.outcome, Outcome::Staged { .. }) {
        reboot(context, arguments.json)?;
    }
    Ok(Answer::Yes)
}

fn outcome(change: &KargsChange, done: bool) -> serde_json::Value {
    let (what, staged, gives_up) = match change.outcome {
        Outcome::Unchanged => ("unchanged", None, None),
        Outcome::Staged {
            deployment,
            replaces,
        } => ("staged", done.then_some(deployment), replaces),
        Outcome::Cancelled { staged } => ("cancelled", None, Some(staged)),
    };
    json!({
        "outcome": what,
        "staged": staged,
        "gives_up": gives_up,
        "arguments": change.after.arguments,
        "done": done,
    })
}

fn draw(out: &mut dyn Write, arguments: &[Karg]) -> io::Result<()> {
    for karg in arguments {
        let origin = match karg.origin {
            Source::Bedplate => "bedplate",
            Source::Image if karg.deleted => "image, deleted here",
            Source::Image => "image",
            Source::Local => "local",
        };
        let marker = if karg.deleted { '-' } else { ' ' };
        writeln!(out, "{marker} {:<40} {origin}", karg.argument)?;
    }
    Ok(())
}

fn say(out: &mut dyn Write, outcome: Outcome, dry_run: bool) -> io::Result<()> {
    let is = if dry_run { "would be" } else { "is" };
    match outcome {
        Outcome::Unchanged => writeln!(out, "nothing to do: they are so already"),
        Outcome::Cancelled { staged } => writeln!(
            out,
            "the staged deployment {staged} {is} given up: what boots without it has these"
        ),
        Outcome::Staged {
            deployment,
            replaces,
        } => {
            if let Some(id) = replaces {
                writeln!(out, "the staged deployment {id} {is} given up for it")?;
            }
            if dry_run {
                writeln!(out, "a new deployment would be staged")
            } else {
                writeln!(
                    out,
                    "staged as deployment {deployment}; it boots at the next reboot"
                )
            }
        }
    }
}
