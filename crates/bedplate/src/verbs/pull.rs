//! `pull`: fetches an image from a registry; nothing has a name before everything was checked.

use anyhow::Context as _;
use bedplate_model::Sha256;
use bedplate_transport::{PullOptions, Pulled};
use serde::Serialize;

use crate::Answer;
use crate::cli::Pull;
use crate::context::Context;
use crate::render::progress::{Progress, TransferProgress};
use crate::render::{bytes, json};

/// What was fetched, for programs.
#[derive(Serialize)]
struct Fetched {
    name: String,
    root_digest: String,
    manifest_digest: Sha256,
    layers: usize,
    layers_reused: usize,
    bytes_fetched: u64,
}

pub(super) fn run(pull: &Pull, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.writable_store()?;
    let client = context.client(&pull.remote)?;
    let options = PullOptions {
        layout: pull.from.clone(),
        ..PullOptions::new(context.host.now())
    };
    let progress = Progress::new(context.quiet);
    let pulled = client
        .pull(
            &store,
            &pull.name,
            &options,
            &TransferProgress::new(&progress),
        )
        .with_context(|| format!("cannot pull {}", pull.name))?;
    progress.finish();
    let out = &mut *context.out;
    if pull.json {
        let fetched = Fetched {
            name: pull.name.to_string(),
            root_digest: pulled.root.to_string(),
            manifest_digest: pulled.manifest,
            layers: pulled.layers,
            layers_reused: pulled.layers_reused,
            bytes_fetched: pulled.bytes_fetched,
        };
        json(out, &fetched)?;
        return Ok(Answer::Yes);
    }
    writeln!(out, "Image:     {}", pull.name)?;
    writeln!(out, "Root:      {}", pulled.root)?;
    writeln!(out, "Manifest:  {}", pulled.manifest)?;
    writeln!(out, "Fetched:   {}", fetched(&pulled))?;
    Ok(Answer::Yes)
}

/// Says what a pull cost.
pub(super) fn fetched(pulled: &Pulled) -> String {
    format!(
        "{} ({} of {} layers were there)",
        bytes(pulled.bytes_fetched),
        pulled.layers_reused,
        pulled.layers
    )
}
