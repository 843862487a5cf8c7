//! Sparse members: files whose holes a tar leaves out, and the maps that say where their data lie.
//!
//! ```text
//! old GNU   type S; four segments in the header, 21 more in each block behind it
//! PAX 0.0   GNU.sparse.size, then .offset and .numbytes again and again
//! PAX 0.1   GNU.sparse.size, GNU.sparse.map=offset,length,…
//! PAX 1.0   GNU.sparse.major=1, .minor=0, .realsize; the map is text in front of the data
//! ```
//!
//! Invariant: the segments of a map lie one behind the other inside the file, and are as long as the data
//! that follow: each byte of the stream has one place in the file, and what is between is zero.

use std::io::{self, Read};
use std::ops::Range;

use bedplate_model::{Algorithm, ObjectId};

use super::error::LayerError;
use super::parse::{BLOCK, Feed, Member, Records};
use super::pax;
use crate::verity::Hasher;

/// The longest sparse file: larger than any that a layer has for a good reason, and small enough to be
/// read to its end.
pub(super) const MAX_SIZE: u64 = 1 << 42;
/// The most segments of one file, empty ones counted.
pub(super) const MAX_SEGMENTS: u64 = 1 << 20;

/// What all keys of PAX records about sparse files begin with.
pub(super) const PREFIX: &[u8] = b"GNU.sparse.";
/// The key of the file's own path; `path` is a stand-in for readers that know no sparse files.
pub(super) const NAME: &[u8] = b"GNU.sparse.name";

const SIZE: &[u8] = b"GNU.sparse.size";
const COUNT: &[u8] = b"GNU.sparse.numblocks";
const OFFSET: &[u8] = b"GNU.sparse.offset";
const LENGTH: &[u8] = b"GNU.sparse.numbytes";
const MAP: &[u8] = b"GNU.sparse.map";
const MAJOR: &[u8] = b"GNU.sparse.major";
const MINOR: &[u8] = b"GNU.sparse.minor";
const REAL_SIZE: &[u8] = b"GNU.sparse.realsize";

/// How many bytes a copy of zeros is done in.
const ZEROS: usize = 64 << 10;

/// Where the data of a file with holes lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseMap {
    size: u64,
    /// In order, without overlaps; none is empty.
    segments: Vec<Range<u64>>,
}

impl SparseMap {
    /// Returns the length of the file, its holes included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns where the data lie: in order, inside the file, none empty. All else is zero.
    pub fn segments(&self) -> &[Range<u64>] {
        &self.segments
    }

    /// Returns a reader of the whole file, holes as zeros; `data` gives the segments, one behind the other.
    pub fn expand<R: Read>(&self, data: R) -> Expanded<'_, R> {
        Expanded {
            map: self,
            data,
            next: 0,
            position: 0,
        }
    }

    /// Returns the digest of the whole file, and its length; less than it should be where the data end early.
    pub fn digest(&self, algorithm: Algorithm, data: &mut dyn Read) -> io::Result<(ObjectId, u64)> {
        let mut hasher = Hasher::new(algorithm);
        let mut position = 0;
        let mut buffer = vec![0; ZEROS];
        for segment in &self.segments {
            hasher.update_zeros(segment.start - position);
            position = segment.start;
            while position < segment.end {
                let wanted = (segment.end - position).min(ZEROS as u64) as usize;
                match data.read(&mut buffer[..wanted]) {
                    Ok(0) => return Ok((hasher.finish(), position)),
                    Ok(count) => {
                        hasher.update(&buffer[..count]);
                        position += count as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        hasher.update_zeros(self.size - position);
        Ok((hasher.finish(), self.size))
    }
}

/// A file with holes, read as if it had none.
#[derive(Debug)]
pub struct Expanded<'a, R> {
    map: &'a SparseMap,
    data: R,
    /// The first segment that is not read to its end.
    next: usize,
    position: u64,
}

impl<R: Read> Read for Expanded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let segment = self.map.segments.get(self.next);
        let (end, is_data) = match segment {
            Some(segment) if self.position >= segment.start => (segment.end, true),
            Some(segment) => (segment.start, false),
            None => (self.map.size, false),
        };
        let count = (end - self.position).min(buffer.len() as u64) as usize;
        let count = if is_data {
            self.data.read(&mut buffer[..count])?
        } else {
            buffer[..count].fill(0);
            count
        };
        self.position += count as u64;
        if is_data && self.position == end {
            self.next += 1;
        }
        Ok(count)
    }
}

/// How a member says that it is sparse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    OldGnu,
    /// PAX 0.0.
    Pairs,
    /// PAX 0.1.
    List,
    /// PAX 1.0.
    Text,
}

