//! rpm's older database: a hash of Berkeley DB, whose values are the headers.
//!
//! ```text
//! page 0      24 … │ magic, version, size of a page │ type 8 │ last page
//! hash page   26 bytes of header │ offsets of items, 2 bytes each │ … items, from the end of the page
//!             items: key, value, key, value …; an item begins with its kind:
//!             1: the bytes themselves   3: first overflow page and length
//! overflow    26 bytes of header with the next page and the bytes in this one │ bytes
//! ```
//!
//! Numbers are in the order of bytes of the machine that made the file, which its magic shows. Keys are the
//! numbers of packages; the value of key 0 is the largest of them. The layout is that of Berkeley DB's
//! `dbinc/db_page.h`; hash pages are found by going through all pages, for each belongs to a bucket.
//!
//! Invariant: values together have no more bytes than the file, and no more pages.

use super::{HEADER_MAX, Packages, be16, be32, le32};
use crate::diff::packages::{Package, ParsePackagesError};

const MAGIC: u32 = 0x0006_1561;
/// Versions of the hash format that have this layout: Berkeley DB 4.2 and later.
const VERSIONS: std::ops::RangeInclusive<u32> = 8..=10;
const PAGE_HEADER: usize = 26;
const PAGE_HASH_META: u8 = 8;
const PAGE_HASH_UNSORTED: u8 = 2;
const PAGE_HASH: u8 = 13;
const PAGE_OVERFLOW: u8 = 7;
const ITEM_HERE: u8 = 1;
const ITEM_ELSEWHERE: u8 = 3;

/// Reads rpm's Berkeley DB database: the packages that are installed, in the order of their names.
pub fn parse_rpm_bdb(bytes: &[u8]) -> Result<Vec<Package>, ParsePackagesError> {
    let mut packages = Packages::new(ParsePackagesError::Bdb);
    let read = Database::open(bytes).and_then(|database| database.read(&mut packages));
    packages.finish(read)
}

/// A number of two or four bytes at a place.
type Number<T> = fn(&[u8], usize) -> Option<T>;

struct Database<'a> {
    bytes: &'a [u8],
    page_size: usize,
    last_page: u32,
    short: Number<u16>,
    long: Number<u32>,
}

impl<'a> Database<'a> {
    fn open(bytes: &'a [u8]) -> Option<Self> {
        let (short, long): (Number<u16>, Number<u32>) = match (le32(bytes, 12)?, be32(bytes, 12)?) {
            (MAGIC, _) => (le16, le32),
            (_, MAGIC) => (be16, be32),
            _ => return None,
        };
        let page_size = long(bytes, 20)? as usize;
        let last_page = long(bytes, 32)?;
        let good = VERSIONS.contains(&long(bytes, 16)?)
            && (512..=65536).contains(&page_size)
            && page_size.is_power_of_two()
            // Encrypted, or with checks in its pages: rpm never makes such.
            && *bytes.get(24)? == 0
            && *bytes.get(25)? == PAGE_HASH_META
            && *bytes.get(26)? & 1 == 0;
        good.then_some(Self {
            bytes,
            page_size,
            last_page,
            short,
            long,
        })
    }

