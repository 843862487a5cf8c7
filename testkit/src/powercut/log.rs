//! Reads the log of a recorded disk, in the format of the kernel's dm-log-writes target.
//!
//! ```text
//! sector 0   magic u64 · version u64 · entries u64 · bytes of a sector u32
//! then each  sector u64 · sectors u64 · flags u64 · bytes of a marker u64 │ data, unless it is a discard
//!            └────────────── padded to one sector ──────────────────────┘
//! ```
//!
//! All numbers are little-endian. The number of entries in the first sector is brought up to date now and
//! then only, so that a log that is being written is read up to the first empty entry.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// The size of a sector, as it was asked for, in bytes.
pub(super) const SECTOR: u64 = 512;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// One thing that was asked of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Everything before it is on the disk.
    Flush,
    /// Bytes at an offset.
    Write {
        offset: u64,
        bytes: Vec<u8>,
        /// It is on the disk when it is done, whatever else is.
        durable: bool,
    },
}

/// Reads all of a log, or what is there of it yet.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let length = file.metadata().context("looking at the log")?.len();
    let sector = |number: u64| -> Result<[u8; SECTOR as usize]> {
        let mut bytes = [0; SECTOR as usize];
        file.read_exact_at(&mut bytes, number * SECTOR)
            .with_context(|| format!("reading sector {number} of the log"))?;
        Ok(bytes)
    };
    let first = sector(0)?;
    ensure!(
        (number(&first, 0), number(&first, 1)) == (MAGIC, VERSION),
        "{} is no log of writes",
        path.display()
    );
    let mut entries = Vec::new();
    let mut position = 1;
    while position * SECTOR < length {
        let header = sector(position)?;
        let (begin, sectors, flags) = (number(&header, 0), number(&header, 1), number(&header, 2));
        if sectors == 0 && flags == 0 {
            break;
        }
        position += 1;
        if flags & FLUSH != 0 {
            entries.push(Entry::Flush);
        }
        if sectors == 0 {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(sectors * SECTOR).context("a write is too long")?];
        if flags & DISCARD == 0 {
            file.read_exact_at(&mut bytes, position * SECTOR)
                .context("reading a write of the log")?;
            position += sectors;
        }
        entries.push(Entry::Write {
            offset: begin * SECTOR,
            bytes,
            durable: flags & FUA != 0,
        });
    }
    Ok(entries)
}

fn number(header: &[u8], position: usize) -> u64 {
    let bytes = &header[position * 8..][..8];
    u64::from_le_bytes(bytes.try_into().expect("eight bytes were asked for"))
}
