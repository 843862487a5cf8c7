//! `push`: sends an image to a registry.

use anyhow::Context as _;
use bedplate_model::{ImageSelector, Sha256};
use bedplate_transport::{PackageOptions, PushOptions};
use serde::Serialize;

use crate::Answer;
use crate::blame::Refusal;
use crate::cli::Push;
use crate::context::{Context, find_image, tag_name};
use crate::render::progress::{Progress, TransferProgress};
use crate::render::{bytes, json};

/// What was sent, for programs.
#[derive(Serialize)]
struct Sent {
    destination: String,
    manifest_digest: Sha256,
    remade: bool,
    layers: usize,
    layers_reused: usize,
    bytes_sent: u64,
}

pub(super) fn run(push: &Push, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let source = find_image(&store, &push.name)?.name.ok_or_else(|| {
        if let ImageSelector::Name(revision) = &push.name {
            return Refusal::usage(
                format!(
                    "{revision} is an earlier image, which has no name of its own to push it by"
                ),
                format!("give it one: `bedplate tag {revision} NAME`, then push that"),
            );
        }
        Refusal::usage(
            format!("{} has no name to push it by", push.name),
            "`bedplate tag` gives it one",
        )
    })?;
    let destination = match (&push.destination, &push.name) {
        (Some(destination), _) => tag_name(destination)?,
        (None, ImageSelector::Name(name)) if *name.name() == source => tag_name(&source)?,
        (None, _) => {
            return Err(Refusal::usage(
                format!("{} does not say where it goes", push.name),
                "name the DESTINATION behind it: HOST/REPOSITORY:TAG",
            )
            .into());
        }
    };
    let client = context.client(&push.remote)?;
    let options = PushOptions {
        package: PackageOptions {
            recipe: push.compression.into(),
            created: context.host.number("SOURCE_DATE_EPOCH"),
            ..PackageOptions::default()
        },
        ..PushOptions::default()
    };
    let progress = Progress::new(context.quiet);
    let pushed = client
        .push(
            &store,
            &source,
            &destination,
            &options,
            &TransferProgress::new(&progress),
        )
        .with_context(|| format!("cannot push {} to {destination}", push.name))?;
    progress.finish();
    let out = &mut *context.out;
    if push.json {
        let sent = Sent {
            destination: destination.to_string(),
            manifest_digest: pushed.manifest,
            remade: pushed.remade,
            layers: pushed.layers,
            layers_reused: pushed.layers_reused,
            bytes_sent: pushed.bytes_sent,
        };
        json(out, &sent)?;
        return Ok(Answer::Yes);
    }
    writeln!(out, "Image:     {destination}")?;
    writeln!(out, "Manifest:  {}", pushed.manifest)?;
    writeln!(
        out,
        "Sent:      {} ({} of {} layers were there)",
        bytes(pushed.bytes_sent),
        pushed.layers_reused,
        pushed.layers
    )?;
    if pushed.remade {
        writeln!(
            out,
            "note: the layers were compressed anew, so the manifest is a new one"
        )?;
    }
    Ok(Answer::Yes)
}
