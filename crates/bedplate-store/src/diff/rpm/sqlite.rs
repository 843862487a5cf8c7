//! rpm's SQLite database, with what stands in the write-ahead log beside it.
//!
//! ```text
//! page 1: sqlite_schema ─→ the root page of the table `Packages` ─→ b-tree of tables ─→ rows
//! row: (hnum, blob)       blob: an rpm header
//! log: header, frames     frame: a page and its number; the last one of a change says so
//! ```
//!
//! The formats are those of "Database File Format" and "WAL-mode File Format" of SQLite. A log counts up to
//! its last whole change, as it does for SQLite: what comes after that, or has a wrong check, never happened.
//!
//! Invariant: no more pages are visited, and no more bytes of rows read, than the files have, so a tree with
//! loops ends; every number is checked before it is used.

use std::collections::BTreeMap;

use super::{HEADER_MAX, Packages, be16, be32, le32};
use crate::diff::packages::{Package, ParsePackagesError};

/// How deep a b-tree of SQLite can be at most, with room.
const DEPTH_MAX: u32 = 24;
/// The first bytes of a rollback journal that is in use.
const JOURNAL_MAGIC: &[u8] = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7";
/// The first bytes of a write-ahead log; the last bit is the order of bytes in its checks.
const LOG_MAGIC: u32 = 0x377f_0682;
const LOG_VERSION: u32 = 3_007_000;
const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Reads rpm's SQLite database: the packages that are installed, in the order of their names.
///
/// `log` and `journal` are the bytes of the files beside it that end in `-wal` and `-journal`, empty where
/// there are none. A change that a journal would take back is an error: the database may hold half of it.
pub fn parse_rpm_sqlite(
    bytes: &[u8],
    log: &[u8],
    journal: &[u8],
) -> Result<Vec<Package>, ParsePackagesError> {
    if journal.starts_with(JOURNAL_MAGIC) {
        return Err(ParsePackagesError::Interrupted);
    }
    let database = Database::open(bytes, log).ok_or(ParsePackagesError::Sqlite)?;
    let mut root = None;
    database
        .rows(1, &mut |row| {
            // type, name, tbl_name, rootpage, sql
            if text(row.column(0)?) == Some(b"table") && text(row.column(1)?) == Some(b"Packages") {
                root = integer(row.column(3)?);
            }
            Some(())
        })
        .ok_or(ParsePackagesError::Sqlite)?;
    let root = root
        .and_then(|root| u32::try_from(root).ok())
        .ok_or(ParsePackagesError::Sqlite)?;
    let mut packages = Packages::new(ParsePackagesError::Sqlite);
    let read = database.rows(root, &mut |row| {
        let Value::Bytes(header) = row.column(1)? else {
            return None;
        };
        packages.header(header)
    });
    packages.finish(read)
}

/// A database of SQLite.
struct Database<'a> {
    bytes: &'a [u8],
    log: &'a [u8],
    page_size: usize,
    /// Where the pages lie that the log has newer than the file.
    newer: BTreeMap<u32, usize>,
    /// The bytes of a page that hold content.
    usable: usize,
}

/// A row of a table.
struct Row {
    /// The record: its header, and its values.
    payload: Vec<u8>,
}

enum Value<'a> {
    Null,
    Integer(i64),
    Bytes(&'a [u8]),
    Text(&'a [u8]),
}

fn integer(value: Value<'_>) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(number),
        Value::Null | Value::Bytes(_) | Value::Text(_) => None,
    }
}

fn text(value: Value<'_>) -> Option<&[u8]> {
    match value {
        Value::Text(text) => Some(text),
        Value::Null | Value::Integer(_) | Value::Bytes(_) => None,
    }
}

impl<'a> Database<'a> {
    fn open(bytes: &'a [u8], log: &'a [u8]) -> Option<Self> {
        if !bytes.starts_with(b"SQLite format 3\0") {
            return None;
        }
        let page_size = match be16(bytes, 16)? {
            1 => 65536,
            size if size >= 512 && size.is_power_of_two() => usize::from(size),
            _ => return None,
        };
        let usable = page_size.checked_sub(usize::from(*bytes.get(20)?))?;
        let newer = newer_pages(log, page_size).unwrap_or_default();
        (usable >= 480).then_some(Self {
            bytes,
            log,
            page_size,
            newer,
            usable,
        })
    }

