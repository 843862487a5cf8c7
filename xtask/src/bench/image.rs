//! Writing the EROFS image of a tree that the store holds already, without reading any file again.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bedplate_model::{
    Content, ErofsVersion, FileContent, Metadata, Name, Node, ObjectId, RootDigest, Tree,
};
use bedplate_store::{Store, erofs};

use super::sample::Samples;

/// Writes the image with this root digest `times` times over, to memory.
pub(super) fn measure(store: &Path, root: &str, times: usize) -> Result<Samples> {
    let root: RootDigest = root.parse().context("reading the root digest")?;
    let store = Store::open(store).context("opening the store")?;
    let tree = store.tree(&root).context("reading the tree")?;
    let options = erofs::Options {
        version: root.erofs,
        hard_links: erofs::HardLinks::Keep,
    };
    let mut samples = Samples::default();
    for _ in 0..times {
        let mut image = Vec::new();
        let started = Instant::now();
        erofs::write(&tree, &options, &mut image).context("writing the image")?;
        samples.take_wall(started.elapsed());
    }
    Ok(samples)
}

/// `cargo xtask bench inside WORK …`: what is measured in a process of its own, from outside.
pub(super) fn inside(work: &str, arguments: &[&str]) -> Result<()> {
    match (work, arguments) {
        ("erofs", [files]) => made_up(files.parse().context("reading the number of files")?),
        _ => bail!("`bench inside` has no such work"),
    }
}

/// Makes a tree of so many files in memory, and writes its image to nowhere.
fn made_up(files: u64) -> Result<()> {
    let tree = tree_of((0..files).map(|number| {
        // No two files have the same content, as it is with objects.
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        FileContent::Object {
            id: ObjectId::Sha256(digest),
            size: 10_000 + number,
        }
    }))?;
    let options = erofs::Options {
        version: ErofsVersion::V1,
        hard_links: erofs::HardLinks::Keep,
    };
    erofs::write(&tree, &options, &mut std::io::sink()).context("writing the image")?;
    Ok(())
}

/// A tree of files with these contents, a hundred in each directory.
pub(super) fn tree_of(contents: impl IntoIterator<Item = FileContent>) -> Result<Tree> {
    let mut tree = Tree::new(Metadata::root_owned(0o755));
    let mut directory = Tree::ROOT;
    for (number, content) in contents.into_iter().enumerate() {
        if number % 100 == 0 {
            let node = Node::new(Metadata::root_owned(0o755), Content::empty_directory());
            directory = tree.insert(Tree::ROOT, name(number)?, node)?;
        }
        let node = Node::new(Metadata::root_owned(0o644), Content::File(content));
        tree.insert(directory, name(number)?, node)?;
    }
    Ok(tree)
}

fn name(number: usize) -> Result<Name> {
    Ok(Name::try_from(format!("entry-{number}").as_str())?)
}
