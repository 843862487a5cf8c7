//! Which cuts are tried, and what each leaves on the disk.
//!
//! ```text
//! w w F w w w F w w │ w F          w: write, F: flush, │: the cut
//! └───────────┘ └─┘
//! on the disk   any part: each write wholly, in part, or not at all
//! ```
//!
//! The writes that are kept are applied in their order. Another order would give nothing new: of two that
//! overlap, the one that comes out on top is the one that the other was dropped beside.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::log::{Entry, SECTOR};

/// What a file system expects to be written whole, in bytes: it keeps its superblock in one such block.
const BLOCK: u64 = 4096;

/// One power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    /// How many entries of the log there were.
    pub position: usize,
    /// What became of those after the last flush.
    pub choice: Choice,
}

/// Which of the writes after the last flush are on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Choice {
    /// None.
    Nothing,
    /// All.
    Everything,
    /// Some, and some of them in part.
    Some {
        /// Decides.
        seed: u64,
    },
}

impl fmt::Display for Choice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => write!(out, "nothing after the last flush"),
            Self::Everything => write!(out, "everything after the last flush"),
            Self::Some { seed } => write!(out, "some of it after the last flush ({seed:#x})"),
        }
    }
}

/// Chooses up to `count` cuts from `begin` on, in the order of the log.
///
/// A third has everything that was written, or nothing after the last flush; the others some of it.
pub(super) fn choose(log: &[Entry], begin: usize, count: usize, seed: u64) -> Vec<Cut> {
    let mut random = Random::new(seed);
    // Right before a flush most is at stake; elsewhere every position counts the same.
    let flushes: Vec<usize> = (begin..log.len())
        .filter(|position| log[*position] == Entry::Flush)
        .collect();
    let mut plain = Vec::new();
    for position in begin..=log.len() {
        plain.push(Cut {
            position,
            choice: Choice::Everything,
        });
    }
    plain.extend(flushes.iter().map(|position| Cut {
        position: *position,
        choice: Choice::Nothing,
    }));
    while plain.len() > count.div_ceil(3) {
        let position = random.below(plain.len());
        plain.swap_remove(position);
    }
    let mut cuts = plain;
    while cuts.len() < count {
        let position = match random.below(2) {
            0 if !flushes.is_empty() => flushes[random.below(flushes.len())],
            _ => begin + random.below(log.len() + 1 - begin),
        };
        let seed = random.number();
        let choice = Choice::Some { seed };
        cuts.push(Cut { position, choice });
    }
    cuts.sort_unstable();
    cuts
}

/// What writes are applied to.
pub trait Image {
    /// Puts bytes at an offset.
    fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

impl Image for Vec<u8> {
    fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = offset as usize;
        self[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

impl Image for File {
    fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }
}

/// Returns how many entries lie before what a cut leaves to chance: those up to the last flush.
pub fn certain(log: &[Entry], position: usize) -> usize {
    log[..position]
        .iter()
        .rposition(|entry| *entry == Entry::Flush)
        .map_or(0, |flush| flush + 1)
}

/// Applies entries that are on the disk for certain.
pub fn apply_all(image: &mut impl Image, log: &[Entry]) -> io::Result<()> {
    log.iter().try_for_each(|entry| apply(image, entry))
}

/// Applies what a cut leaves of the entries after the last flush.
pub fn apply_rest(image: &mut impl Image, log: &[Entry], cut: Cut) -> io::Result<()> {
    let pending = &log[certain(log, cut.position)..cut.position];
    match cut.choice {
        Choice::Nothing => {
            let durable = |entry: &&Entry| matches!(entry, Entry::Write { durable: true, .. });
            let mut kept = pending.iter().filter(durable);
            kept.try_for_each(|entry| apply(image, entry))
        }
        Choice::Everything => apply_all(image, pending),
        Choice::Some { seed } => apply_some(image, pending, &mut Random::new(seed)),
    }
}

/// The disk as the log goes on: what is on it for certain.
#[derive(Debug)]
pub(super) struct Disk<C> {
    bytes: Vec<u8>,
    /// The entries before this one are in `bytes`.
    applied: usize,
    cuts: C,
}

impl<C: Iterator<Item = Cut>> Disk<C> {
    /// Begins with the disk that the log began with; the cuts are in the order of the log.
    pub(super) fn new(before: Vec<u8>, cuts: C) -> Self {
        Self {
            bytes: before,
            applied: 0,
            cuts,
        }
    }