    fn page(&self, number: u32) -> Option<&'a [u8]> {
        if let Some(start) = self.newer.get(&number) {
            return self.log.get(*start..start.checked_add(self.page_size)?);
        }
        let start = (number as usize)
            .checked_sub(1)?
            .checked_mul(self.page_size)?;
        self.bytes.get(start..start.checked_add(self.page_size)?)
    }

    fn pages(&self) -> usize {
        self.bytes.len() / self.page_size + self.newer.len()
    }

    /// Gives every row of a table to `each`; `None` where something is not as it should be.
    fn rows(&self, root: u32, each: &mut dyn FnMut(&Row) -> Option<()>) -> Option<()> {
        let mut left = self.pages();
        // Rows do not share bytes, so all of them together are no longer than the files.
        let mut payload_left = self.bytes.len().saturating_add(self.log.len());
        let mut pending = vec![(root, 0_u32)];
        while let Some((number, depth)) = pending.pop() {
            left = left.checked_sub(1)?;
            if depth > DEPTH_MAX {
                return None;
            }
            let page = self.page(number)?;
            let header = if number == 1 { 100 } else { 0 };
            let kind = *page.get(header)?;
            let cells = usize::from(be16(page, header + 3)?);
            let pointers = header + if kind == 5 { 12 } else { 8 };
            let mut children = Vec::new();
            for cell in 0..cells {
                let at = usize::from(be16(page, pointers + cell * 2)?);
                match kind {
                    5 => children.push(be32(page, at)?),
                    13 => {
                        let row = self.row(page, at, payload_left)?;
                        payload_left -= row.payload.len();
                        each(&row)?;
                    }
                    _ => return None,
                }
            }
            if kind == 5 {
                children.push(be32(page, header + 8)?);
            }
            // The stack turns the order round.
            pending.extend(children.into_iter().rev().map(|child| (child, depth + 1)));
        }
        Some(())
    }

    /// Reads a cell of a leaf, with the pages that it overflows into.
    fn row(&self, page: &[u8], at: usize, max: usize) -> Option<Row> {
        let (length, at) = varint(page, at)?;
        let (_rowid, at) = varint(page, at)?;
        let length = usize::try_from(length).ok()?;
        if length > HEADER_MAX || length > max {
            return None;
        }
        let local = self.local(length);
        let mut payload = Vec::with_capacity(length);
        payload.extend_from_slice(page.get(at..at.checked_add(local)?)?);
        let mut next = if local < length {
            be32(page, at + local)?
        } else {
            0
        };
        while payload.len() < length {
            // Every page adds at least a byte, and the length is bounded: a loop ends.
            let page = self.page(next)?;
            next = be32(page, 0)?;
            let more = (length - payload.len()).min(self.usable - 4);
            payload.extend_from_slice(page.get(4..4 + more)?);
        }
        Some(Row { payload })
    }

    /// Returns how many bytes of a payload lie in the leaf itself ("Cell Payload Overflow Pages").
    fn local(&self, length: usize) -> usize {
        let max = self.usable - 35;
        if length <= max {
            return length;
        }
        let min = (self.usable - 12) * 32 / 255 - 23;
        let fits = min + (length - min) % (self.usable - 4);
        if fits <= max { fits } else { min }
    }
}

