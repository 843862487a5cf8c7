//! `df`: says what each image takes of the disk, what of that it shares, and what the store takes.

use anyhow::Context as _;
use bedplate_store::Usage;
use serde::Serialize;

use crate::Answer;
use crate::cli::Df;
use crate::context::Context;
use crate::render::table::Table;
use crate::render::{bytes, json, short};

/// What a store takes, for programs.
#[derive(Serialize)]
struct Report {
    images: Vec<Image>,
    store: Usage,
}

#[derive(Serialize)]
struct Image {
    image: String,
    /// Empty for garbage.
    names: Vec<String>,
    objects: u64,
    total_bytes: u64,
    unique_bytes: u64,
    shared_bytes: u64,
}

pub(super) fn run(df: &Df, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let attempted = || format!("cannot measure {}", store.path().display());
    let images = store.image_usage().with_context(attempted)?;
    let usage = store.usage().with_context(attempted)?;
    let images: Vec<Image> = images
        .into_iter()
        .map(|image| Image {
            image: image.image.to_string(),
            objects: image.objects,
            total_bytes: image.total_bytes,
            unique_bytes: image.unique_bytes,
            shared_bytes: image.shared_bytes(),
            names: image.names,
        })
        .collect();
    let out = &mut *context.out;
    if df.json {
        json(
            out,
            &Report {
                images,
                store: usage,
            },
        )?;
        return Ok(Answer::Yes);
    }
    let mut table = Table::new(["IMAGE", "TOTAL", "UNIQUE", "SHARED", "NAMES"]);
    for image in images {
        table.row([
            short(&image.image).to_owned(),
            bytes(image.total_bytes),
            bytes(image.unique_bytes),
            bytes(image.shared_bytes),
            if image.names.is_empty() {
                "- (gc removes it)".to_owned()
            } else {
                image.names.join(", ")
            },
        ]);
    }
    table.write(out)?;
    writeln!(out)?;
    let mut table = Table::new(["STORE", "COUNT", "SIZE"]);
    for (what, count, length) in [
        ("objects", Some(usage.objects), usage.object_bytes),
        ("images", Some(usage.images), usage.image_bytes),
        ("layers", Some(usage.layers), usage.layer_bytes),
        ("manifests and configs", Some(usage.blobs), usage.blob_bytes),
        ("staging", None, usage.staging_bytes),
        ("on disk", None, usage.disk_bytes),
    ] {
        table.row([
            what.to_owned(),
            count.map_or_else(String::new, |count| count.to_string()),
            bytes(length),
        ]);
    }
    table.write(out)?;
    Ok(Answer::Yes)
}
