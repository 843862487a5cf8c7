//! The table of the index: sorted records in blocks that each carry their own check.
//!
//! ```text
//! header   magic · version · record size · count · check of header and fan-out       64 bytes
//! fan-out  for each first byte of a digest: how many records come up to and with it  256 × 8 bytes
//! blocks   32 records of 120 bytes · SHA-256 of them                                 the last one shorter
//! ```
//!
//! Invariant: what was read passed the check of its block; no number in the file decides how much memory
//! is taken. `docs/format/store.md`, "Index", is normative.

use std::fs::File;
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;

use bedplate_model::tree::INLINE_MAX;
use bedplate_model::{Algorithm, ObjectId, Sha256};
use sha2::Digest as _;

use super::Located;

const MAGIC: [u8; 16] = *b"bedplate-index\n\0";
const VERSION: u32 = 1;
const HEADER: usize = 64;
const FAN_OUT: usize = 256 * 8;
const RECORD: usize = 120;
const RECORDS_OF_BLOCK: u64 = 32;
const CHECK: usize = 32;
const BLOCK: usize = RECORDS_OF_BLOCK as usize * RECORD + CHECK;
const BODY: u64 = (HEADER + FAN_OUT) as u64;

const WHOLE: u8 = 1;
const PART: u8 = 2;
const BYTES: u8 = 3;

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It could not be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    /// It is something else, or of another version.
    #[error("it is not an index of version {VERSION}")]
    Version,
    /// A check does not hold.
    #[error("{0} does not pass its check")]
    Check(&'static str),
    /// It is as long as no table with so many records.
    #[error("it has {found} bytes instead of {wanted}")]
    Length {
        /// The length that its count asks for.
        wanted: u64,
        /// The length that it has.
        found: u64,
    },
    /// A record that means nothing.
    #[error("it has a record of no known kind")]
    Record,
}

/// A table, open for reading.
#[derive(Debug)]
pub(super) struct Segment {
    file: File,
    count: u64,
    fan_out: Box<[u64]>,
}

impl Segment {
    pub(super) fn open(file: File) -> Result<Self, DecodeError> {
        let found = file.metadata()?.len();
        if found < BODY {
            return Err(DecodeError::Version);
        }
        let mut head = [0; HEADER + FAN_OUT];
        file.read_exact_at(&mut head, 0)?;
        let (header, fan_out) = head.split_at(HEADER);
        if header[..16] != MAGIC
            || number(&header[16..24]) != u64::from(VERSION) | (RECORD as u64) << 32
        {
            return Err(DecodeError::Version);
        }
        if head_check(&header[..32], fan_out) != header[32..] {
            return Err(DecodeError::Check("its head"));
        }
        let count = number(&header[24..32]);
        let wanted = length_of(count).ok_or(DecodeError::Check("its head"))?;
        if found != wanted {
            return Err(DecodeError::Length { wanted, found });
        }
        let fan_out: Box<[u64]> = fan_out.chunks_exact(8).map(number).collect();
        if !fan_out.is_sorted() || fan_out.last() != Some(&count) {
            return Err(DecodeError::Check("its head"));
        }
        Ok(Self {
            file,
            count,
            fan_out,
        })
    }

    /// Finds a record: the fan-out leaves a few blocks, of which a binary search reads some.
    pub(super) fn find(&self, digest: &Sha256) -> Result<Option<Located>, DecodeError> {
        let first = usize::from(digest.0[0]);
        let start = first
            .checked_sub(1)
            .map_or(0, |before| self.fan_out[before]);
        let end = self.fan_out[first];
        if start == end {
            return Ok(None);
        }
        let (mut low, mut high) = (start / RECORDS_OF_BLOCK, (end - 1) / RECORDS_OF_BLOCK);
        loop {
            let middle = low + (high - low) / 2;
            let block = self.block(middle)?;
            let record = block.binary_search_by(|record| record[..32].cmp(&digest.0));
            match record {
                Ok(position) => return decode(&block[position]).map(|(_, located)| Some(located)),
                Err(0) if middle > low => high = middle - 1,
                Err(position) if position == block.len() && middle < high => low = middle + 1,
                Err(_) => return Ok(None),
            }
        }
    }

