//! Grows the root to its disk: an image of a few hundred megabytes is written to disks of any size.
//!
//! ```text
//! before  │ GPT │ esp │ root │ GPT backup │                       free │
//! after   │ GPT │ esp │ root ······································ │ GPT backup │
//!            1. table      2. the kernel's idea of it      3. ext4, while mounted
//! ```
//!
//! Invariant: no partition moves and none shrinks. Each step looks whether it is needed, so growing
//! can be interrupted anywhere and run again; on a disk that is full already, nothing is written.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bedplate_sys::block;
use gpt::mbr::ProtectiveMBR;
use gpt::{GptConfig, GptError};

use crate::install::ext4;
use crate::install::layout::{ALIGN, Region};
use crate::install::table::SECTOR;

/// Sectors in sysfs have this size, whatever the disk has.
const SYSFS_SECTOR: u64 = 512;

/// Where a host tells about its disks.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// `/sys`.
    pub sys: &'a Path,
    /// `/dev`.
    pub dev: &'a Path,
}

/// What growing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grown {
    /// The length of the root partition before.
    pub before: u64,
    /// Its length now.
    pub after: u64,
}

/// A partition, and the disk that it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The disk's device node.
    pub disk: PathBuf,
    /// The partition's number.
    pub number: u32,
    /// Its length as the kernel knows it.
    pub length: u64,
}

/// Grows the root to its disk.
///
/// `root` is a directory of the root's file system, on a mount that may be written to.
pub fn grow(root: &File, host: Host<'_>) -> Result<Grown, GrowError> {
    let place = find(root, host)?;
    let open = |source| GrowError::Open {
        disk: place.disk.clone(),
        source,
    };
    let mut disk = File::options()
        .read(true)
        .write(true)
        .open(&place.disk)
        .map_err(open)?;
    let size = block::size(&disk).map_err(open)?;
    let region = grow_table(&mut disk, size, place.number).map_err(|source| GrowError::Table {
        disk: place.disk.clone(),
        source,
    })?;
    if region.length > place.length {
        block::resize_partition(&disk, place.number, region.start, region.length).map_err(
            |source| GrowError::Kernel {
                disk: place.disk.clone(),
                source,
            },
        )?;
    }
    // The kernel answers at once when the file system has that size already.
    block::resize_ext4(root, region.length / ext4::BLOCK).map_err(GrowError::FileSystem)?;
    Ok(Grown {
        before: place.length,
        after: region.length,
    })
}

/// Finds the partition that a file system lies on.
pub fn find(root: &File, host: Host<'_>) -> Result<Place, GrowError> {
    let device = root.metadata().map_err(GrowError::Root)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = host.sys.join(format!("dev/block/{major}:{minor}"));
    let unknown = |source| GrowError::Partition {
        path: link.clone(),
        source,
    };
    let partition = fs::canonicalize(&link).map_err(unknown)?;
    let number = |name: &str| -> Result<u64, GrowError> {
        fs::read_to_string(partition.join(name))
            .and_then(|text| text.trim().parse().map_err(io::Error::other))
            .map_err(unknown)
    };
    let disk = partition
        .parent()
        .and_then(Path::file_name)
        .ok_or_else(|| unknown(io::ErrorKind::NotFound.into()))?;
    Ok(Place {
        disk: host.dev.join(disk),
        number: u32::try_from(number("partition")?)
            .map_err(|error| unknown(io::Error::other(error)))?,
        length: number("size")?.saturating_mul(SYSFS_SECTOR),
    })
}

/// Grows a partition to the end of its disk where nothing lies behind it, and returns where it is.
///
/// The backup of the table moves to the end of the disk with it.
pub fn grow_table(disk: &mut File, size: u64, number: u32) -> Result<Region, GrowTableError> {
    let mut table = GptConfig::new()
        .writable(true)
        .open_from_device(&mut *disk)?;
    let mut partitions = table.partitions().clone();
    let last_used = partitions
        .values()
        .map(|partition| partition.last_lba)
        .max();
    let partition = partitions
        .get_mut(&number)
        .ok_or(GrowTableError::Missing(number))?;
    let wanted = (size / ALIGN).saturating_sub(1).saturating_mul(ALIGN) / SECTOR;
    let is_last = last_used == Some(partition.last_lba);
    let grows = is_last && wanted > partition.last_lba.saturating_add(1);
    if grows {
        partition.last_lba = wanted - 1;
    }
    let (first, last) = (partition.first_lba, partition.last_lba);
    let sectors = last
        .checked_sub(first)
        .and_then(|distance| distance.checked_add(1))
        .ok_or(GrowTableError::Backwards(number))?;
    if grows {
        table.update_partitions(partitions)?;
        table.write()?;
        // The protective entry counts the sectors after its own, and stops counting at 32 bits.
        let protected = u32::try_from(size / SECTOR - 1).unwrap_or(u32::MAX);
        ProtectiveMBR::with_lb_size(protected)
            .update_conservative(disk)
            .map_err(|error| GrowTableError::Write(io::Error::other(error)))?;
        disk.sync_all().map_err(GrowTableError::Write)?;
    }
    Ok(Region {
        start: first.saturating_mul(SECTOR),
        length: sectors.saturating_mul(SECTOR),
    })
}

