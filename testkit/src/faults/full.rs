//! A disk that is really full: the operation on file systems with less and less room.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::trial::check::{self, Expected};
use crate::trial::mount::{Mounted, make_ext4};
use crate::trial::{Bench, Operation, Tally};

use super::Stores;

/// Which file system is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// ext4, on 32 MB.
    Ext4,
    /// tmpfs, of 32 MB.
    Tmpfs,
}

/// The size of the disk, in bytes.
const SIZE: u64 = 32 << 20;
/// Room enough for any operation, in bytes.
const MOST: u64 = 6 << 20;
/// Room enough for the names of any operation, in bytes.
const NAMES: u64 = 64 << 10;
/// What takes the room away.
const BALLAST: &str = "ballast";

/// Tries an operation with each of `steps` amounts of room, from none at all to more than enough. Whatever came
/// of it, the disk stays as full as it was, and a gc has to succeed.
pub fn fill(bench: &Bench, operation: &Operation, disk: Disk, steps: u64) -> Result<Tally> {
    let place = bench.memory.path().join("full");
    fs::create_dir_all(&place).context("making a directory for the disk")?;
    let directory = place.join("mnt");
    let mounted = match disk {
        Disk::Ext4 => {
            let file = place.join("disk.raw");
            make_ext4(&file, SIZE)?;
            Mounted::disk(&file, &directory, false)?
        }
        Disk::Tmpfs => Mounted::memory(&directory, &SIZE.to_string())?,
    };
    let root = mounted.path();
    let stores = Stores::prepare(bench, operation, root)?;
    let mut tally = Tally::default();
    let mut enough = false;
    for room in rooms(steps) {
        let seen = stores
            .reset_and(|store| {
                take_all_but(room, root)?;
                let output = bench.program.try_run(store, operation.command)?;
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                let left = fs::read_dir(store.join("store/tmp")).map_or(0, Iterator::count);
                enough = output.status.success();
                // Without a store there is nothing to collect.
                let has_store = store.join("store/format.json").exists();
                if has_store && !operation.makes_room {
                    let gc = bench.program.try_run(store, "gc")?;
                    let told = String::from_utf8_lossy(&gc.stderr);
                    ensure!(gc.status.success(), "gc fails after it: {told}");
                }
                fs::remove_file(root.join(BALLAST)).context("giving room back")?;
                if !output.status.success() {
                    ensure!(!operation.makes_room, "it cannot make room: {said}");
                    ensure!(
                        output.status.code() == Some(3) && said.contains("free some space"),
                        "it ended with {}: {said}",
                        output.status
                    );
                    ensure!(left == 0, "it left something in tmp/ after: {said}");
                }
                let expected = Expected {
                    old: &stores.old,
                    new: &stores.new,
                    done: output.status.success(),
                };
                check::check(operation, &expected, &bench.program, store, &place)
            })
            .with_context(|| {
                format!("`{}` on {disk:?} with {room} bytes of room", operation.name)
            })?;
        tally.add(seen);
    }
    ensure!(enough, "{MOST} bytes were not enough");
    Ok(tally)
}

/// Returns amounts of room: every second one in the range in which names are written, the others up to more
/// than enough.
fn rooms(steps: u64) -> Vec<u64> {
    let few = steps / 2;
    let names = (0..few).map(|step| NAMES * step / few);
    let bytes = (0..=steps - few).map(|step| MOST * step / (steps - few));
    names.chain(bytes).collect()
}

/// Writes until the disk is full, then gives `room` bytes back.
fn take_all_but(room: u64, root: &Path) -> Result<()> {
    let path = root.join(BALLAST);
    let file = File::create(&path).context("making the ballast")?;
    let mut length = 0_u64;
    for size in [1 << 20, 4096, 512] {
        let bytes = vec![1; size];
        while let Ok(count) = (&file).write(&bytes) {
            length += count as u64;
            // On the disk: what is promised only would not be missing.
            if count < size || file.sync_data().is_err() {
                break;
            }
        }
    }
    file.set_len(length.saturating_sub(room))
        .and_then(|()| file.sync_all())
        .context("giving room back")
}
