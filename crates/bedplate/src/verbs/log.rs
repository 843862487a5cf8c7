//! `log`: shows how an image came to be: where its name points since when, and the steps that made it.

use anyhow::Context as _;
use bedplate_model::oci;
use bedplate_store::Found;
use serde::Serialize;

use crate::Answer;
use crate::cli::Log;
use crate::context::{Context, find_image};
use crate::render::{json, moment};

/// How an image came to be, for programs.
#[derive(Serialize)]
struct History {
    /// Null where no name points at the image.
    name: Option<String>,
    root_digest: String,
    manifest_digest: Option<String>,
    /// When the name was set, in seconds since 1970; null without one.
    set: Option<i64>,
    /// The steps that made the image, the last one first.
    steps: Vec<oci::History>,
}

pub(super) fn run(log: &Log, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let Found { name, target } = find_image(&store, &log.name)?;
    let attempted = || format!("cannot read the history of {}", log.name);
    let mut steps = match &target.config {
        Some(digest) => {
            let bytes = store.blob(digest).with_context(attempted)?;
            let config: oci::Config = serde_json::from_slice(&bytes).with_context(attempted)?;
            config.history
        }
        None => Vec::new(),
    };
    steps.reverse();
    let history = History {
        name: name.as_ref().map(ToString::to_string),
        root_digest: target.root.to_string(),
        manifest_digest: target.manifest.map(|digest| digest.to_string()),
        set: name.map(|_| target.created),
        steps,
    };
    let out = &mut *context.out;
    if log.json {
        json(out, &history)?;
        return Ok(Answer::Yes);
    }
    writeln!(out, "{}", history.name.as_deref().unwrap_or("no name"))?;
    if let Some(set) = history.set {
        writeln!(out, "  set       {}", moment(set))?;
    }
    writeln!(out, "  root      {}", history.root_digest)?;
    if let Some(manifest) = &history.manifest_digest {
        writeln!(out, "  manifest  {manifest}")?;
    }
    for step in &history.steps {
        writeln!(
            out,
            "  step      {}  {}",
            step.created.as_deref().unwrap_or("-"),
            step.created_by.as_deref().unwrap_or("-"),
        )?;
    }
    Ok(Answer::Yes)
}
