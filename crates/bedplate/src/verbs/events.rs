//! `events`: who changed what on this machine, when, why, and from which digest to which.

use std::path::Path;

use anyhow::Context as _;
use bedplate_deploy::events::{self, Event, What};
use bedplate_model::layout;

use crate::Answer;
use crate::cli::Events;
use crate::context::Context;
use crate::render::table::Table;
use crate::render::{json, moment, short};

pub(super) fn run(arguments: &Events, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    context.require_machine()?;
    let events = events::read(Path::new(layout::SYSROOT)).context("cannot tell what happened")?;
    let shown = arguments.lines.unwrap_or(events.len());
    let events = &events[events.len().saturating_sub(shown)..];
    if arguments.json {
        json(context.out, &events)?;
        return Ok(Answer::Yes);
    }
    let mut table = Table::new([
        "TIME", "WHO", "COMMAND", "WHAT", "IMAGE", "FROM", "TO", "WHY",
    ]);
    for event in events {
        table.row(cells(event));
    }
    table.write(context.out)?;
    Ok(Answer::Yes)
}

fn cells(event: &Event) -> [String; 8] {
    let image = match &event.version {
        Some(version) => format!("{} {version}", event.image),
        None => event.image.to_string(),
    };
    [
        moment(event.time),
        event.who.clone(),
        event.command.clone(),
        format!("{} {}", event.deployment, word(event.what)),
        image,
        short(&event.from.to_string()).to_owned(),
        short(&event.to.to_string()).to_owned(),
        event.reason.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

fn word(what: What) -> &'static str {
    match what {
        What::Staged => "staged",
        What::Unstaged => "given up",
        What::Tried => "boots next, on trial",
        What::Proven => "proven",
        What::Unhealthy => "not healthy",
        What::Bad => "bad",
        What::Selected => "boots next",
        What::Pinned => "pinned",
        What::Unpinned => "unpinned",
        What::Removed => "removed",
        What::Gap => "(something is missing here)",
    }
}
