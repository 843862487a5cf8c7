//! `import`: stores a tar file or stream as an image, exactly as it says.

use std::fs::File;
use std::io::{self, BufReader, Read};

use anyhow::Context as _;
use bedplate_store::layer;

use super::commit::{draw, name_tree};
use crate::Answer;
use crate::cli::Import;
use crate::context::{Context, tag_name};

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
    let root = name_tree(transaction, &tree, &name, context).with_context(attempted)?;
    draw(&name, root, import.json, context)
}