impl Row {
    /// Returns a column; one that the record does not have is null.
    fn column(&self, wanted: usize) -> Option<Value<'_>> {
        let (header_length, mut at) = varint(&self.payload, 0)?;
        let header_length = usize::try_from(header_length).ok()?;
        let mut value_at = header_length;
        let mut column = 0;
        while at < header_length {
            let (kind, next) = varint(&self.payload, at)?;
            at = next;
            let length = match kind {
                0 | 8 | 9 => 0,
                1..=4 => kind as usize,
                5 => 6,
                6 | 7 => 8,
                10 | 11 => return None,
                _ => usize::try_from((kind - 12) / 2).ok()?,
            };
            let end = value_at.checked_add(length)?;
            let bytes = self.payload.get(value_at..end)?;
            if column == wanted {
                return Some(match kind {
                    1..=6 => Value::Integer(signed(bytes)),
                    8 | 9 => Value::Integer((kind - 8) as i64),
                    12.. if kind % 2 == 0 => Value::Bytes(bytes),
                    12.. => Value::Text(bytes),
                    _ => Value::Null,
                });
            }
            value_at = end;
            column += 1;
        }
        Some(Value::Null)
    }
}

/// Finds the pages of a log's whole changes: for each the place of its newest bytes; `None` where the log
/// holds nothing that counts.
fn newer_pages(log: &[u8], page_size: usize) -> Option<BTreeMap<u32, usize>> {
    let magic = be32(log, 0)?;
    let word = match magic ^ LOG_MAGIC {
        0 => le32,
        1 => be32,
        _ => return None,
    };
    if be32(log, 4)? != LOG_VERSION || be32(log, 8)? as usize != page_size {
        return None;
    }
    let salts = log.get(16..24)?;
    let mut check = Check { word, sums: (0, 0) };
    check.add(log.get(..24)?)?;
    if !check.equals(log, 24) {
        return None;
    }
    let mut newer = BTreeMap::new();
    let mut change = Vec::new();
    let mut at = LOG_HEADER;
    while let Some(frame) = log.get(at..at.checked_add(FRAME_HEADER + page_size)?) {
        // A log is written again from its beginning: what has other salts, or a wrong check, is from before.
        check.add(&frame[..8])?;
        check.add(&frame[FRAME_HEADER..])?;
        if &frame[8..16] != salts || !check.equals(frame, 16) {
            break;
        }
        change.push((be32(frame, 0)?, at + FRAME_HEADER));
        let pages = be32(frame, 4)?;
        if pages != 0 {
            newer.extend(change.drain(..));
        }
        at += frame.len();
    }
    Some(newer)
}

/// The running check of a write-ahead log.
struct Check {
    word: fn(&[u8], usize) -> Option<u32>,
    sums: (u32, u32),
}

impl Check {
    /// Adds bytes, a multiple of eight.
    fn add(&mut self, bytes: &[u8]) -> Option<()> {
        let (mut first, mut second) = self.sums;
        for pair in bytes.chunks_exact(8) {
            first = first
                .wrapping_add((self.word)(pair, 0)?)
                .wrapping_add(second);
            second = second
                .wrapping_add((self.word)(pair, 4)?)
                .wrapping_add(first);
        }
        self.sums = (first, second);
        Some(())
    }

    fn equals(&self, bytes: &[u8], at: usize) -> bool {
        (be32(bytes, at), be32(bytes, at + 4)) == (Some(self.sums.0), Some(self.sums.1))
    }
}

/// Reads a big-endian number of up to 8 bytes with its sign.
fn signed(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    let start = if negative { -1 } else { 0 };
    bytes
        .iter()
        .fold(start, |number: i64, byte| (number << 8) | i64::from(*byte))
}

