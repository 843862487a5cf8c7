//! Power cuts at any write of every operation on a store: see `testkit::powercut`.

use anyhow::{Context as _, Result};
use testkit::powercut::{Bench, OPERATIONS, Tally};

use crate::{packages, programs, run, workspace};

/// Cuts every operation `count` times, as `seed` chooses, and prints what became of them.
pub(crate) fn cut_all(seed: u64, count: usize) -> Result<()> {
    if !run::is_root() {
        println!("left out: power cuts need root, to mount what they leave");
        return Ok(());
    }
    packages::require(&[packages::POWER_CUTS])?;
    let bedplate = programs::build()?;
    let bench = Bench::prepare(&bedplate, &workspace::target("power-cuts"))
        .context("preparing the power cuts")?;
    let mut total = 0;
    for operation in OPERATIONS {
        let Tally {
            cuts,
            old,
            new,
            both,
        } = bench.cut(operation, count, seed)?;
        println!(
            "  {:<24} {cuts} cuts: {old} old, {new} new, {both} with some names of each",
            operation.name
        );
        total += cuts;
    }
    println!("  {} operations, {total} cuts, all whole", OPERATIONS.len());
    Ok(())
}