    /// Returns the next cut, and what it leaves.
    pub(super) fn next(&mut self, log: &[Entry]) -> io::Result<Option<(Cut, Vec<u8>)>> {
        let Some(cut) = self.cuts.next() else {
            return Ok(None);
        };
        let certain = certain(log, cut.position);
        apply_all(&mut self.bytes, &log[self.applied.min(certain)..certain])?;
        self.applied = self.applied.max(certain);
        let mut image = self.bytes.clone();
        apply_rest(&mut image, log, cut)?;
        Ok(Some((cut, image)))
    }
}

fn apply(image: &mut impl Image, entry: &Entry) -> io::Result<()> {
    match entry {
        Entry::Write { offset, bytes, .. } => image.put(*offset, bytes),
        Entry::Flush => Ok(()),
    }
}

/// Applies some of the writes, a few of them in part.
fn apply_some(image: &mut impl Image, pending: &[Entry], random: &mut Random) -> io::Result<()> {
    // Rarely is half of it the worst case: often it is all but one write, or one alone.
    let alone = random.below(pending.len().max(1));
    let kept_of_eight = match random.below(5) {
        0 => 0,
        1 => 8,
        2 => 1,
        3 => 7,
        _ => 4,
    };
    for (position, entry) in pending.iter().enumerate() {
        let Entry::Write {
            offset,
            bytes,
            durable,
        } = entry
        else {
            continue;
        };
        let kept = match kept_of_eight {
            0 => position == alone,
            8 => position != alone,
            eighths => random.below(8) < eighths,
        };
        if *durable || (kept && random.below(8) != 0) {
            apply(image, entry)?;
        } else if kept {
            tear(image, *offset, bytes, random)?;
        }
    }
    Ok(())
}

/// Applies some blocks or sectors of a write. A single block stays whole, and so does a single sector.
fn tear(image: &mut impl Image, offset: u64, bytes: &[u8], random: &mut Random) -> io::Result<()> {
    let unit = match random.below(2) {
        // FAT is written by sectors, and ext4 by blocks.
        _ if !(bytes.len() as u64).is_multiple_of(BLOCK) => SECTOR,
        0 if bytes.len() as u64 > BLOCK => SECTOR,
        _ => BLOCK,
    };
    for (number, part) in bytes.chunks(unit as usize).enumerate() {
        if random.below(2) == 0 {
            image.put(offset + number as u64 * unit, part)?;
        }
    }
    Ok(())
}

/// Writes an image to a file that takes no room for what is empty.
pub(super) fn write_sparse(path: &Path, image: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(image.len() as u64)?;
        let empty = [0; BLOCK as usize];
        for (number, block) in image.chunks(BLOCK as usize).enumerate() {
            if block != &empty[..block.len()] {
                file.write_all_at(block, number as u64 * BLOCK)?;
            }
        }
        Ok(())
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// A sequence of numbers that a seed repeats (splitmix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Begins the sequence of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `end`, which is not zero.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(block: u64, byte: u8) -> Entry {
        Entry::Write {
            offset: block * BLOCK,
            bytes: vec![byte; BLOCK as usize],
            durable: false,
        }
    }

    /// The first byte of each block that a cut leaves.
    fn left(log: &[Entry], position: usize, choice: Choice) -> Vec<u8> {
        let before = vec![0; 4 * BLOCK as usize];
        let mut disk = Disk::new(before, [Cut { position, choice }].into_iter());
        let (_, image) = disk.next(log).unwrap().unwrap();
        image.chunks(BLOCK as usize).map(|block| block[0]).collect()
    }

    #[test]
    fn what_was_flushed_stays_and_what_was_not_may_go() {
        let log = [write(0, 1), Entry::Flush, write(1, 2), write(2, 3)];
        assert_eq!(left(&log, 1, Choice::Nothing), [0, 0, 0, 0]);
        assert_eq!(left(&log, 4, Choice::Nothing), [1, 0, 0, 0]);
        assert_eq!(left(&log, 3, Choice::Everything), [1, 2, 0, 0]);
        let some: std::collections::BTreeSet<_> = (0..200)
            .map(|seed| left(&log, 4, Choice::Some { seed }))
            .collect();
        let all = [[1, 0, 0, 0], [1, 0, 3, 0], [1, 2, 0, 0], [1, 2, 3, 0]];
        assert_eq!(some.into_iter().collect::<Vec<_>>(), all);
    }
}