/// What is wrong with a map.
type Problem = &'static str;

impl Form {
    /// Finds out whether a member is sparse, and how.
    pub(super) fn of(member: &Member, local: &Records) -> Result<Option<Self>, Problem> {
        let keys: Vec<&[u8]> = local
            .keys()
            .map(|key| &**key)
            .filter(|key| key.starts_with(PREFIX))
            .collect();
        let kind = member.header[156];
        if kind == b'S' {
            if !keys.is_empty() {
                return Err("it has two maps");
            }
            if &member.header[257..265] != b"ustar  \0" {
                return Err("its header is not one of GNU tar");
            }
            return Ok(Some(Self::OldGnu));
        }
        if keys.is_empty() {
            return Ok(None);
        }
        if !matches!(kind, 0 | b'0' | b'7') {
            return Err("it is no regular file");
        }
        let has = |key: &[u8]| keys.contains(&key);
        let (form, known): (_, &[&[u8]]) = if has(MAJOR) || has(MINOR) {
            let is =
                |key: &[u8], wanted: &[u8]| local.get(key).is_some_and(|value| &**value == wanted);
            if !is(MAJOR, b"1") || !is(MINOR, b"0") {
                return Err("it is of a version that is not known");
            }
            (Self::Text, &[MAJOR, MINOR, REAL_SIZE, NAME])
        } else if has(MAP) {
            (Self::List, &[SIZE, COUNT, MAP, NAME])
        } else {
            (Self::Pairs, &[SIZE, COUNT, OFFSET, LENGTH, NAME])
        };
        if keys.iter().all(|key| known.contains(key)) {
            Ok(Some(form))
        } else {
            Err("its PAX records are of several formats")
        }
    }

    /// Reads the map of a member whose body has `body` bytes.
    pub(super) fn read<F: Feed>(
        self,
        feed: &mut F,
        member: &Member,
        body: u64,
    ) -> Result<SparseMap, MapError<F::Error>> {
        let records = member.pax.as_ref();
        let number = |key: &[u8]| {
            let value = records?.get(key)?;
            pax::decimal(value)
        };
        let size_key = if self == Self::Text { REAL_SIZE } else { SIZE };
        let size = match self {
            Self::OldGnu => gnu_number(&member.header[483..495])?,
            _ => number(size_key).ok_or("it does not say how long it is")?,
        };
        let mut map = Building::new(size)?;
        match self {
            Self::OldGnu => old_gnu(feed, member, &mut map)?,
            Self::Pairs => pairs(&member.pax_data, &mut map)?,
            Self::List => {
                let list = records
                    .and_then(|records| records.get(MAP))
                    .map(|list| &**list);
                let list = list.filter(|list| !list.is_empty());
                let mut numbers = list.into_iter().flat_map(|list| list.split(|b| *b == b','));
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().ok_or("its map ends in the middle")?;
                    map.push(decimal(offset)?, decimal(length)?)?;
                }
            }
            Self::Text => {
                let taken = text(feed, body, &mut map)?;
                return Ok(map.finish(body - taken)?);
            }
        }
        let said = records.is_some_and(|records| records.contains_key(COUNT));
        if said && number(COUNT) != Some(map.count) {
            return Err("its map has another number of segments than it says".into());
        }
        Ok(map.finish(body)?)
    }
}

/// Why a map was not read.
pub(super) enum MapError<E> {
    /// It is wrong.
    Problem(Problem),
    /// The stream failed.
    Feed(E),
}

impl<E> From<Problem> for MapError<E> {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// A map that grows, checked with every segment.
struct Building {
    map: SparseMap,
    /// How many segments there were, empty ones counted.
    count: u64,
    /// Where the last one ended.
    end: u64,
    /// How many bytes they have together.
    data: u64,
}

impl Building {
    fn new(size: u64) -> Result<Self, Problem> {
        if size > MAX_SIZE {
            return Err("it is too long");
        }
        Ok(Self {
            map: SparseMap {
                size,
                segments: Vec::new(),
            },
            count: 0,
            end: 0,
            data: 0,
        })
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), Problem> {
        self.count += 1;
        if self.count > MAX_SEGMENTS {
            return Err("its map has too many segments");
        }
        if offset < self.end {
            return Err("its segments overlap, or are not in order");
        }
        let end = offset
            .checked_add(length)
            .filter(|end| *end <= self.map.size)
            .ok_or("a segment lies behind its end")?;
        if length > 0 {
            self.map.segments.push(offset..end);
        }
        self.end = end;
        self.data += length; // no more than the size: nothing overlaps
        Ok(())
    }

