//! Writing the EROFS image of a tree that the store holds already, without reading any file again.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use bedplate_model::RootDigest;
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
