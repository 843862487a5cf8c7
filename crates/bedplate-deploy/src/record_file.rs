//! The record on the disk: two slots of one size, of which one counts.
//!
//! ```text
//! bedplate/record.json   the record, padded with newlines
//! bedplate/record.next   preallocated; the next record is written here, in place, and then
//!                        the two names are exchanged
//! ```
//!
//! Invariants: `record.json` is always a whole record, the old one or the new one; replacing it needs no
//! new block, because a full disk must not keep a machine from rolling back; reading needs no lock.
//! `docs/format/record.md` is normative.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bedplate_model::layout;
use bedplate_model::record::{ParseRecordError, Record};
use bedplate_sys::durable;

/// The size of a slot in bytes: room for about a hundred deployments.
pub const SLOT: usize = 64 << 10;

/// What the slot for the next record holds before there was one: zeros, so that its blocks are taken.
pub static EMPTY_SLOT: [u8; SLOT] = [0; SLOT];

/// The record's mode: it names images and kernel arguments, which are root's business.
pub const MODE: u32 = 0o600;

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadRecordError {
    /// There is none: this is no machine of ours.
    #[error("there is no record at {}: this machine was not installed by bedplate", .0.display())]
    Missing(PathBuf),
    /// The file could not be read.
    #[error("cannot read the record {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It holds no valid record.
    #[error("the record {} cannot be used", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: ParseRecordError,
    },
}

/// Why a record could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteRecordError {
    /// It does not fit.
    #[error("the record has {0} bytes, more than its slot of {SLOT}")]
    TooLarge(usize),
    /// A slot could not be written.
    #[error("cannot write the record {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It would not be read again.
    #[error("the new record breaks its own rules")]
    Invalid(#[source] ParseRecordError),
}

/// Returns a record as it lies in its slot.
pub fn slot(record: &Record) -> Result<Vec<u8>, WriteRecordError> {
    let mut bytes = record.to_json();
    if bytes.len() > SLOT {
        return Err(WriteRecordError::TooLarge(bytes.len()));
    }
    bytes.resize(SLOT, b'\n');
    Record::parse(&bytes).map_err(WriteRecordError::Invalid)?;
    Ok(bytes)
}

/// Reads the record of a physical root.
pub fn read(root: &Path) -> Result<Record, ReadRecordError> {
    let path = root.join(layout::RECORD);
    let mut bytes = Vec::new();
    let outcome = File::open(&path).and_then(|file| file.take(SLOT as u64).read_to_end(&mut bytes));
    match outcome {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ReadRecordError::Missing(path));
        }
        Err(source) => return Err(ReadRecordError::Read { path, source }),
    }
    Record::parse(&bytes).map_err(|source| ReadRecordError::Parse { path, source })
}

/// Replaces the record of a physical root. The caller holds the machine's lock.
pub fn write(root: &Path, record: &Record) -> Result<(), WriteRecordError> {
    let bytes = slot(record)?;
    let (current, next) = (root.join(layout::RECORD), root.join(layout::RECORD_NEXT));
    let write = || -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create(true) // not there: an old installation, or someone tidied up
            .truncate(false) // its blocks are what it is for
            .mode(MODE)
            .open(&next)?;
        file.write_all(&bytes)?;
        if file.metadata()?.len() != SLOT as u64 {
            file.set_len(SLOT as u64)?;
        }
        file.sync_all() // 1. the new record is on the disk …
    };
    write().map_err(|source| WriteRecordError::Write {
        path: next.clone(),
        source,
    })?;
    durable::exchange(&next, &current) // 2. … before it is the one that counts.
        .map_err(|source| WriteRecordError::Write {
            path: current.clone(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use std::fs;

    #[test]
    fn a_record_is_replaced_in_its_two_slots_without_new_blocks() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(layout::BEDPLATE)).unwrap();
        let mut record = sample::record();
        fs::write(root.path().join(layout::RECORD), slot(&record).unwrap()).unwrap();
        fs::write(root.path().join(layout::RECORD_NEXT), EMPTY_SLOT).unwrap();
        for round in 0..3 {
            record.deployments[0].title = format!("round {round}");
            write(root.path(), &record).unwrap();
            assert_eq!(read(root.path()).unwrap(), record);
            for path in [layout::RECORD, layout::RECORD_NEXT] {
                assert_eq!(
                    fs::metadata(root.path().join(path)).unwrap().len(),
                    SLOT as u64
                );
            }
        }
    }

    #[test]
    fn a_lost_second_slot_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(layout::BEDPLATE)).unwrap();
        let record = sample::record();
        fs::write(root.path().join(layout::RECORD), slot(&record).unwrap()).unwrap();
        write(root.path(), &record).unwrap();
        assert_eq!(read(root.path()).unwrap(), record);
    }

    #[test]
    fn what_would_not_be_read_again_is_not_written() {
        let root = tempfile::tempdir().unwrap();
        let mut record = sample::record();
        record.deployments[0].title = "x".repeat(SLOT);
        assert!(matches!(
            write(root.path(), &record),
            Err(WriteRecordError::TooLarge(_))
        ));
        let mut record = sample::record();
        record.default = "00000000".parse().unwrap();
        assert!(matches!(
            write(root.path(), &record),
            Err(WriteRecordError::Invalid(_))
        ));
    }

    #[test]
    fn a_root_without_a_record_is_said_to_be_none_of_ours() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(
            read(root.path()),
            Err(ReadRecordError::Missing(_))
        ));
    }
}
