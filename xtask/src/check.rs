//! `cargo xtask check`: what everybody runs before they commit. Under two minutes when warm.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{packages, programs, run, test, wants_help};

const HELP: &str = "\
Usage: cargo xtask check

Format, lints on every target, and the quick tests. Under two minutes when the workspace is compiled.
";

/// `cargo xtask check`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    if wants_help(arguments, HELP) {
        return Ok(());
    }
    packages::require(&[packages::BUILD_TESTS])?;
    stage(
        "format",
        programs::cargo().args(["fmt", "--all", "--check"]),
    )?;
    stage(
        "lints",
        programs::cargo().args([
            "clippy",
            "--release",
            "--locked",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "--deny=warnings",
        ]),
    )?;
    stage("quick tests", &mut test::runner(test::Extent::Quick))
}

/// Runs one part and says how long it took.
pub(crate) fn stage(name: &str, command: &mut Command) -> Result<()> {
    println!("── {name}");
    let started = Instant::now();
    run::passing(command).with_context(|| name.to_owned())?;
    println!("── {name}: passed in {} s", started.elapsed().as_secs());
    Ok(())
}
