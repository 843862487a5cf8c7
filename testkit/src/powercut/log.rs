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
pub const SECTOR: u64 = 512;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// One thing that was asked of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Everything before it is on the disk.
    Flush,
    /// Bytes at an offset.
    Write {
        /// Where they go.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
        /// It is on the disk when it is done, whatever else is.
        durable: bool,
    },
}

/// Reads all of a log, or what is there of it yet.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    walk(path, &mut |file, logged| {
        if logged.flags & FLUSH != 0 {
            entries.push(Entry::Flush);
        }
        if logged.length == 0 {
            return Ok(());
        }
        let mut bytes = vec![0; usize::try_from(logged.length).context("a write is too long")?];
        if logged.flags & DISCARD == 0 {
            file.read_exact_at(&mut bytes, logged.at)
                .context("reading a write of the log")?;
        }
        let durable = logged.flags & FUA != 0 || is_forced(&bytes);
        entries.push(Entry::Write {
            offset: logged.offset,
            bytes,
            durable,
        });
        Ok(())
    })?;
    Ok(entries)
}

/// Whether ext4 has asked for a write to be on the disk when it is done: the block that ends a transaction of its
/// journal, and the journal's superblock. QEMU's NVMe disk forgets that it was asked to.
fn is_forced(bytes: &[u8]) -> bool {
    const JOURNAL: [u8; 4] = 0xc03b_3998_u32.to_be_bytes();
    const FORCED: [u32; 3] = [2, 3, 4];
    let kind = bytes.get(4..8).and_then(|kind| kind.try_into().ok());
    bytes.starts_with(&JOURNAL)
        && kind.is_some_and(|kind| FORCED.contains(&u32::from_be_bytes(kind)))
}

/// Counts the entries that [`read`] would return now.
pub fn count(path: &Path) -> Result<usize> {
    let mut count = 0;
    walk(path, &mut |_, logged| {
        count += usize::from(logged.flags & FLUSH != 0) + usize::from(logged.length != 0);
        Ok(())
    })?;
    Ok(count)
}

/// What the log says of one request.
#[derive(Clone, Copy, Debug)]
struct Logged {
    offset: u64,
    length: u64,
    flags: u64,
    /// Where in the log its bytes are.
    at: u64,
}

/// Goes through a log from its beginning to the first request that is not there yet.
fn walk(path: &Path, each: &mut dyn FnMut(&File, Logged) -> Result<()>) -> Result<()> {
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
    let mut position = 1;
    while position * SECTOR < length {
        let header = sector(position)?;
        let (begin, sectors, flags) = (number(&header, 0), number(&header, 1), number(&header, 2));
        if sectors == 0 && flags == 0 {
            break;
        }
        position += 1;
        each(
            &file,
            Logged {
                offset: begin * SECTOR,
                length: sectors * SECTOR,
                flags,
                at: position * SECTOR,
            },
        )?;
        if flags & DISCARD == 0 {
            position += sectors;
        }
    }
    Ok(())
}

fn number(header: &[u8], position: usize) -> u64 {
    let bytes = &header[position * 8..][..8];
    u64::from_le_bytes(bytes.try_into().expect("eight bytes were asked for"))
}