    /// Goes through all records in order, past blocks that do not pass their check.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Sha256, Located)> + '_ {
        (0..self.count.div_ceil(RECORDS_OF_BLOCK))
            .filter_map(|position| self.block(position).ok())
            .flatten()
            .filter_map(|record| decode(&record).ok())
    }

    fn block(&self, position: u64) -> Result<Vec<[u8; RECORD]>, DecodeError> {
        let records = (self.count - position * RECORDS_OF_BLOCK).min(RECORDS_OF_BLOCK) as usize;
        let mut bytes = [0; BLOCK];
        let bytes = &mut bytes[..records * RECORD + CHECK];
        self.file
            .read_exact_at(bytes, BODY + position * BLOCK as u64)?;
        let (records, check) = bytes.split_at(bytes.len() - CHECK);
        if sha2::Sha256::digest(records).as_slice() != check {
            return Err(DecodeError::Check("a block"));
        }
        let (records, _) = records.as_chunks::<RECORD>();
        Ok(records.to_vec())
    }
}

/// Writes a table from records in the order of their digests.
pub(super) struct SegmentWriter<'a> {
    file: &'a File,
    out: BufWriter<&'a File>,
    block: Vec<u8>,
    count: u64,
    fan_out: [u64; 256],
}

impl<'a> SegmentWriter<'a> {
    pub(super) fn new(mut file: &'a File) -> io::Result<Self> {
        file.seek(SeekFrom::Start(BODY))?;
        Ok(Self {
            file,
            out: BufWriter::new(file),
            block: Vec::with_capacity(BLOCK),
            count: 0,
            fan_out: [0; 256],
        })
    }

    pub(super) fn push(&mut self, digest: &Sha256, located: &Located) -> io::Result<()> {
        self.block.extend_from_slice(&encode(digest, located));
        self.count += 1;
        self.fan_out[usize::from(digest.0[0])] = self.count;
        if self.block.len() == BLOCK - CHECK {
            self.end_block()?;
        }
        Ok(())
    }

    /// Completes the file, and returns how many records it has.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        self.out.flush()?;
        let mut fan_out = Vec::with_capacity(FAN_OUT);
        let mut so_far = 0;
        for count in self.fan_out {
            so_far = so_far.max(count);
            fan_out.extend_from_slice(&so_far.to_le_bytes());
        }
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&(RECORD as u32).to_le_bytes());
        header.extend_from_slice(&self.count.to_le_bytes());
        let check = head_check(&header, &fan_out);
        header.extend_from_slice(&check);
        self.file.write_all_at(&header, 0)?;
        self.file.write_all_at(&fan_out, HEADER as u64)?;
        Ok(self.count)
    }

    fn end_block(&mut self) -> io::Result<()> {
        let check = sha2::Sha256::digest(&self.block);
        self.out.write_all(&self.block)?;
        self.out.write_all(&check)?;
        self.block.clear();
        Ok(())
    }
}

/// Record: digest, kind, length of the payload, six zeros, two numbers, payload padded with zeros.
fn encode(digest: &Sha256, located: &Located) -> [u8; RECORD] {
    let (kind, numbers, payload) = match located {
        Located::Whole { id, size } => (WHOLE, [*size, 0], id.as_bytes()),
        Located::Part { id, offset, length } => (PART, [*offset, *length], id.as_bytes()),
        Located::Bytes(bytes) => (BYTES, [0, 0], &bytes[..]),
    };
    let mut record = [0; RECORD];
    record[..32].copy_from_slice(&digest.0);
    record[32] = kind;
    record[33] = payload.len() as u8;
    record[40..48].copy_from_slice(&numbers[0].to_le_bytes());
    record[48..56].copy_from_slice(&numbers[1].to_le_bytes());
    record[56..56 + payload.len()].copy_from_slice(payload);
    record
}

fn decode(record: &[u8; RECORD]) -> Result<(Sha256, Located), DecodeError> {
    let (digest, rest) = record.split_first_chunk().ok_or(DecodeError::Record)?;
    let payload = rest[24..]
        .get(..usize::from(rest[1]))
        .ok_or(DecodeError::Record)?;
    let id = || {
        [Algorithm::Sha256, Algorithm::Sha512]
            .into_iter()
            .find_map(|algorithm| ObjectId::from_bytes(algorithm, payload))
            .ok_or(DecodeError::Record)
    };
    let (first, second) = (number(&rest[8..16]), number(&rest[16..24]));
    let located = match rest[0] {
        WHOLE => Located::Whole {
            id: id()?,
            size: first,
        },
        PART => Located::Part {
            id: id()?,
            offset: first,
            length: second,
        },
        BYTES if payload.len() <= INLINE_MAX => Located::Bytes(payload.into()),
        _ => return Err(DecodeError::Record),
    };
    Ok((Sha256(*digest), located))
}

