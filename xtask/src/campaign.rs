//! `cargo xtask campaign`: what takes too long for every change, and finds what single runs do not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::story::Firmware;
use crate::story::suite::Plays;
use crate::trial::Trial;
use crate::{concurrency, fuzz, power_cut, story, trees, vm, wants_help};

const HELP: &str = "\
Usage: cargo xtask campaign NAME [MINUTES]

  fuzz   every parser in turn, with a new seed each round
  vm     the virtual machine's tests again and again: the smoke test and versions that do not boot, by UEFI and
         by a BIOS, and every course of `vm suite`
  power-cut  the power cut anywhere in the life of a machine: every flush, every write while what boots is
         changed, 500 others, and 40 booted for real; then others, with a new seed each round
  crash  power cuts in every operation on a store, thousands of them, with a new seed each round
  faults death and errors at every system call of every operation on a store
  trees  whole systems of three releases of Debian, against the kernel, composefs, erofs-utils, fsverity,
         GNU tar and dpkg-query
  concurrency  everything at once on one store, and then a check of all of it [default: 5]

Each goes on for MINUTES [default: 60] and ends at the first failure; trees runs once.
";

/// How long a parser is tried before the next one has its turn.
const FUZZ_TURN: u64 = 30;

/// How many cuts an operation is given in a round.
const CUTS: u64 = 500;

/// How many cuts in the life of a machine are chosen at random in a round, and how many are booted for real.
const WRECKS: usize = 500;
const BOOTS: usize = 40;

/// At how many system calls of an operation a fault is tried: more than there are.
const CALLS: u64 = 2000;

/// `cargo xtask campaign`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    if wants_help(arguments, HELP) {
        return Ok(());
    }
    let (name, minutes) = match arguments {
        ["trees"] => return trees::campaign(),
        [name @ "concurrency"] => (*name, 5),
        [name] => (*name, 60),
        [name, minutes] => {
            let number = minutes
                .parse()
                .with_context(|| format!("`{minutes}` is no number"))?;
            (*name, number)
        }
        _ => {
            print!("{HELP}");
            return Ok(());
        }
    };
    if name == "concurrency" {
        // One round: what it finds, it finds because nothing stands still.
        return concurrency::all(minutes * 60);
    }
    let started = Instant::now();
    if name == "power-cut" {
        // Once all of it, however long that takes.
        power_cut::campaign(WRECKS, BOOTS, 1)?;
    }
    let round: fn(u64) -> Result<()> = match name {
        "power-cut" => |number| power_cut::sample(WRECKS, 0, number + 1),
        "fuzz" => |number| fuzz::sample_all(number, FUZZ_TURN),
        "crash" => |number| Trial::Crash.all(number, CUTS),
        "faults" => |number| Trial::Faults.all(number, CALLS),
        "vm" => |_| {
            for firmware in [Firmware::Uefi, Firmware::Bios] {
                vm::smoke(false, firmware)?;
                vm::heal(firmware)?;
            }
            story::suite::run(&[], Plays::All)
        },
        unknown => bail!("there is no campaign `{unknown}`; see `cargo xtask campaign --help`"),
    };
    let limit = Duration::from_secs(minutes * 60);
    let mut number: u64 = 0;
    while started.elapsed() < limit {
        number += 1;
        println!(
            "── round {number}, after {} min",
            started.elapsed().as_secs() / 60
        );
        round(number).with_context(|| format!("round {number} of {name}"))?;
    }
    println!("{number} rounds passed");
    Ok(())
}