    fn page(&self, number: u32) -> Option<&'a [u8]> {
        let start = (number as usize).checked_mul(self.page_size)?;
        self.bytes.get(start..start.checked_add(self.page_size)?)
    }

    fn read(&self, packages: &mut Packages) -> Option<()> {
        // Values do not share bytes, so all of them together are no longer than the file.
        let mut left = self.bytes.len();
        for number in 1..=self.last_page {
            let page = self.page(number)?;
            if !matches!(page[25], PAGE_HASH | PAGE_HASH_UNSORTED) {
                continue;
            }
            let mut items = self.items(page)?.into_iter();
            while let Some(key) = items.next() {
                let value = items.next()?;
                let &[ITEM_HERE, ref key @ ..] = key else {
                    return None;
                };
                if key.len() != 4 {
                    return None;
                }
                if key == [0; 4] {
                    continue;
                }
                match *value {
                    [ITEM_HERE, ref header @ ..] => packages.header(header)?,
                    [ITEM_ELSEWHERE, ..] => {
                        packages.header(&self.elsewhere(value, &mut left)?)?;
                    }
                    _ => return None,
                }
            }
        }
        Some(())
    }

    /// The items of a hash page: they lie one before the other, the first at the end.
    fn items(&self, page: &'a [u8]) -> Option<Vec<&'a [u8]>> {
        let count = usize::from((self.short)(page, 20)?);
        let mut items = Vec::new();
        let mut end = self.page_size;
        for item in 0..count {
            let start = usize::from((self.short)(page, PAGE_HEADER + 2 * item)?);
            if start < PAGE_HEADER + 2 * count {
                return None;
            }
            items.push(page.get(start..end)?);
            end = start;
        }
        Some(items)
    }

    /// Reads a value from its overflow pages.
    fn elsewhere(&self, item: &[u8], left: &mut usize) -> Option<Vec<u8>> {
        let mut next = (self.long)(item, 4)?;
        let length = (self.long)(item, 8)? as usize;
        *left = left.checked_sub(length)?;
        if length > HEADER_MAX {
            return None;
        }
        let mut value = Vec::with_capacity(length);
        while value.len() < length {
            let page = self.page(next)?;
            let here = usize::from((self.short)(page, 22)?);
            // Every page adds at least a byte, and the length is bounded: a loop ends.
            if page[25] != PAGE_OVERFLOW || here == 0 || here > length - value.len() {
                return None;
            }
            value.extend_from_slice(page.get(PAGE_HEADER..PAGE_HEADER + here)?);
            next = (self.long)(page, 16)?;
        }
        Some(value)
    }
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::rpm::samples::{BDB, BDB_BIG_ENDIAN, expected, shown};
    use proptest::prelude::*;

    #[test]
    fn what_berkeley_db_wrote_is_read_as_rpm_reads_it() {
        assert_eq!(shown(&parse_rpm_bdb(BDB).unwrap()), expected());
    }

    #[test]
    fn a_database_of_a_machine_with_the_other_order_of_bytes_is_read() {
        let packages = shown(&parse_rpm_bdb(BDB_BIG_ENDIAN).unwrap());
        assert_eq!(packages.len(), 3);
        assert!(packages.iter().all(|package| expected().contains(package)));
    }

    #[test]
    fn what_is_no_such_database_is_refused() {
        let changed = |at: usize, byte: u8| {
            let mut bytes = BDB.to_vec();
            bytes[at] = byte;
            bytes
        };
        let [version, encrypted, checked, btree] =
            [(16, 7), (24, 1), (26, 1), (25, 9)].map(|(at, byte)| changed(at, byte));
        for bytes in [
            &b""[..],
            &BDB[..600],
            &BDB[..BDB.len() - 1],
            &version,
            &encrypted,
            &checked,
            &btree,
        ] {
            assert_eq!(parse_rpm_bdb(bytes), Err(ParsePackagesError::Bdb));
        }
        // An overflow page that leads to itself.
        let mut looped = BDB_BIG_ENDIAN.to_vec();
        for page in (512..looped.len()).step_by(512) {
            if looped[page + 25] == PAGE_OVERFLOW {
                let number = ((page / 512) as u32).to_be_bytes();
                looped[page + 16..page + 20].copy_from_slice(&number);
            }
        }
        assert_eq!(parse_rpm_bdb(&looped), Err(ParsePackagesError::Bdb));
    }

    proptest! {
        #[test]
        fn no_damage_makes_the_reader_panic(
            changes in proptest::collection::vec((0..BDB.len(), any::<u8>()), 1..20),
            length in 0..=BDB.len(),
        ) {
            let mut bytes = BDB.to_vec();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            bytes.truncate(length);
            let _ = parse_rpm_bdb(&bytes);
        }
    }
}
