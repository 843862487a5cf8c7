//! Puts right what `fatfs` 0.3 writes: how a directory begins, and the date of every entry.
//!
//! ```text
//! as written    long "."   "."   long ".."   ".." → first cluster of the root
//! as specified  "."        ".."  (free)      (free)        ".." of a top directory → 0
//! ```
//!
//! The FAT specification (Microsoft, version 1.03, "Directories") has `.` and `..` as the first two
//! entries, without long names, and 0 for the root; file system checkers repair anything else.
//!
//! Without a clock it dates everything 1980-00-00, which is no day.
//!
//! Invariant: a volume that is as specified is not changed, so this can run any number of times.

use std::io::{self, Read, Seek, SeekFrom, Write};

use super::fat_time::FatTime;

const ENTRY: usize = 32;
const ATTRIBUTE: usize = 11;
const LONG_NAME: u8 = 0x0f;
/// Where time and date of making, date of reading, and time and date of writing stand in an entry.
const TIMES: [usize; 2] = [14, 22];
const DATES: [usize; 3] = [16, 18, 24];
const DIRECTORY: u8 = 0x10;
const DELETED: u8 = 0xe5;
const DOT: &[u8; 11] = b".          ";
const DOT_DOT: &[u8; 11] = b"..         ";

/// A cluster number at or above this ends a chain.
const END_OF_CHAIN: u32 = 0x0fff_fff8;

/// The parts of a FAT32 boot sector that lead to a directory's bytes.
struct Geometry {
    cluster: u64,
    table: u64,
    data: u64,
    root: u32,
    clusters: u32,
}

impl Geometry {
    fn read(volume: &mut (impl Read + Seek)) -> io::Result<Self> {
        let mut boot = [0; 512];
        volume.seek(SeekFrom::Start(0))?;
        volume.read_exact(&mut boot)?;
        let u16_at = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let u32_at =
            |at: usize| u32::from_le_bytes([boot[at], boot[at + 1], boot[at + 2], boot[at + 3]]);
        let sector = u16_at(11);
        let table = u16_at(14) * sector;
        let tables = u64::from(boot[16]) * u64::from(u32_at(36)) * sector;
        let cluster = u64::from(boot[13]) * sector;
        let data = table + tables;
        let total = u64::from(u32_at(32)) * sector;
        if cluster == 0 || total < data {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self {
            cluster,
            table,
            data,
            root: u32_at(44),
            clusters: u32::try_from((total - data) / cluster).unwrap_or(u32::MAX),
        })
    }

    fn place(&self, cluster: u32) -> io::Result<u64> {
        match cluster.checked_sub(2) {
            Some(index) if index < self.clusters => Ok(self.data + u64::from(index) * self.cluster),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn next(&self, volume: &mut (impl Read + Seek), cluster: u32) -> io::Result<u32> {
        let mut bytes = [0; 4];
        volume.seek(SeekFrom::Start(self.table + u64::from(cluster) * 4))?;
        volume.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes) & 0x0fff_ffff)
    }
}

/// Puts right the beginning of every directory of a FAT32 volume, and dates every entry.
pub(super) fn put_right(
    volume: &mut (impl Read + Write + Seek),
    written: FatTime,
) -> io::Result<()> {
    let geometry = Geometry::read(volume)?;
    let mut pending = vec![(geometry.root, None)];
    // Each directory has a cluster of its own; more than there are clusters would be a circle.
    let mut left = geometry.clusters;
    while let Some((first, parent)) = pending.pop() {
        let mut cluster = first;
        let mut bytes = vec![0; usize::try_from(geometry.cluster).unwrap_or_default()];
        while cluster < END_OF_CHAIN {
            left = left.checked_sub(1).ok_or(io::ErrorKind::InvalidData)?;
            let place = geometry.place(cluster)?;
            volume.seek(SeekFrom::Start(place))?;
            volume.read_exact(&mut bytes)?;
            let mut changed = false;
            if let Some(parent) = parent
                && cluster == first
            {
                let parent = if parent == geometry.root { 0 } else { parent };
                changed |= straighten(&mut bytes, parent);
            }
            changed |= stamp(&mut bytes, written);
            if changed {
                volume.seek(SeekFrom::Start(place))?;
                volume.write_all(&bytes)?;
            }
            pending.extend(directories(&bytes).map(|child| (child, Some(first))));
            cluster = geometry.next(volume, cluster)?;
        }
    }
    volume.flush()
}

/// Puts right the first cluster of a directory, and returns whether that changed it.
fn straighten(bytes: &mut [u8], parent: u32) -> bool {
    let is = |at: usize, name: &[u8; 11]| {
        bytes
            .get(at * ENTRY..)
            .is_some_and(|rest| rest.starts_with(name))
    };
    let long = |at: usize| bytes.get(at * ENTRY + ATTRIBUTE) == Some(&LONG_NAME);
    if !(long(0) && is(1, DOT) && long(2) && is(3, DOT_DOT)) {
        return false;
    }
    bytes.copy_within(ENTRY..2 * ENTRY, 0);
    bytes.copy_within(3 * ENTRY..4 * ENTRY, ENTRY);
    let [a, b, c, d] = parent.to_le_bytes();
    bytes[ENTRY + 20..ENTRY + 22].copy_from_slice(&[c, d]);
    bytes[ENTRY + 26..ENTRY + 28].copy_from_slice(&[a, b]);
    for at in [2, 3] {
        bytes[at * ENTRY..(at + 1) * ENTRY].fill(0);
        bytes[at * ENTRY] = DELETED;
    }
    true
}

/// Dates every entry of a cluster, and returns whether that changed one.
fn stamp(bytes: &mut [u8], written: FatTime) -> bool {
    let mut changed = false;
    for entry in bytes
        .chunks_exact_mut(ENTRY)
        .take_while(|entry| entry[0] != 0)
        .filter(|entry| entry[0] != DELETED && entry[ATTRIBUTE] != LONG_NAME)
    {
        let times = TIMES.map(|at| (at, written.time));
        let dates = DATES.map(|at| (at, written.date));
        for (at, value) in times.into_iter().chain(dates) {
            let field = &mut entry[at..at + 2];
            changed |= field != value.to_le_bytes();
            field.copy_from_slice(&value.to_le_bytes());
        }
    }
    changed
}

/// Lists the first clusters of the directories that these entries name.
fn directories(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes
        .chunks_exact(ENTRY)
        .take_while(|entry| entry[0] != 0)
        .filter(|entry| entry[0] != DELETED && entry[0] != b'.')
        .filter(|entry| entry[ATTRIBUTE] != LONG_NAME && entry[ATTRIBUTE] & DIRECTORY != 0)
        .map(|entry| u32::from_le_bytes([entry[26], entry[27], entry[20], entry[21]]))
}
