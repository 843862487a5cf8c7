//! `import`: stores a tar file or stream as an image, exactly as it says.

use std::fs::File;
use std::io::{self, BufReader, Read};

use anyhow::Context as _;
use bedplate_model::Tree;
use bedplate_store::layer;

use super::commit::{draw, name_tree};
use crate::Answer;
use crate::blame::Refusal;
use crate::cli::Import;
use crate::context::{Context, tag_name};

/// What a tar is called that holds an image, and not what is in one.
fn archive_of_an_image(tree: &Tree) -> Option<&'static str> {
    let has = |name: &str| tree.child(Tree::ROOT, name.as_bytes()).is_some();
    match (has("oci-layout") && has("index.json"), has("manifest.json")) {
        _ if has("usr") || has("etc") || has("bin") => None,
        (_, true) => Some("a docker-archive"),
        (true, false) => Some("an oci-archive"),
        (false, false) => None,
    }
}

pub(super) fn run(import: &Import, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let name = tag_name(&import.name)?;
    let attempted = || format!("cannot import {}", import.file.display());
    let raw: Box<dyn Read + Send> = if import.file.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(&import.file).with_context(attempted)?)
    };
    let mut tar =
        bedplate_transport::decompress_any(BufReader::new(raw)).with_context(attempted)?;
    let store = context.writable_store()?;
    let transaction = store.begin().with_context(attempted)?;
    let tree = layer::import(&mut tar, &transaction).with_context(attempted)?;
    if let Some(kind) = archive_of_an_image(&tree) {
        return Err(Refusal::usage(
            format!(
                "{} is {kind}: a tar of an image's layers, not of a root directory",
                import.file.display()
            ),
            "put it into a registry (`bedplate serve --dir DIR` is one; `skopeo copy` sends such files), \
             and `bedplate pull` it from there",
        )
        .into());
    }
    let root = name_tree(transaction, &tree, &name, context).with_context(attempted)?;
    draw(&name, root, import.json, context)
}
