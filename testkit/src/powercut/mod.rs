//! Power cuts on a real file system, under the real program.
//!
//! ```text
//! bedplate ─ ext4 ─ loop ─ FUSE ─ qemu-storage-daemon ─┬─ disk       what the program works on
//!                                                      └─ log        every write, every flush (log)
//!                                     ┌─────────────────┘
//! the disk before + a cut of the log (cuts) = what a power cut leaves ─ mount ─ check (trial)
//! ```
//!
//! A cut is a position in the log: what was written before the last flush is on the disk; of what came
//! after it, any part is. Which part, a seed chooses; that nothing of it is, and that all of it is, are
//! tried as well. ext4 then recovers its journal, and the program says what it finds.
//!
//! Invariants asserted at every cut: `fsck` finds nothing; each ref is the old one or the new one, and the
//! new one from the moment that the program has ended; each image that a ref names reads back wholly; the
//! operation succeeds when it is run again; then `gc` leaves nothing behind, and `fsck` finds nothing.
//!
//! Needs root (to mount), `qemu-storage-daemon` and `mkfs.ext4`. What is started and mounted goes with its
//! owner, also on failure.

pub mod cuts;
pub mod log;
mod record;

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::trial::check::{self, Expected, Seen};
use crate::trial::mount::Mounted;
use crate::trial::{Bench, Operation, Tally};
use cuts::{Cut, Disk};
use record::Recording;

/// How many cuts are tried at once.
const WORKERS: usize = 2;

/// Records one operation, and tries `count` cuts of it that `seed` chooses.
pub fn cut(bench: &Bench, operation: &Operation, count: usize, seed: u64) -> Result<Tally> {
    let recording = Recording::make(operation, &bench.program, bench.memory.path())
        .with_context(|| format!("recording `{}`", operation.name))?;
    let cuts = cuts::choose(&recording.log, recording.begin, count, seed);
    let tally = Mutex::new(Tally::default());
    let queue = Mutex::new(Disk::new(recording.before, cuts.into_iter()));
    let work = |worker: usize| -> Result<()> {
        let place = bench.memory.path().join(format!("cut-{worker}"));
        fs::create_dir_all(&place).context("making a directory for a cut")?;
        loop {
            let next = queue
                .lock()
                .expect("no worker panics while it holds the queue")
                .next(&recording.log)
                .context("applying the writes before a cut")?;
            let Some((cut, image)) = next else {
                return Ok(());
            };
            let expected = Expected {
                old: &recording.old,
                new: &recording.new,
                done: cut.position >= recording.end,
            };
            let seen = check_cut(bench, operation, &expected, &image, &place)
                .with_context(|| explain(operation, &cut, seed, recording.end))?;
            tally
                .lock()
                .expect("no worker panics while it holds the tally")
                .add(seen);
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| scope.spawn(move || work(worker)))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
    })?;
    Ok(tally
        .into_inner()
        .expect("no worker panics while it holds the tally"))
}

fn check_cut(
    bench: &Bench,
    operation: &Operation,
    expected: &Expected<'_>,
    image: &[u8],
    place: &Path,
) -> Result<Seen> {
    let disk = place.join("disk.raw");
    cuts::write_sparse(&disk, image)?;
    let mounted = Mounted::disk(&disk, &place.join("mnt"), false)?;
    check::check(operation, expected, &bench.program, mounted.path(), place)
}

fn explain(operation: &Operation, cut: &Cut, seed: u64, end: usize) -> String {
    format!(
        "`{}`, cut at entry {} of the log (the program ended at {end}), {}, seed {seed}",
        operation.name, cut.position, cut.choice
    )
}