    /// Ends the map of a file whose data have so many bytes in the stream.
    fn finish(self, data: u64) -> Result<SparseMap, Problem> {
        if self.data == data {
            Ok(self.map)
        } else {
            Err("its map does not fit the data that follow")
        }
    }
}

/// Offset and length, twelve bytes each.
const GNU_SEGMENT: usize = 24;

fn old_gnu<F: Feed>(
    feed: &mut F,
    member: &Member,
    map: &mut Building,
) -> Result<(), MapError<F::Error>> {
    let mut open = gnu_segments(&member.header[386..482], map)?;
    let mut more = member.header[482] != 0;
    while more {
        if !open {
            // GNU tar would not look at the block, others would.
            return Err("its map goes on behind its end".into());
        }
        let offset = feed.offset();
        let mut block = [0; BLOCK];
        if feed.fill(&mut block).map_err(MapError::Feed)? < BLOCK {
            return Err(MapError::Feed(LayerError::Truncated { offset }.into()));
        }
        open = gnu_segments(&block[..504], map)?;
        more = block[504] != 0;
    }
    Ok(())
}

/// Adds segments of one block; returns whether all places of it were used.
fn gnu_segments(places: &[u8], map: &mut Building) -> Result<bool, Problem> {
    let mut open = true;
    for place in places.chunks_exact(GNU_SEGMENT) {
        let (offset, length) = place.split_at(GNU_SEGMENT / 2);
        // Tools differ in which of the two they look at for the end.
        match (offset[0], length[0]) {
            (0, 0) => open = false,
            (0, _) | (_, 0) => return Err("its map has half a segment"),
            _ if !open => return Err("its map goes on behind its end"),
            _ => map.push(gnu_number(offset)?, gnu_number(length)?)?,
        }
    }
    Ok(open)
}

fn gnu_number(field: &[u8]) -> Result<u64, Problem> {
    pax::header_number(field)
        .and_then(|number| u64::try_from(number).ok())
        .ok_or("its map has an impossible number")
}

fn decimal(text: &[u8]) -> Result<u64, Problem> {
    pax::decimal(text).ok_or("its map has an impossible number")
}

/// Reads offsets and lengths in the order of their records, which a key alone does not tell.
fn pairs(data: &[u8], map: &mut Building) -> Result<(), Problem> {
    let mut offset = None;
    for (key, value) in pax::records(data).unwrap_or_default() {
        if key == OFFSET {
            if offset.replace(decimal(value)?).is_some() {
                return Err("its map has half a segment");
            }
        } else if key == LENGTH {
            let offset = offset.take().ok_or("its map has half a segment")?;
            map.push(offset, decimal(value)?)?;
        }
    }
    match offset {
        None => Ok(()),
        Some(_) => Err("its map has half a segment"),
    }
}

/// Reads a map of lines: their number, then each offset and length, to the end of a block; returns how
/// many bytes of the body that took.
fn text<F: Feed>(feed: &mut F, body: u64, map: &mut Building) -> Result<u64, MapError<F::Error>> {
    let mut lines = Lines {
        feed,
        block: [0; BLOCK],
        position: BLOCK,
        taken: 0,
        body,
    };
    let count = lines.number()?;
    if count > MAX_SEGMENTS {
        return Err("its map has too many segments".into());
    }
    for _ in 0..count {
        let offset = lines.number()?;
        map.push(offset, lines.number()?)?;
    }
    Ok(lines.taken)
}

/// The lines at the beginning of a body.
struct Lines<'a, F> {
    feed: &'a mut F,
    block: [u8; BLOCK],
    position: usize,
    taken: u64,
    body: u64,
}

impl<F: Feed> Lines<'_, F> {
    fn number(&mut self) -> Result<u64, MapError<F::Error>> {
        let mut digits = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Ok(decimal(&digits)?),
                // No number has more digits than this.
                _ if digits.len() >= 20 => return Err("its map has an impossible number".into()),
                byte => digits.push(byte),
            }
        }
    }

    fn byte(&mut self) -> Result<u8, MapError<F::Error>> {
        if self.position == BLOCK {
            if self.body - self.taken < BLOCK as u64 {
                return Err("its map is longer than its body".into());
            }
            let offset = self.feed.offset();
            let count = self.feed.fill(&mut self.block).map_err(MapError::Feed)?;
            if count < BLOCK {
                return Err(MapError::Feed(LayerError::Truncated { offset }.into()));
            }
            self.taken += BLOCK as u64;
            self.position = 0;
        }
        let byte = self.block[self.position];
        self.position += 1;
        Ok(byte)
    }
}
