//! rpm's own database format, ndb: a table of slots, and the headers behind it.
//!
//! ```text
//! page 0      header "RpmP": version, generation, number of pages of slots, next package   32 bytes
//! pages 0..n  slots "Slot": package, first block, number of blocks; 0 as first block: free  16 bytes each
//! behind      blobs of whole blocks of 16 bytes: "BlbS" package, generation, length │ header, zeros │
//!             adler32, length, "BlbE"
//! ```
//!
//! Numbers are little-endian. The format is the one that rpm's `lib/backend/ndb/rpmpkg.c` writes.
//!
//! Invariant: a blob counts only when its head, tail and check agree with its slot; blobs together have no
//! more bytes than the file.

use super::{Packages, le32};
use crate::diff::packages::{Package, ParsePackagesError};

const PAGE: usize = 4096;
const SLOT: usize = 16;
const BLOCK: usize = 16;
const HEAD: usize = 16;
const TAIL: usize = 12;

/// Reads rpm's ndb database: the packages that are installed, in the order of their names.
pub fn parse_rpm_ndb(bytes: &[u8]) -> Result<Vec<Package>, ParsePackagesError> {
    let mut packages = Packages::new(ParsePackagesError::Ndb);
    let read = read(bytes, &mut packages);
    packages.finish(read)
}

fn read(bytes: &[u8], packages: &mut Packages) -> Option<()> {
    let is =
        |at: usize, magic: &[u8; 4]| bytes.get(at..at.checked_add(4)?)?.eq(magic).then_some(());
    is(0, b"RpmP")?;
    if le32(bytes, 4)? != 0 {
        return None;
    }
    let slots_end = (le32(bytes, 12)? as usize).checked_mul(PAGE)?;
    if slots_end == 0 || slots_end > bytes.len() {
        return None;
    }
    // Blobs do not share bytes, so all of them together are no longer than the file.
    let mut left = bytes.len();
    // The header takes the place of the first two slots.
    for slot in (2 * SLOT..slots_end).step_by(SLOT) {
        is(slot, b"Slot")?;
        let package = le32(bytes, slot + 4)?;
        let start = (le32(bytes, slot + 8)? as usize).checked_mul(BLOCK)?;
        if start == 0 {
            continue; // free
        }
        let length = (le32(bytes, slot + 12)? as usize).checked_mul(BLOCK)?;
        left = left.checked_sub(length)?;
        let blob = bytes.get(start..start.checked_add(length)?)?;
        if package == 0 || start < slots_end {
            return None;
        }
        packages.header(blob_content(blob, package)?)?;
    }
    Some(())
}

/// Takes a blob apart.
fn blob_content(blob: &[u8], package: u32) -> Option<&[u8]> {
    let tail_at = blob.len().checked_sub(TAIL)?;
    let length = le32(blob, 12)?;
    let content_end = HEAD.checked_add(length as usize)?;
    let good = blob.starts_with(b"BlbS")
        && le32(blob, 4)? == package
        && content_end.checked_add(TAIL)?.next_multiple_of(BLOCK) == blob.len()
        && le32(blob, tail_at)? == adler32(&blob[..tail_at])
        && le32(blob, tail_at + 4)? == length
        && blob.ends_with(b"BlbE");
    if good {
        blob.get(HEAD..content_end)
    } else {
        None
    }
}

/// The check of RFC 1950.
fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65521;
    let (mut first, mut second) = (1_u32, 0_u32);
    // So many bytes that the sums cannot overflow in between.
    for run in bytes.chunks(5552) {
        for byte in run {
            first += u32::from(*byte);
            second += first;
        }
        first %= MODULUS;
        second %= MODULUS;
    }
    (second << 16) | first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::rpm::samples::{NDB, expected, shown};
    use proptest::prelude::*;

    #[test]
    fn what_rpms_own_code_wrote_is_read_with_its_gaps() {
        assert_eq!(shown(&parse_rpm_ndb(NDB).unwrap()), expected());
    }

    #[test]
    fn no_single_wrong_byte_of_a_blob_goes_unnoticed() {
        let start = le32(NDB, 2 * SLOT + 8).unwrap() as usize * BLOCK;
        let length = le32(NDB, 2 * SLOT + 12).unwrap() as usize * BLOCK;
        for at in start..start + length {
            let mut bytes = NDB.to_vec();
            bytes[at] ^= 1;
            assert_eq!(parse_rpm_ndb(&bytes), Err(ParsePackagesError::Ndb), "{at}");
        }
    }

    #[test]
    fn what_is_no_such_database_is_refused() {
        let mut many_slots = NDB.to_vec();
        many_slots[12..16].fill(0xff);
        let mut version = NDB.to_vec();
        version[4] = 1;
        for bytes in [&b""[..], b"RpmP", &NDB[..PAGE], &many_slots, &version] {
            assert_eq!(parse_rpm_ndb(bytes), Err(ParsePackagesError::Ndb));
        }
        // One blob in two slots: they would be two packages.
        let mut twice = NDB.to_vec();
        let first = NDB[2 * SLOT..3 * SLOT].to_vec();
        for slot in 3..40 {
            twice[slot * SLOT..][..SLOT].copy_from_slice(&first);
        }
        assert_eq!(parse_rpm_ndb(&twice), Err(ParsePackagesError::Ndb));
    }

    proptest! {
        #[test]
        fn no_damage_makes_the_reader_panic(
            changes in proptest::collection::vec((0..NDB.len(), any::<u8>()), 1..20),
            length in 0..=NDB.len(),
        ) {
            let mut bytes = NDB.to_vec();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            bytes.truncate(length);
            let _ = parse_rpm_ndb(&bytes);
        }
    }
}
