//! `cargo xtask crash` and `cargo xtask faults`: power cuts, death and errors at every write of every
//! operation on a store (see `testkit::{powercut, faults}`).
//!
//! The work is done in namespaces of its own, mounts and processes: what it mounts nobody else sees, and
//! whatever ends it, by whatever signal, everything that it mounted and started is gone.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use testkit::faults::{self, Disk, FAULTS};
use testkit::powercut;
use testkit::trial::{Bench, OPERATIONS, Operation, Tally};

use crate::{packages, programs, run, wants_help, workspace};

const HELP: &str = "\
Usage: cargo xtask crash  [OPERATION…] [--tries N] [--seed N] [--bedplate FILE]
       cargo xtask faults [OPERATION…] [--tries N] [--seed N] [--bedplate FILE]

crash    cuts the power in every operation on a store (or in those named), and checks what a real file
         system makes of it
faults   kills the program, and gives it errors, at every system call that writes or reads, and fills the
         disk

Each is tried N times [default: 100] with every operation. A seed repeats what was chosen; a recording differs
a little each time. --bedplate takes another program than the workspace's. Needs root.
";

/// How often an operation is tried where nothing else was asked for.
const TRIES: u64 = 100;

/// With how many amounts of room an operation is tried at most: a disk has no more that differ.
const ROOMS: u64 = 40;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trial {
    /// The power is cut.
    Crash,
    /// System calls fail.
    Faults,
}

/// What is to be done.
#[derive(Debug)]
struct Task<'a> {
    chosen: Vec<&'static Operation>,
    tries: u64,
    seed: u64,
    bedplate: Option<&'a Path>,
    /// Whether this is the process inside the namespaces.
    inside: bool,
}

/// `cargo xtask crash`, `cargo xtask faults`.
pub(crate) fn run(trial: Trial, arguments: &[&str]) -> Result<()> {
    if wants_help(arguments, HELP) {
        return Ok(());
    }
    let task = Task::parse(arguments)?;
    match task.bedplate {
        Some(bedplate) if task.inside => trial.work(&task, bedplate),
        Some(bedplate) => enter(trial.verb(), arguments, bedplate),
        None => trial.build_and_enter(arguments),
    }
}

impl Trial {
    /// Tries every operation so often, as `seed` chooses, and prints what became of it.
    pub(crate) fn all(self, seed: u64, tries: u64) -> Result<()> {
        let (seed, tries) = (seed.to_string(), tries.to_string());
        self.build_and_enter(&["--seed", &seed, "--tries", &tries])
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Faults => "faults",
        }
    }

    fn build_and_enter(self, arguments: &[&str]) -> Result<()> {
        if !run::is_root() {
            println!("  left out: this is not root, and disks have to be mounted");
            return Ok(());
        }
        enter(self.verb(), arguments, &programs::build()?)
    }

    fn work(self, task: &Task<'_>, bedplate: &Path) -> Result<()> {
        let bench = Bench::prepare(bedplate, &workspace::target("trial"))
            .context("preparing what is tried")?;
        let mut total = 0;
        let mut told = |operation: &Operation, what: &str, tally: Tally| {
            let Tally { tries, old, new } = tally;
            println!(
                "  {:<24} {what:<12} {tries:>5} tries: {old} old, {new} new",
                operation.name
            );
            total += tries;
        };
        for operation in &task.chosen {
            match self {
                Self::Crash => {
                    let tally = powercut::cut(&bench, operation, task.tries as usize, task.seed)?;
                    told(operation, "power cut", tally);
                }
                Self::Faults => {
                    for fault in FAULTS {
                        let tally =
                            faults::inject(&bench, operation, fault, task.tries, task.seed)?;
                        told(operation, fault.name, tally);
                    }
                    if !operation.ends_in_one_error() {
                        continue; // what there was no room for is told as damage
                    }
                    for (disk, what) in [(Disk::Ext4, "full ext4"), (Disk::Tmpfs, "full tmpfs")] {
                        told(
                            operation,
                            what,
                            faults::fill(&bench, operation, disk, task.tries.min(ROOMS))?,
                        );
                    }
                }
            }
        }
        println!(
            "  {} operations, {total} tries, all whole",
            task.chosen.len()
        );
        Ok(())
    }
}

/// Runs this program again, with mounts and processes of its own.
pub(crate) fn enter(verb: &str, arguments: &[&str], bedplate: &Path) -> Result<()> {
    packages::require(&[packages::TRIALS])?;
    let status = Command::new("unshare")
        .args(["--mount", "--pid", "--fork"])
        .args(["--mount-proc", "--kill-child=KILL"])
        .arg(std::env::current_exe().context("finding this program")?)
        .args([verb, "--inside"])
        .args(arguments)
        .arg("--bedplate")
        .arg(std::path::absolute(bedplate).context("finding the program")?)
        .status()
        .context("starting unshare")?;
    if !status.success() {
        bail!("{verb}: {status}");
    }
    Ok(())
}

impl<'a> Task<'a> {
    fn parse(arguments: &[&'a str]) -> Result<Self> {
        let mut task = Self {
            chosen: Vec::new(),
            tries: TRIES,
            seed: 1,
            bedplate: None,
            inside: false,
        };
        let mut words = arguments.iter().copied();
        while let Some(word) = words.next() {
            let mut value = || {
                let value = words.next();
                value.with_context(|| format!("{word} takes a value"))
            };
            match word {
                "--tries" => task.tries = value()?.parse().context("reading --tries")?,
                "--seed" => task.seed = value()?.parse().context("reading --seed")?,
                "--bedplate" => task.bedplate = Some(Path::new(value()?)),
                "--inside" => task.inside = true,
                name => task.chosen.push(find(name)?),
            }
        }
        if task.chosen.is_empty() {
            task.chosen.extend(OPERATIONS);
        }
        Ok(task)
    }
}

fn find(name: &str) -> Result<&'static Operation> {
    OPERATIONS
        .iter()
        .find(|operation| operation.name == name)
        .with_context(|| {
            let names: Vec<&str> = OPERATIONS.iter().map(|one| one.name).collect();
            format!(
                "there is no operation `{name}`; there are {}",
                names.join(", ")
            )
        })
}
