//! `inspect`: shows everything about an image.

use std::collections::BTreeMap;

use anyhow::Context as _;
use bedplate_model::oci;
use bedplate_model::{Content, Sha256};
use bedplate_store::Found;
use serde::Serialize;

use crate::Answer;
use crate::cli::Inspect;
use crate::context::{Context, find_image};
use crate::render::{bytes, json, moment};

/// An image, for programs.
#[derive(Serialize)]
struct Image {
    /// Null where no name points at the image.
    name: Option<String>,
    root_digest: String,
    rule_set: &'static str,
    erofs_version: u32,
    algorithm: &'static str,
    /// Null until the image was built, pulled or pushed.
    manifest_digest: Option<Sha256>,
    config_digest: Option<Sha256>,
    /// When the name was set, in seconds since 1970; null without one.
    created: Option<i64>,
    size: u64,
    entries: u64,
    files: u64,
    labels: BTreeMap<String, String>,
    architecture: Option<String>,
    layers: Vec<Layer>,
    signature: Option<serde_json::Value>,
    policy: Option<serde_json::Value>,
}

#[derive(Serialize)]
struct Layer {
    digest: Sha256,
    media_type: String,
    size: u64,
}

pub(super) fn run(inspect: &Inspect, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let Found { name, target } = find_image(&store, &inspect.name)?;
    let attempted = || format!("cannot inspect {}", inspect.name);
    let tree = store.tree(&target.root).with_context(attempted)?;
    let (mut entries, mut files) = (0, 0);
    for (_, id) in tree.walk() {
        entries += 1;
        files += u64::from(matches!(tree.node(id).content, Content::File(_)));
    }
    let config: Option<oci::Config> = match &target.config {
        Some(digest) => {
            let bytes = store.blob(digest).with_context(attempted)?;
            Some(serde_json::from_slice(&bytes).with_context(attempted)?)
        }
        None => None,
    };
    let manifest: Option<oci::Manifest> = match &target.manifest {
        Some(digest) => {
            let bytes = store.blob(digest).with_context(attempted)?;
            Some(serde_json::from_slice(&bytes).with_context(attempted)?)
        }
        None => None,
    };
    let image = Image {
        name: name.as_ref().map(ToString::to_string),
        root_digest: target.root.to_string(),
        rule_set: target.root.rules.name(),
        erofs_version: target.root.erofs.number(),
        algorithm: target.root.image.algorithm().name(),
        manifest_digest: target.manifest,
        config_digest: target.config,
        created: name.map(|_| target.created),
        size: tree.file_bytes(),
        entries,
        files,
        architecture: config.as_ref().map(|config| config.architecture.clone()),
        labels: config
            .map(|config| config.config.labels)
            .unwrap_or_default(),
        layers: manifest
            .into_iter()
            .flat_map(|manifest| manifest.layers)
            .map(|layer| Layer {
                digest: layer.digest,
                media_type: layer.media_type,
                size: layer.size,
            })
            .collect(),
        signature: target.signature,
        policy: target.policy,
    };
    let out = &mut *context.out;
    if inspect.json {
        json(out, &image)?;
        return Ok(Answer::Yes);
    }
    writeln!(
        out,
        "Name:      {}",
        image
            .name
            .as_deref()
            .unwrap_or("none (only its digest finds it)")
    )?;
    writeln!(out, "Root:      {}", image.root_digest)?;
    match image.manifest_digest {
        Some(digest) => writeln!(out, "Manifest:  {digest}")?,
        None => writeln!(
            out,
            "Manifest:  none (the image was not built, pulled or pushed)"
        )?,
    }
    if let Some(created) = image.created {
        writeln!(out, "Created:   {}", moment(created))?;
    }
    writeln!(
        out,
        "Content:   {} in {} files, {} entries",
        bytes(image.size),
        image.files,
        image.entries
    )?;
    for layer in &image.layers {
        writeln!(out, "Layer:     {} {}", layer.digest, bytes(layer.size))?;
    }
    for (name, value) in &image.labels {
        writeln!(out, "Label:     {name}={value}")?;
    }
    Ok(Answer::Yes)
}
