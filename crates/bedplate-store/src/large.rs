//! A large content on its way to the disk, its long runs of zeros as holes.
//!
//! ```text
//! write ─ pieces of 64 KiB ─┬─ all zero ─→ Hasher::update_zeros, and nothing is written
//!                           └─ else ─────→ room for the next 8 MiB · hashed · written
//! zeros ────────────────────────────────→ Hasher::update_zeros
//! ```
//!
//! A tar says nothing of holes, so a disk image that went through one would fill the disk; and what
//! its headers claim may never come, so room is taken only as the bytes arrive.
//!
//! Invariant: the digest is that of the bytes a reader sees; what is not written is a hole.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;

use bedplate_model::{Algorithm, ObjectId};
use bedplate_sys::direct::DirectFile;
use bedplate_sys::space;

use crate::verity::Hasher;

/// The shortest run of zeros that becomes a hole, and what its place is a multiple of: shorter ones would
/// cut a file into many extents for little room.
pub(crate) const PIECE: usize = 64 << 10;
/// How much room is reserved at once.
const STEP: u64 = 8 << 20;

/// Which way the bytes take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Past the page cache, where they come in whole blocks and the file system takes them.
    Direct,
    /// Through the page cache.
    Cached,
}

/// Returns whether a piece becomes a hole.
pub(crate) fn is_hole(piece: &[u8]) -> bool {
    // Most pieces say no at their first bytes.
    piece.len() == PIECE
        && piece.starts_with(&[0; 16])
        && piece
            .as_chunks::<64>()
            .0
            .iter()
            .all(|chunk| *chunk == [0; 64])
}

/// Appends bytes to a file of this length, those pieces that become holes left out.
pub(crate) fn append(file: &File, length: u64, bytes: &[u8]) -> io::Result<()> {
    let mut position = length;
    let mut in_hole = false;
    for piece in bytes.chunks(PIECE) {
        in_hole = is_hole(piece);
        if !in_hole {
            file.write_all_at(piece, position)?;
        }
        position = position.saturating_add(piece.len() as u64);
    }
    if in_hole {
        file.set_len(position)?;
    }
    Ok(())
}

/// A new file that is written from its beginning to its end.
#[derive(Debug)]
pub(crate) struct LargeFile<'a> {
    file: &'a File,
    direct: Option<DirectFile<'a>>,
    hasher: Hasher,
    size: u64,
    position: u64,
    /// How far room is reserved.
    reserved: u64,
    /// Where the hole begins that the position is the end of, so far.
    hole: Option<u64>,
}

impl<'a> LargeFile<'a> {
    /// Starts writing to an empty file, which has `size` bytes from now on.
    pub(crate) fn new(
        algorithm: Algorithm,
        file: &'a File,
        size: u64,
        way: Way,
    ) -> io::Result<Self> {
        let direct = match way {
            Way::Direct => Some(DirectFile::new(file, size)?),
            Way::Cached => {
                file.set_len(size)?;
                None
            }
        };
        Ok(Self {
            file,
            direct,
            hasher: Hasher::new(algorithm),
            size,
            position: 0,
            reserved: 0,
            hole: None,
        })
    }

    /// Appends bytes. What lies between two holes is written at once.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let first = PIECE - (self.position % PIECE as u64) as usize;
        let (mut begin, mut end) = (0, 0);
        while end < bytes.len() {
            let length = if end == 0 { first } else { PIECE };
            let next = bytes.len().min(end + length);
            if is_hole(&bytes[end..next]) {
                self.data(&bytes[begin..end])?;
                self.zeros(PIECE as u64);
                begin = next;
            }
            end = next;
        }
        self.data(&bytes[begin..])
    }

    /// Appends zeros, none of which are written.
    pub(crate) fn zeros(&mut self, count: u64) {
        self.hole.get_or_insert(self.position);
        self.position = self.position.saturating_add(count);
    }

    fn data(&mut self, piece: &[u8]) -> io::Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        self.end_hole()?;
        let end = self.position.saturating_add(piece.len() as u64);
        if end > self.reserved {
            let from = self.position.max(self.reserved);
            let to = from.saturating_add(STEP).min(self.size).max(end);
            space::reserve(self.file, from, to - from)?;
            self.reserved = to;
        }
        self.hasher.update(piece);
        match &mut self.direct {
            Some(direct) => direct.write_all(piece)?,
            None => self.file.write_all(piece)?,
        }
        self.position = end;
        Ok(())
    }

    /// Hashes a hole, gives back the room of it that was reserved, and goes to its end.
    fn end_hole(&mut self) -> io::Result<()> {
        let Some(begin) = self.hole.take() else {
            return Ok(());
        };
        self.hasher.update_zeros(self.position - begin);
        let reserved = self.reserved.min(self.position);
        if begin < reserved {
            space::release(self.file, begin, reserved - begin)?;
        }
        self.file.seek(SeekFrom::Start(self.position)).map(drop)
    }

    /// Ends, and returns the digest.
    pub(crate) fn finish(mut self) -> io::Result<ObjectId> {
        self.end_hole()?;
        if self.reserved > self.position {
            space::release(self.file, self.position, self.reserved - self.position)?;
        }
        Ok(self.hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn long_zeros_become_holes_and_nothing_else_changes() {
        let piece = PIECE as u64;
        for (length, data) in [
            (20 << 20, &[][..]),
            (20 << 20, &[(0, 1)]),
            (20 << 20, &[((20 << 20) - 1, 20 << 20)]),
            ((20 << 20) + 5, &[(piece, piece + 9), (9 << 20, 10 << 20)]),
            (3 * piece + 100, &[(piece - 1, piece + 1)]),
            (3 * piece + 100, &[(2 * piece, 3 * piece + 100)]),
            (9 << 20, &[(0, 9 << 20)]),
        ] {
            let mut bytes = vec![0; length as usize];
            let mut dense = 0;
            for (begin, end) in data {
                bytes[*begin as usize..*end as usize].fill(7);
                dense += (end.next_multiple_of(piece) - begin / piece * piece) / 512;
            }
            for (way, at_once) in [
                (Way::Direct, 256 << 10),
                (Way::Cached, 256 << 10),
                (Way::Cached, 1000),
            ] {
                let file = tempfile::tempfile_in(".").unwrap();
                let mut large = LargeFile::new(Algorithm::Sha256, &file, length, way).unwrap();
                for some in bytes.chunks(at_once) {
                    large.write(some).unwrap();
                }
                let id = large.finish().unwrap();
                assert_eq!(id, crate::verity::digest(Algorithm::Sha256, &bytes));
                let mut found = vec![0; bytes.len()];
                file.read_exact_at(&mut found, 0).unwrap();
                assert!(found == bytes, "{length} {data:?}");
                let metadata = file.metadata().unwrap();
                assert_eq!(metadata.len(), length);
                if at_once >= PIECE {
                    assert!(metadata.blocks() <= dense + 16, "{length} {data:?} {way:?}");
                }
            }
        }
    }
}