fn head_check(header: &[u8], fan_out: &[u8]) -> [u8; CHECK] {
    let mut hasher = sha2::Sha256::new();
    hasher.update(header);
    hasher.update(fan_out);
    hasher.finalize().into()
}

/// The length of a table, or `None` where no file is as long.
fn length_of(count: u64) -> Option<u64> {
    let checks = count.div_ceil(RECORDS_OF_BLOCK).checked_mul(CHECK as u64)?;
    let records = count.checked_mul(RECORD as u64)?;
    BODY.checked_add(checks)?.checked_add(records)
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn located() -> impl Strategy<Value = Located> {
        let id = prop_oneof![
            any::<[u8; 32]>().prop_map(ObjectId::Sha256),
            (any::<[u8; 32]>(), any::<[u8; 32]>()).prop_map(|(one, other)| {
                let mut digest = [0; 64];
                digest[..32].copy_from_slice(&one);
                digest[32..].copy_from_slice(&other);
                ObjectId::Sha512(digest)
            }),
        ];
        prop_oneof![
            (id.clone(), any::<u64>()).prop_map(|(id, size)| Located::Whole { id, size }),
            (id, any::<u64>(), any::<u64>()).prop_map(|(id, offset, length)| Located::Part {
                id,
                offset,
                length
            }),
            proptest::collection::vec(any::<u8>(), 0..=INLINE_MAX)
                .prop_map(|bytes| Located::Bytes(bytes.into())),
        ]
    }

    fn written(entries: &BTreeMap<[u8; 32], Located>) -> File {
        let file = tempfile::tempfile().unwrap();
        let mut writer = SegmentWriter::new(&file).unwrap();
        for (digest, located) in entries {
            writer.push(&Sha256(*digest), located).unwrap();
        }
        assert_eq!(writer.finish().unwrap(), entries.len() as u64);
        file
    }

    /// Digests that crowd under few first bytes, and some that do not.
    fn digests() -> impl Strategy<Value = [u8; 32]> {
        (
            prop_oneof![Just(7), Just(0), Just(255), any::<u8>()],
            any::<[u8; 32]>(),
        )
            .prop_map(|(first, mut digest)| {
                digest[0] = first;
                digest
            })
    }

    proptest! {
        #[test]
        fn everything_is_found_and_nothing_else(
            entries in proptest::collection::btree_map(digests(), located(), 0..300),
            others in proptest::collection::vec(digests(), 20),
        ) {
            let segment = Segment::open(written(&entries)).unwrap();
            for (digest, located) in &entries {
                let found = segment.find(&Sha256(*digest)).unwrap();
                prop_assert_eq!(found.as_ref(), Some(located));
            }
            for digest in others {
                let found = segment.find(&Sha256(digest)).unwrap();
                prop_assert_eq!(found.as_ref(), entries.get(&digest));
            }
            let all: BTreeMap<[u8; 32], Located> =
                segment.entries().map(|(digest, located)| (digest.0, located)).collect();
            prop_assert_eq!(all, entries);
        }

        #[test]
        fn a_changed_byte_gives_an_error_or_the_same_answer(
            entries in proptest::collection::btree_map(digests(), located(), 1..100),
            at in any::<prop::sample::Index>(),
            flip in 1..=255_u8,
        ) {
            let file = written(&entries);
            let length = file.metadata().unwrap().len();
            let at = at.index(length as usize) as u64;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ flip], at).unwrap();
            if let Ok(segment) = Segment::open(file) {
                for (digest, located) in &entries {
                    if let Ok(found) = segment.find(&Sha256(*digest)) {
                        prop_assert_eq!(found.as_ref(), Some(located));
                    }
                }
            }
        }
    }

    #[test]
    fn a_table_that_was_cut_short_is_refused() {
        let entries = (0..100)
            .map(|number| ([number; 32], Located::Bytes([number].into())))
            .collect();
        let file = written(&entries);
        let length = file.metadata().unwrap().len();
        for cut in [0, 10, BODY - 1, BODY, length - 1] {
            file.set_len(cut).unwrap();
            assert!(Segment::open(file.try_clone().unwrap()).is_err(), "{cut}");
        }
    }
}
