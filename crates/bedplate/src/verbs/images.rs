//! `images`: lists the names of the store and what they point at.

use std::collections::HashMap;
use std::io;

use anyhow::Context as _;
use bedplate_model::{RootDigest, Sha256};
use bedplate_store::Ref;
use serde::Serialize;

use crate::Answer;
use crate::blame::sentence;
use crate::cli::Images;
use crate::context::Context;
use crate::render::table::Table;
use crate::render::{ago, bytes, json, short};

/// One name, for programs.
#[derive(Serialize)]
struct Image {
    name: String,
    root_digest: RootDigest,
    manifest_digest: Option<Sha256>,
    /// When the name was set, in seconds since 1970.
    created: i64,
    /// The bytes of all files, each hard-linked one once; null where the image is damaged.
    size: Option<u64>,
}

pub(super) fn run(images: &Images, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let (refs, unreadable) = store
        .readable_refs()
        .context("cannot list the names of the store")?;
    let mut sizes: HashMap<RootDigest, Option<u64>> = HashMap::new();
    let mut damaged = None;
    let mut list = Vec::new();
    for Ref { name, target, .. } in refs {
        let size = *sizes.entry(target.root).or_insert_with(|| {
            let tree = store.tree(&target.root);
            tree.map(|tree| tree.file_bytes())
                .map_err(|error| damaged.get_or_insert((name.clone(), error)))
                .ok()
        });
        list.push(Image {
            name: name.to_string(),
            root_digest: target.root,
            manifest_digest: target.manifest,
            created: target.created,
            size,
        });
    }
    draw(images, list, context)?;
    // The others come first: what is damaged takes nothing from them.
    if let (Some((name, error)), true) = (damaged, unreadable.is_empty()) {
        return Err(error).with_context(|| format!("cannot read {name}"));
    }
    let all: Vec<String> = unreadable.iter().map(|error| sentence(error)).collect();
    match unreadable.into_iter().next() {
        None => Ok(Answer::Yes),
        Some(only) if all.len() == 1 => Err(only).context("cannot read a name of the store"),
        Some(first) => Err(first).context(format!(
            "cannot read {} names of the store ({})",
            all.len(),
            all.join("; ")
        )),
    }
}

fn draw(images: &Images, list: Vec<Image>, context: &mut Context<'_>) -> io::Result<()> {
    if images.json {
        return json(context.out, &list);
    }
    if context.quiet {
        return list
            .iter()
            .try_for_each(|image| writeln!(context.out, "{}", image.name));
    }
    let mut table = Table::new(["NAME", "ROOT DIGEST", "MANIFEST", "CREATED", "SIZE"]);
    for image in list {
        table.row([
            image.name,
            short(&image.root_digest.to_string()).to_owned(),
            image.manifest_digest.map_or_else(
                || "-".to_owned(),
                |digest| short(&digest.to_string()).to_owned(),
            ),
            ago(image.created, context.host.now()),
            image.size.map_or_else(|| "damaged".to_owned(), bytes),
        ]);
    }
    table.write(context.out)
}
