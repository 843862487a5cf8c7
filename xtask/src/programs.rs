//! Our own programs, compiled once for the demo, the tests and the figures alike.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{run, workspace};

/// Where cargo puts them, below `target/`.
pub(crate) const PLACE: &str = "x86_64-unknown-linux-gnu/release";

/// Compiles `bedplate` and the early-boot program, and says where `bedplate` is.
pub(crate) fn build() -> Result<PathBuf> {
    run::passing(
        cargo()
            .args(["build", "--release", "--locked", "--quiet"])
            .args(["--package", "bedplate", "--package", "bedplate-init"]),
    )
    .context("compiling bedplate")?;
    Ok(workspace::target(PLACE).join("bedplate"))
}

/// The cargo that started this program.
pub(crate) fn cargo() -> Command {
    // Set by cargo itself for what it runs; `cargo` alone where somebody starts the binary by hand.
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo.current_dir(workspace::root());
    cargo
}
