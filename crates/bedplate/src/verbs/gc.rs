//! `gc`: removes what no name, deployment or mount reaches.

use anyhow::Context as _;
use bedplate_store::GcPolicy;
use serde::Serialize;

use crate::Answer;
use crate::cli::Gc;
use crate::context::Context;
use crate::render::{bytes, json};

/// What was removed, for programs.
#[derive(Serialize)]
struct Report {
    dry_run: bool,
    removed: u64,
    freed_bytes: u64,
    kept: u64,
    abandoned_transactions: u64,
}

pub(super) fn run(gc: &Gc, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let report = store
        .gc(&GcPolicy::default(), gc.dry_run)
        .with_context(|| format!("cannot collect garbage in {}", store.path().display()))?;
    if gc.json {
        let report = Report {
            dry_run: gc.dry_run,
            removed: report.removed.len() as u64,
            freed_bytes: report.freed_bytes(),
            kept: report.kept,
            abandoned_transactions: report.abandoned,
        };
        json(context.out, &report)?;
        return Ok(Answer::Yes);
    }
    if gc.dry_run {
        for (item, length) in &report.removed {
            writeln!(context.out, "{item}  {}", bytes(*length))?;
        }
    }
    writeln!(
        context.out,
        "{} {} items with {}; {} stay",
        if gc.dry_run {
            "would remove"
        } else {
            "removed"
        },
        report.removed.len(),
        bytes(report.freed_bytes()),
        report.kept,
    )?;
    Ok(Answer::Yes)
}