/// Why a root could not be grown.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// The root cannot be looked at.
    #[error("cannot look at the root")]
    Root(#[source] io::Error),
    /// The root is on no partition that the kernel tells about.
    #[error("cannot find the root's partition: {} tells nothing", path.display())]
    Partition {
        /// Where the kernel should tell.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The disk could not be opened.
    #[error("cannot open the disk {}", disk.display())]
    Open {
        /// The disk.
        disk: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The partition table could not be changed.
    #[error("cannot grow the root's partition on {}", disk.display())]
    Table {
        /// The disk.
        disk: PathBuf,
        /// Why.
        source: GrowTableError,
    },
    /// The kernel did not take the new size.
    #[error("the kernel does not take the new size of a partition on {}", disk.display())]
    Kernel {
        /// The disk.
        disk: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// ext4 could not be grown.
    #[error("cannot grow the root's file system to its partition")]
    FileSystem(#[source] io::Error),
}

/// Why a partition table could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum GrowTableError {
    /// The table could not be read or written.
    #[error("cannot use the partition table")]
    Table(#[from] GptError),
    /// There is no such partition.
    #[error("the partition table has no partition {0}")]
    Missing(u32),
    /// The partition ends before it begins.
    #[error("partition {0} ends before it begins")]
    Backwards(u32),
    /// The protective MBR could not be written.
    #[error("cannot write the protective MBR")]
    Write(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::layout::{ESP_MIN, Firmware, Layout};
    use crate::install::table::{self, Identifiers};
    use uuid::Uuid;

    fn disk() -> (File, Layout) {
        let mut file = tempfile::tempfile().unwrap();
        let layout = Layout::new(Firmware::Uefi, 100 << 20, ESP_MIN, 1 << 20).unwrap();
        file.set_len(layout.size).unwrap();
        let identifiers = Identifiers::from_seed(Uuid::from_u128(1));
        table::write(&mut file, &layout, &identifiers, None).unwrap();
        (file, layout)
    }

    #[test]
    fn the_last_partition_grows_to_a_larger_disk_and_only_once() {
        let (mut file, layout) = disk();
        file.set_len(300 << 20).unwrap();
        let grown = grow_table(&mut file, 300 << 20, 2).unwrap();
        assert_eq!(grown.start, layout.root.start);
        assert_eq!(grown.end(), 299 << 20);

        let table = GptConfig::new()
            .only_valid_headers(true)
            .open_from_device(file.try_clone().unwrap())
            .unwrap();
        assert_eq!(
            table.primary_header().unwrap().backup_lba,
            (300 << 20) / SECTOR - 1
        );
        assert_eq!(table.partitions()[&2].name, "bedplate-root");
        let before = file.metadata().unwrap().modified().unwrap();
        assert_eq!(grow_table(&mut file, 300 << 20, 2).unwrap(), grown);
        assert_eq!(file.metadata().unwrap().modified().unwrap(), before);
    }

    #[test]
    fn what_a_bios_starts_stays_when_the_disk_grows() {
        use std::os::unix::fs::FileExt as _;
        let mut file = tempfile::tempfile().unwrap();
        let layout = Layout::new(Firmware::Bios, 100 << 20, ESP_MIN, 1 << 20).unwrap();
        file.set_len(layout.size).unwrap();
        let identifiers = Identifiers::from_seed(Uuid::from_u128(1));
        table::write(&mut file, &layout, &identifiers, Some(&[7; 440])).unwrap();
        file.set_len(300 << 20).unwrap();
        let grown = grow_table(&mut file, 300 << 20, 3).unwrap();
        assert_eq!(grown.end(), 299 << 20);
        let mut code = [0; 440];
        file.read_exact_at(&mut code, 0).unwrap();
        assert_eq!(code, [7; 440]);
    }

    #[test]
    fn a_full_disk_and_a_partition_with_another_behind_it_stay_as_they_are() {
        let (mut file, layout) = disk();
        assert_eq!(grow_table(&mut file, layout.size, 2).unwrap(), layout.root);
        file.set_len(300 << 20).unwrap();
        assert_eq!(grow_table(&mut file, 300 << 20, 1).unwrap(), layout.esp);
        assert!(matches!(
            grow_table(&mut file, 300 << 20, 3),
            Err(GrowTableError::Missing(3))
        ));
    }

    #[test]
    fn the_partition_of_a_file_system_is_found_through_sysfs() {
        let directory = tempfile::tempdir().unwrap();
        let root = File::open(directory.path()).unwrap();
        let device = root.metadata().unwrap().dev();
        let sys = directory.path().join("sys");
        let partition = sys.join("devices/nvme0n1/nvme0n1p2");
        fs::create_dir_all(&partition).unwrap();
        fs::create_dir_all(sys.join("dev/block")).unwrap();
        fs::write(partition.join("partition"), "2\n").unwrap();
        fs::write(partition.join("size"), "2048\n").unwrap();
        let numbers = format!(
            "{}:{}",
            rustix::fs::major(device),
            rustix::fs::minor(device)
        );
        let link = sys.join("dev/block").join(numbers);
        std::os::unix::fs::symlink("../../devices/nvme0n1/nvme0n1p2", link).unwrap();
        let host = Host {
            sys: &sys,
            dev: Path::new("/dev"),
        };
        assert_eq!(
            find(&root, host).unwrap(),
            Place {
                disk: "/dev/nvme0n1".into(),
                number: 2,
                length: 1 << 20
            }
        );
    }
}
