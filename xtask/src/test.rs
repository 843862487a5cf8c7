//! `cargo xtask test`: everything that can fail, in the order in which it fails fastest.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::check::stage;
use crate::story::Firmware;
use crate::story::suite::Plays;
use crate::trial::Trial;
use crate::{bench, concurrency, fuzz, packages, programs, run, story, vm, wants_help};

const HELP: &str = "\
Usage: cargo xtask test [--no-vm]

Unit, integration and documentation tests of the whole workspace, damaged input for every parser, power
cuts, failing system calls, everything at once, the benchmark on a small tree, the virtual machine smoke
test, and what machines go through in real boots. --no-vm leaves out the last two.
";

/// How long each parser gets damaged input: enough to see what breaks at once.
const FUZZ_SECONDS: u64 = 3;

/// How many power cuts each operation gets: about 100 in all.
const CUTS: u64 = 14;

/// At how many system calls of an operation each fault is tried.
const CALLS: u64 = 4;

/// For how long everything is done at once.
const TOGETHER_SECONDS: u64 = 20;

/// Which tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Those inside the libraries and programs.
    Quick,
    /// All of them.
    Whole,
}

/// `cargo xtask test`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    if wants_help(arguments, HELP) {
        return Ok(());
    }
    let vm = match arguments {
        [] => true,
        ["--no-vm"] => false,
        other => bail!(
            "`test` takes no `{}`; see `cargo xtask test --help`",
            other.join(" ")
        ),
    };
    packages::require(&[packages::BUILD_TESTS, packages::PEERS, packages::BENCH])?;
    if vm {
        story::require_packages()?;
    }
    let mut passed = 0;
    stage("tests", &mut runner(Extent::Whole))?;
    passed += 1;
    stage(
        "documentation tests",
        programs::cargo().args([
            "test",
            "--release",
            "--locked",
            "--quiet",
            "--workspace",
            "--doc",
        ]),
    )?;
    passed += 1;
    part("damaged input", || fuzz::sample_all(1, FUZZ_SECONDS))?;
    passed += 1;
    part("power cuts", || Trial::Crash.all(1, CUTS))?;
    passed += 1;
    part("faults", || Trial::Faults.all(1, CALLS))?;
    passed += 1;
    part("everything at once", || concurrency::all(TOGETHER_SECONDS))?;
    passed += 1;
    part("figures on a small tree", || {
        bench::measure(bench::Extent::Small)
    })?;
    passed += 1;
    if vm {
        part("virtual machine", || vm::smoke(false, Firmware::Uefi))?;
        passed += 1;
        part("what machines go through", || {
            story::suite::run(&[], Plays::Sample)
        })?;
        passed += 1;
    }
    println!("{passed} parts passed, 0 failed");
    Ok(())
}

/// The test runner: cargo-nextest where it is installed, `cargo test` otherwise; both with the profile that
/// the programs are compiled with, so that a fresh machine compiles once.
pub(crate) fn runner(extent: Extent) -> Command {
    let nextest = run::output(programs::cargo().args(["nextest", "--version"])).is_ok();
    let mut cargo = programs::cargo();
    if nextest {
        cargo.args(["nextest", "run", "--cargo-quiet", "--status-level=fail"]);
    } else {
        cargo.args(["test", "--quiet", "--no-fail-fast"]);
    }
    cargo.args(["--release", "--locked", "--workspace"]);
    match (extent, nextest) {
        (Extent::Quick, _) => cargo.args(["--lib", "--bins"]),
        // Documentation tests are a part of their own, because nextest knows none.
        (Extent::Whole, _) => cargo.args(["--lib", "--bins", "--tests"]),
    };
    cargo
}

fn part(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("── {name}");
    let started = Instant::now();
    work().with_context(|| name.to_owned())?;
    println!("── {name}: passed in {} s", started.elapsed().as_secs());
    Ok(())
}
