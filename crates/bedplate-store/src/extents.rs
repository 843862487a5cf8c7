//! Files with holes: hashed and copied without reading or writing the holes.
//!
//! ```text
//! SEEK_DATA ─→ hole: Hasher::update_zeros, and nothing is written
//! SEEK_HOLE ─→ data: read, hashed, written at its place          … to the end; then the length is set
//! ```
//!
//! Invariant: the digest is that of the bytes a reader sees, and of exactly those that were copied.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use bedplate_model::{Algorithm, ObjectId};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::verity::Hasher;

/// How much is read at once.
const READ: usize = 256 * 1024;

thread_local! {
    /// One buffer for each thread that hashes: making one costs more than hashing a small file.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// Why a file could not be hashed or copied.
#[derive(Debug)]
pub(crate) enum ExtentError {
    /// The source could not be read.
    Read(io::Error),
    /// The copy could not be written.
    Write(io::Error),
}

/// Returns whether a file has fewer bytes on the disk than it is long.
pub(crate) fn may_have_holes(file: &File, size: u64) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| (stat.st_blocks as u64).saturating_mul(512) < size)
}

/// Returns the digest of a file from its beginning to its end, and its length.
pub(crate) fn digest(algorithm: Algorithm, file: &File) -> io::Result<(ObjectId, u64)> {
    let size = rustix::fs::fstat(file)?.st_size as u64;
    walk(algorithm, file, size, None).map_err(|error| match error {
        ExtentError::Read(error) | ExtentError::Write(error) => error,
    })
}

/// Copies a file of `size` bytes into an empty one, its holes as holes; returns the digest, and how many
/// bytes there were: `size + 1` stands for "more", and the copy is as long as what there was, up to `size`.
pub(crate) fn copy(
    algorithm: Algorithm,
    from: &File,
    size: u64,
    to: &File,
) -> Result<(ObjectId, u64), ExtentError> {
    walk(algorithm, from, size, Some(to))
}

fn walk(
    algorithm: Algorithm,
    from: &File,
    size: u64,
    to: Option<&File>,
) -> Result<(ObjectId, u64), ExtentError> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut hasher = Hasher::new(algorithm);
        // Where nothing can be saved, nothing is asked.
        let mut data_end = if may_have_holes(from, size) { 0 } else { size };
        let mut position = 0;
        while position < size {
            if position == data_end {
                let (begin, end) = next_data(from, position, size).map_err(ExtentError::Read)?;
                hasher.update_zeros(begin - position);
                (position, data_end) = (begin, end);
                continue;
            }
            let wanted = usize::try_from(data_end - position).map_or(READ, |left| left.min(READ));
            let count = read_at(from, &mut buffer[..wanted], position)?;
            if count == 0 {
                break; // shorter than it was said to be
            }
            hasher.update(&buffer[..count]);
            if let Some(to) = to {
                to.write_all_at(&buffer[..count], position)
                    .map_err(ExtentError::Write)?;
            }
            position += count as u64;
        }
        let more = position == size && read_at(from, &mut buffer[..1], size)? > 0;
        if let Some(to) = to {
            to.set_len(position).map_err(ExtentError::Write)?;
        }
        Ok((hasher.finish(), position.saturating_add(u64::from(more))))
    })
}

/// Finds the next data at or after `position`; all of it is hole where there is none.
pub(crate) fn next_data(file: &File, position: u64, size: u64) -> io::Result<(u64, u64)> {
    let begin = match rustix::fs::seek(file, SeekFrom::Data(position)) {
        Ok(begin) => begin.clamp(position, size),
        // The file may have been cut in the meantime: reading on tells.
        Err(Errno::NXIO) => {
            let end = rustix::fs::fstat(file)?.st_size as u64;
            let end = end.clamp(position, size);
            return Ok((end, size));
        }
        // The file system knows no holes: everything is data.
        Err(Errno::INVAL) => return Ok((position, size)),
        Err(error) => return Err(error.into()),
    };
    let end = match rustix::fs::seek(file, SeekFrom::Hole(begin)) {
        Ok(end) => end.clamp(begin, size),
        Err(Errno::NXIO) => size,
        Err(error) => return Err(error.into()),
    };
    // Holes that come and go while this looks must not keep it from going on.
    Ok(if begin == position && end == begin {
        (position, size)
    } else {
        (begin, end)
    })
}

fn read_at(file: &File, buffer: &mut [u8], position: u64) -> Result<usize, ExtentError> {
    loop {
        match file.read_at(buffer, position) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map_err(ExtentError::Read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    /// Makes a file of this length with some bytes at some places.
    fn sparse(length: u64, data: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (position, bytes) in data {
            file.write_all_at(bytes, *position).unwrap();
        }
        file
    }

    fn dense(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn holes_are_hashed_as_zeros_and_copied_as_holes() {
        let block = [7; 5000];
        let long = [9; 300_000];
        for (length, data) in [
            (0, vec![]),
            (1, vec![]),
            (4_000_000, vec![]),
            (4_000_000, vec![(0, &block[..])]),
            (4_000_000, vec![(3_995_000, &block[..])]),
            (4_000_001, vec![(1, &block[..]), (1_000_003, &long[..])]),
            (300_000, vec![(0, &long[..])]),
        ] {
            let file = sparse(length, &data);
            let bytes = dense(&file);
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let wanted = (crate::verity::digest(algorithm, &bytes), length);
                assert_eq!(digest(algorithm, &file).unwrap(), wanted, "{length}");
                let to = tempfile::tempfile().unwrap();
                assert_eq!(copy(algorithm, &file, length, &to).unwrap(), wanted);
                assert!(dense(&to) == bytes);
                assert!(to.metadata().unwrap().blocks() <= file.metadata().unwrap().blocks());
            }
        }
    }

    #[test]
    fn terabytes_of_nothing_cost_nothing() {
        let Ok(file) = tempfile::tempfile() else {
            return;
        };
        // Not every file system has such lengths.
        if file.set_len(8 << 40).is_ok() {
            let (_, length) = digest(Algorithm::Sha256, &file).unwrap();
            assert_eq!(length, 8 << 40);
        }
    }

    #[test]
    fn another_length_than_promised_is_told() {
        let file = sparse(1_000_000, &[(10, b"data")]);
        for (promised, told) in [(999_999, 1_000_000), (1_000_001, 1_000_000)] {
            let to = tempfile::tempfile().unwrap();
            let (_, found) = copy(Algorithm::Sha256, &file, promised, &to).unwrap();
            assert_eq!(found, told, "{promised}");
        }
    }
}
