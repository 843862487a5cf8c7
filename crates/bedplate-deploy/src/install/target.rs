//! What an install writes to: a new file, or a disk.
//!
//! Invariant: what is already there is never lost without `wipe`, and a FILE appears under its name
//! only when it is whole.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use bedplate_sys::{block, durable};

use super::layout::ALIGN;
use super::table::SECTOR;

/// What an install writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A file that is made, and takes the name whether or not a file has it.
    File,
    /// A disk of so many bytes.
    Disk {
        /// Its size.
        size: u64,
    },
}

impl Target {
    /// Looks at what is there, and refuses what would be lost.
    pub fn look(path: &Path, wipe: bool) -> Result<Self, TargetError> {
        let read = |source| TargetError::Read {
            path: path.to_owned(),
            source,
        };
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::File),
            Err(error) => return Err(read(error)),
        };
        if metadata.is_file() {
            if metadata.len() > 0 && !wipe {
                return Err(TargetError::HoldsData {
                    path: path.to_owned(),
                });
            }
            return Ok(Self::File);
        }
        if !metadata.file_type().is_block_device() {
            return Err(TargetError::Neither {
                path: path.to_owned(),
            });
        }
        let disk = File::open(path).map_err(read)?;
        let sector = block::logical_sector_size(&disk).map_err(read)?;
        if u64::from(sector) != SECTOR {
            return Err(TargetError::Sectors {
                path: path.to_owned(),
                sector,
            });
        }
        let size = block::size(&disk).map_err(read)?;
        if !wipe && holds_data(&disk, size).map_err(read)? {
            return Err(TargetError::HoldsData {
                path: path.to_owned(),
            });
        }
        Ok(Self::Disk { size })
    }
}

/// Looks where partition tables and the beginnings of file systems lie.
fn holds_data(disk: &File, size: u64) -> io::Result<bool> {
    let mut disk = disk;
    for start in [0, size.saturating_sub(ALIGN)] {
        disk.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        disk.take(ALIGN).read_to_end(&mut bytes)?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A disk that is being written.
#[derive(Debug)]
pub(crate) struct Writing {
    /// The open disk.
    pub(crate) disk: File,
    /// Where it lies while it is written.
    pub(crate) path: PathBuf,
    /// The name that a FILE takes when it is whole.
    name: Option<PathBuf>,
}

impl Writing {
    /// Makes a sparse file beside the wanted name, or opens the disk for nobody else.
    pub(crate) fn begin(path: &Path, target: Target, size: u64) -> Result<Self, TargetError> {
        let write = |path: &Path, source| TargetError::Write {
            path: path.to_owned(),
            source,
        };
        let mut options = File::options();
        options.read(true).write(true);
        match target {
            Target::File => {
                let mut partial = path.as_os_str().to_owned();
                partial.push(".part");
                let partial = PathBuf::from(partial);
                // What an interrupted install left is worth nothing.
                let disk = options
                    .create(true)
                    .truncate(true)
                    .open(&partial)
                    .and_then(|disk| disk.set_len(size).map(|()| disk))
                    .map_err(|error| write(&partial, error))?;
                Ok(Self {
                    disk,
                    path: partial,
                    name: Some(path.to_owned()),
                })
            }
            Target::Disk { .. } => {
                use std::os::unix::fs::OpenOptionsExt as _;
                // For a block device, O_EXCL alone means: not while it is mounted or otherwise held.
                let exclusive = rustix::fs::OFlags::EXCL.bits() as i32;
                let disk = options
                    .custom_flags(exclusive)
                    .open(path)
                    .and_then(|disk| wipe(&disk, size).map(|()| disk))
                    .map_err(|error| write(path, error))?;
                Ok(Self {
                    disk,
                    path: path.to_owned(),
                    name: None,
                })
            }
        }
    }

    /// Waits until all is on the disk, and gives a FILE its name: the commit point of an install.
    pub(crate) fn finish(self) -> Result<(), TargetError> {
        let write = |source| TargetError::Write {
            path: self.path.clone(),
            source,
        };
        self.disk.sync_all().map_err(write)?;
        match &self.name {
            Some(name) => durable::rename(&self.path, name).map_err(write),
            None => Ok(()),
        }
    }
}

/// Clears what could be taken for an older partition table or file system.
fn wipe(disk: &File, size: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let zeros = vec![0; ALIGN as usize];
    disk.write_all_at(&zeros, 0)?;
    disk.write_all_at(&zeros, size.saturating_sub(ALIGN))
}

/// Why a target cannot be installed to.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// There is something on it.
    #[error("{} already holds something", path.display())]
    HoldsData {
        /// The target.
        path: PathBuf,
    },
    /// Neither a file nor a disk.
    #[error("{} is neither a file nor a disk", path.display())]
    Neither {
        /// The target.
        path: PathBuf,
    },
    /// A disk with large sectors.
    #[error("{} has sectors of {sector} bytes; only {SECTOR} are supported", path.display())]
    Sectors {
        /// The target.
        path: PathBuf,
        /// Its sector size.
        sector: u32,
    },
    /// It could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The target.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The target, or the file that becomes it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_something_in_it_is_refused_and_stays_unless_it_may_be_wiped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        assert_eq!(Target::look(&path, false).unwrap(), Target::File);
        fs::write(&path, b"").unwrap();
        assert_eq!(Target::look(&path, false).unwrap(), Target::File);
        fs::write(&path, b"precious").unwrap();
        assert!(matches!(
            Target::look(&path, false),
            Err(TargetError::HoldsData { .. })
        ));
        assert_eq!(Target::look(&path, true).unwrap(), Target::File);
        assert!(matches!(
            Target::look(directory.path(), true),
            Err(TargetError::Neither { .. })
        ));
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        fs::write(&path, b"old").unwrap();
        let writing = Writing::begin(&path, Target::File, 4096).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        writing.finish().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 4096);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
