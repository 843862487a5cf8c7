//! Death and errors at any system call of the real program, and a disk that is really full.
//!
//! ```text
//! taskset (one processor) ─ strace (the n-th call of a kind: SIGKILL, ENOSPC or EIO) ─ bedplate ─ ext4
//! each kind of call, n = 1, 2, … until no call is left
//! ```
//!
//! strace counts each kind of call of each thread for itself. On one processor, commit, tag, gc and their
//! kin are one thread, so that every call has its turn. Where there are more (pull, import), the thread that
//! comes to its n-th call first dies with the process, and errors hit the n-th call of each.
//!
//! Invariants, besides those of [`crate::trial`]: an error ends in exit code 3 (this host must act), says
//! so without a panic, and leaves nothing in `tmp/`, unless the call that failed was to remove it.

mod full;
mod trace;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::trial::check::{self, Expected, Refs, refs};
use crate::trial::mount::{Mounted, make_ext4, run};
use crate::trial::{Bench, Operation, Tally};
use trace::{Injection, Outcome, Point};

pub use full::{Disk, fill};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What people call it.
    pub name: &'static str,
    /// At which system calls, as strace takes them.
    calls: &'static str,
    /// What strace does there.
    what: &'static str,
}

/// Every fault.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "killed",
        calls: "open,openat,write,pwrite64,writev,mkdir,mkdirat,link,linkat,unlink,unlinkat,rmdir,rename,\
                renameat,renameat2,fsync,fdatasync,syncfs,ftruncate,fallocate,chmod,fchmod,ioctl,flock",
        what: "signal=KILL",
    },
    Fault {
        name: "disk full",
        calls: "write,pwrite64,mkdir,mkdirat,link,linkat,rename,renameat,renameat2,fsync,syncfs,fallocate",
        what: "error=ENOSPC",
    },
    Fault {
        name: "write error",
        calls: "write,pwrite64,mkdir,mkdirat,link,linkat,unlink,unlinkat,rename,renameat,renameat2,fsync,\
                fdatasync,syncfs,ftruncate,fallocate",
        what: "error=EIO",
    },
    Fault {
        name: "read error",
        calls: "read,pread64,getdents64,open,openat",
        what: "error=EIO",
    },
];

/// The size of the disk that all this happens on, in bytes.
const DISK_SIZE: u64 = 96 << 20;

/// Tries `fault` at up to `count` calls of an operation, from the first to the last; `seed` chooses which.
pub fn inject(
    bench: &Bench,
    operation: &Operation,
    fault: &Fault,
    count: u64,
    seed: u64,
) -> Result<Tally> {
    let place = bench.memory.path().join("faults");
    fs::create_dir_all(&place).context("making a directory for the disk")?;
    let disk = place.join("disk.raw");
    make_ext4(&disk, DISK_SIZE)?;
    let mounted = Mounted::disk(&disk, &place.join("mnt"), false)?;
    let stores = Stores::prepare(bench, operation, mounted.path())?;
    let points = stores.reset_and(|root| {
        let injection = Injection {
            calls: fault.calls,
            what: None,
        };
        Ok(trace::run(&bench.program, root, operation, &injection, &place)?.points)
    })?;
    let mut tally = Tally::default();
    for point in spread(&points, count, seed) {
        let seen = stores
            .reset_and(|root| {
                let injection = Injection {
                    calls: fault.calls,
                    what: Some((fault.what, point)),
                };
                let outcome = trace::run(&bench.program, root, operation, &injection, &place)?;
                if !outcome.was_hit() || outcome.was_absurd() {
                    return Ok(None);
                }
                judge(operation, &outcome, root)
                    .with_context(|| format!("at {}", outcome.injected.join(", ")))?;
                let expected = Expected {
                    old: &stores.old,
                    new: &stores.new,
                    done: outcome.code == Some(0),
                };
                check::check(operation, &expected, &bench.program, root, &place)
                    .map(Some)
                    .with_context(|| format!("at {}", outcome.injected.join(", ")))
            })
            .with_context(|| format!("`{}`, {} at {point:?}", operation.name, fault.name))?;
        if let Some(seen) = seen {
            tally.add(seen);
        }
    }
    ensure!(
        tally.tries > 0,
        "no call of `{}` was hit: {}",
        operation.name,
        fault.name
    );
    Ok(tally)
}

/// Which of the points are tried: all, or `count` spread over them.
fn spread(points: &[Point], count: u64, seed: u64) -> impl Iterator<Item = &Point> {
    let all = points.len() as u64;
    let count = count.min(all);
    // Another seed begins elsewhere, by a step that is no divisor of usual numbers.
    let offset = seed.wrapping_mul(7);
    (0..count).map(move |number| {
        let position = (number * all / count).wrapping_add(offset) % all;
        &points[position as usize]
    })
}

/// Whether the program ended as it should.
fn judge(operation: &Operation, outcome: &Outcome, root: &Path) -> Result<()> {
    let Some(code) = outcome.code else {
        return Ok(()); // killed, as was asked for
    };
    ensure!(
        !outcome.said.contains("panicked"),
        "it panicked: {}",
        outcome.said
    );
    match code {
        // What failed was not needed.
        0 => Ok(()),
        5 if !operation.ends_in_one_error() => Ok(()),
        3 => {
            ensure!(
                outcome.was_silenced()
                    || outcome.said.contains("error: ") && outcome.said.contains("(os error"),
                "it does not say why it failed: {}",
                outcome.said
            );
            let tmp = root.join("store/tmp");
            let left = fs::read_dir(&tmp).map_or(0, Iterator::count);
            ensure!(
                left == 0 || outcome.hindered_removal(),
                "it left something in tmp/ after: {}",
                outcome.said
            );
            Ok(())
        }
        code => bail!("it ended with exit code {code}: {}", outcome.said),
    }
}

/// A store before an operation, kept so that each try begins with the same, and what the refs were.
#[derive(Debug)]
struct Stores<'a> {
    place: &'a Path,
    old: Refs,
    new: Refs,
}

impl<'a> Stores<'a> {
    fn prepare(bench: &Bench, operation: &Operation, place: &'a Path) -> Result<Self> {
        let before = place.join("before");
        fs::create_dir(&before).context("making a directory for the store")?;
        operation.begin(&bench.program, &before)?;
        let mut stores = Self {
            place,
            old: refs(&bench.program, &before)?,
            new: Refs::new(),
        };
        stores.new = stores.reset_and(|root| {
            bench.program.run(root, operation.command)?;
            refs(&bench.program, root)
        })?;
        Ok(stores)
    }

    /// Does something with the store as it was before.
    fn reset_and<T>(&self, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let root = self.place.join("now");
        if root.exists() {
            fs::remove_dir_all(&root).context("removing the store of the last try")?;
        }
        run(Command::new("cp")
            .args(["--archive", "--reflink=auto"])
            .args([&self.place.join("before"), &root]))?;
        work(&root)
    }
}