/// Reads a number of one to nine bytes; returns it with the position behind it.
fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut number = 0_u64;
    for position in 0..9 {
        let byte = *bytes.get(at.checked_add(position)?)?;
        if position == 8 {
            return Some(((number << 8) | u64::from(byte), at + 9));
        }
        number = (number << 7) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((number, at + position + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::rpm::samples::{self, expected, shown};
    use proptest::prelude::*;

    /// Thirty packages in a database with small pages; one with a header longer than a page, and a key.
    const SAMPLE: &[u8] = include_bytes!("../../../../../testdata/rpm/made-up.sqlite");

    #[test]
    fn packages_are_read_from_leaves_branches_and_overflow_pages() {
        let packages = parse_rpm_sqlite(SAMPLE, b"", b"").unwrap();
        assert_eq!(packages.len(), 30);
        let package = |name: &str| packages.iter().find(|it| it.name == name).unwrap();
        assert_eq!(package("bash").version, "5.2.26-3.fc40");
        assert_eq!(package("bash").architecture, "x86_64");
        assert_eq!(package("vim").version, "2:9.1.0-1.fc40");
        assert_eq!(package("package-29").version, "29-1");
    }

    #[test]
    fn what_is_no_such_database_is_refused() {
        for bytes in [&b""[..], b"SQLite format 3\0", &SAMPLE[..3000]] {
            assert_eq!(
                parse_rpm_sqlite(bytes, b"", b""),
                Err(ParsePackagesError::Sqlite)
            );
        }
        // A branch that leads to itself.
        let mut looped = SAMPLE.to_vec();
        let branch = (1..SAMPLE.len() / 512)
            .map(|page| page * 512)
            .find(|at| looped[*at] == 5)
            .unwrap();
        let number = (branch / 512 + 1) as u32;
        looped[branch + 8..branch + 12].copy_from_slice(&number.to_be_bytes());
        assert_eq!(
            parse_rpm_sqlite(&looped, b"", b""),
            Err(ParsePackagesError::Sqlite)
        );
    }

    #[test]
    fn what_rpm_wrote_is_read_as_rpm_reads_it() {
        let packages = parse_rpm_sqlite(samples::SQLITE, b"", b"").unwrap();
        assert_eq!(shown(&packages), expected());
        // The header of this one goes on in pages of its own.
        assert!(packages.iter().any(|package| package.name == "long"));
    }

    #[test]
    fn a_change_that_stands_in_the_log_alone_counts_when_it_is_whole() {
        let read = |log: &[u8]| shown(&parse_rpm_sqlite(samples::SQLITE, log, b"").unwrap());
        let after = read(samples::SQLITE_LOG);
        let mut wanted = expected();
        wanted.retain(|package| !package.starts_with("plain "));
        wanted.push("late noarch 5:4.4-4".to_owned());
        wanted.sort();
        assert_eq!(after, wanted);

        // Cut within the last change, it is as before that: `plain` was removed last.
        let cut = read(&samples::SQLITE_LOG[..samples::SQLITE_LOG.len() - 5000]);
        let with = |name: &str| cut.iter().any(|package| package.starts_with(name));
        assert!(with("late ") && with("plain "), "{cut:?}");
        // Damaged in its first frame or in its header, nothing in it happened.
        for at in [0, 9, 20, LOG_HEADER + 3, LOG_HEADER + FRAME_HEADER + 100] {
            let mut damaged = samples::SQLITE_LOG.to_vec();
            damaged[at] ^= 1;
            assert_eq!(read(&damaged), expected(), "byte {at}");
        }
    }

    #[test]
    fn a_change_that_a_journal_would_take_back_is_refused() {
        let mut journal = JOURNAL_MAGIC.to_vec();
        journal.resize(512, 0);
        assert_eq!(
            parse_rpm_sqlite(samples::SQLITE, b"", &journal),
            Err(ParsePackagesError::Interrupted)
        );
        // Zeros at its beginning say that it is over.
        journal[..8].fill(0);
        assert!(parse_rpm_sqlite(samples::SQLITE, b"", &journal).is_ok());
    }

    proptest! {
        #[test]
        fn no_damage_to_a_log_makes_the_reader_panic(
            changes in proptest::collection::vec((0..samples::SQLITE_LOG.len(), any::<u8>()), 1..20),
            length in 0..=samples::SQLITE_LOG.len(),
        ) {
            let mut log = samples::SQLITE_LOG.to_vec();
            for (at, byte) in changes {
                log[at] = byte;
            }
            log.truncate(length);
            let _ = parse_rpm_sqlite(samples::SQLITE, &log, b"");
        }

        #[test]
        fn no_damage_makes_the_reader_panic(
            changes in proptest::collection::vec((0..SAMPLE.len(), any::<u8>()), 1..20),
            length in 0..=SAMPLE.len(),
        ) {
            let mut bytes = SAMPLE.to_vec();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            bytes.truncate(length);
            let _ = parse_rpm_sqlite(&bytes, b"", b"");
        }
    }
}
