//! `fsck`: checks every object, image and name of the store.

use anyhow::Context as _;
use serde::Serialize;

use crate::Answer;
use crate::cli::Fsck;
use crate::context::Context;
use crate::render::{bytes, json};

/// What was found, for programs.
#[derive(Serialize)]
struct Report {
    items: u64,
    bytes: u64,
    findings: Vec<String>,
}

pub(super) fn run(fsck: &Fsck, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let mut findings = Vec::new();
    let report = store
        .fsck(&mut |finding| findings.push(crate::blame::sentence(&finding)))
        .with_context(|| format!("cannot check {}", store.path().display()))?;
    let answer = if findings.is_empty() {
        Answer::Yes
    } else {
        Answer::Damage
    };
    let out = &mut *context.out;
    if fsck.json {
        let report = Report {
            items: report.items,
            bytes: report.bytes,
            findings,
        };
        json(out, &report)?;
        return Ok(answer);
    }
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    writeln!(
        out,
        "checked {} items with {}: {}",
        report.items,
        bytes(report.bytes),
        match findings.len() {
            0 => "all is well".to_owned(),
            1 => "1 finding".to_owned(),
            count => format!("{count} findings"),
        },
    )?;
    Ok(answer)
}
