//! Packages of rpm: its SQLite database, read without running anything.
//!
//! ```text
//! page 1: sqlite_schema ─→ the root page of the table `Packages` ─→ b-tree of tables ─→ rows
//! row: (hnum, blob)       blob: an rpm header: counts, index of (tag, type, offset, count), data
//! ```
//!
//! The formats are those of "Database File Format" of SQLite and of rpm's "RPM V4 Package format" (the
//! header without its magic). Only a database that was closed well is read: what stands in a write-ahead
//! log beside it is not.
//!
//! Invariant: no more pages are visited, and no more bytes of rows read, than the file has, so a tree with
//! loops ends; every number is checked before it is used.

use super::packages::{PACKAGES_MAX, Package, ParsePackagesError, printable};

/// How deep a b-tree of SQLite can be at most, with room.
const DEPTH_MAX: u32 = 24;
/// The longest header that rpm itself reads.
const HEADER_MAX: usize = 256 << 20;

const TAG_NAME: u32 = 1000;
const TAG_VERSION: u32 = 1001;
const TAG_RELEASE: u32 = 1002;
const TAG_EPOCH: u32 = 1003;
const TAG_ARCH: u32 = 1022;
const TYPE_INT32: u32 = 4;
const TYPE_STRING: u32 = 6;

/// Reads rpm's SQLite database: the packages that are installed, in the order of their names.
pub fn parse_rpm_sqlite(bytes: &[u8]) -> Result<Vec<Package>, ParsePackagesError> {
    let database = Database::open(bytes).ok_or(ParsePackagesError::Sqlite)?;
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
    let mut packages = Vec::new();
    let mut too_many = false;
    let read = database.rows(root, &mut |row| {
        too_many = packages.len() >= PACKAGES_MAX;
        if too_many {
            return None;
        }
        let Value::Bytes(header) = row.column(1)? else {
            return None;
        };
        // Public keys are packages to rpm, and to nobody else.
        packages.extend(package(header)?.filter(|package| package.name != "gpg-pubkey"));
        Some(())
    });
    match read {
        Some(()) => {}
        None if too_many => return Err(ParsePackagesError::TooMany),
        None => return Err(ParsePackagesError::Sqlite),
    }
    packages.sort();
    Ok(packages)
}

/// Reads the header of a package; `Some(None)` where it is of no package.
#[expect(clippy::option_option, reason = "damage, no package, a package")]
fn package(header: &[u8]) -> Option<Option<Package>> {
    let entries = be32(header, 0)? as usize;
    let index = header.get(8..)?.get(..entries.checked_mul(16)?)?;
    let data = header.get(8 + index.len()..)?;
    let find = |wanted: u32, kind: u32| {
        let entry = index
            .chunks_exact(16)
            .find(|entry| be32(entry, 0) == Some(wanted) && be32(entry, 4) == Some(kind))?;
        data.get(be32(entry, 8)? as usize..)
    };
    let string = |tag| {
        let bytes = find(tag, TYPE_STRING)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        Some(printable(&bytes[..end]))
    };
    let Some(name) = string(TAG_NAME) else {
        return Some(None);
    };
    let mut version = format!("{}-{}", string(TAG_VERSION)?, string(TAG_RELEASE)?);
    if let Some(epoch) = find(TAG_EPOCH, TYPE_INT32).and_then(|bytes| be32(bytes, 0)) {
        version = format!("{epoch}:{version}");
    }
    Some(Some(Package {
        name,
        architecture: string(TAG_ARCH).unwrap_or_default(),
        version,
    }))
}

/// A database of SQLite.
struct Database<'a> {
    bytes: &'a [u8],
    page_size: usize,
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
    fn open(bytes: &'a [u8]) -> Option<Self> {
        if !bytes.starts_with(b"SQLite format 3\0") {
            return None;
        }
        let page_size = match be16(bytes, 16)? {
            1 => 65536,
            size if size >= 512 && size.is_power_of_two() => usize::from(size),
            _ => return None,
        };
        let usable = page_size.checked_sub(usize::from(*bytes.get(20)?))?;
        (usable >= 480).then_some(Self {
            bytes,
            page_size,
            usable,
        })
    }

    fn page(&self, number: u32) -> Option<&'a [u8]> {
        let start = (number as usize)
            .checked_sub(1)?
            .checked_mul(self.page_size)?;
        self.bytes.get(start..start.checked_add(self.page_size)?)
    }

    fn pages(&self) -> usize {
        self.bytes.len() / self.page_size
    }

    /// Gives every row of a table to `each`; `None` where something is not as it should be.
    fn rows(&self, root: u32, each: &mut dyn FnMut(&Row) -> Option<()>) -> Option<()> {
        let mut left = self.pages();
        // Rows do not share bytes, so all of them together are no longer than the file.
        let mut payload_left = self.bytes.len();
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

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Thirty packages as rpm stores them, one with a header longer than a page; a key among them.
    const SAMPLE: &[u8] = include_bytes!("../../../../testdata/rpm/rpmdb.sqlite");

    #[test]
    fn packages_are_read_from_leaves_branches_and_overflow_pages() {
        let packages = parse_rpm_sqlite(SAMPLE).unwrap();
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
            assert_eq!(parse_rpm_sqlite(bytes), Err(ParsePackagesError::Sqlite));
        }
        // A branch that leads to itself.
        let mut looped = SAMPLE.to_vec();
        let branch = (1..SAMPLE.len() / 512)
            .map(|page| page * 512)
            .find(|at| looped[*at] == 5)
            .unwrap();
        let number = (branch / 512 + 1) as u32;
        looped[branch + 8..branch + 12].copy_from_slice(&number.to_be_bytes());
        assert_eq!(parse_rpm_sqlite(&looped), Err(ParsePackagesError::Sqlite));
    }

    proptest! {
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
            let _ = parse_rpm_sqlite(&bytes);
        }
    }
}
