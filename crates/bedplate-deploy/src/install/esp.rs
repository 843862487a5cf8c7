//! The EFI system partition of a disk that is being made: FAT32 in a region of a file, written without
//! a mount.
//!
//! Invariant: the region is all that is touched, and every time in it is the one that is given, so that
//! the same files give the same bytes.

use std::fs::File;
use std::io::{self, Read as _, Write as _};

use bedplate_boot::loader_conf::SECTOR;
use bedplate_boot::partition::{BootPartition, FILE_MAX};
use fatfs::{Dir, FatType, FileSystem, FormatVolumeOptions, FsOptions};
use fscommon::StreamSlice;

use super::fat_time::FatTime;
use super::layout::Region;

/// FAT32 is told from FAT16 by this number of clusters alone.
const FAT32_MIN_CLUSTERS: u64 = 65_525;

/// The largest cluster that is worth it: what a page is.
const CLUSTER_MAX: u32 = 4096;

/// What the volume is called: eleven bytes, padded.
const LABEL: [u8; 11] = *b"ESP        ";

/// The boot partition in a region of a disk.
pub struct FatPartition {
    volume: FileSystem<StreamSlice<File>>,
    disk: File,
    region: Region,
}

impl std::fmt::Debug for FatPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FatPartition").finish_non_exhaustive()
    }
}

impl FatPartition {
    /// Makes an empty FAT32 in a region of a disk.
    pub fn format(disk: &File, region: Region, serial: u32) -> io::Result<Self> {
        let options = FormatVolumeOptions::new()
            .fat_type(FatType::Fat32)
            .bytes_per_cluster(cluster_size(region.length))
            .volume_id(serial)
            .volume_label(LABEL);
        fatfs::format_volume(slice(disk, region)?, options)?;
        Self::open(disk, region)
    }

    /// Opens the FAT in a region of a disk.
    pub fn open(disk: &File, region: Region) -> io::Result<Self> {
        Ok(Self {
            volume: FileSystem::new(slice(disk, region)?, FsOptions::new())?,
            disk: disk.try_clone()?,
            region,
        })
    }

    /// Writes what is still in memory, and waits until all is on the disk.
    ///
    /// Every entry is dated `written`.
    pub fn finish(self, written: FatTime) -> io::Result<()> {
        self.volume.stats()?; // counts the free clusters, which unmounting then notes
        self.volume.unmount()?;
        super::dots::put_right(&mut slice(&self.disk, self.region)?, written)?;
        self.disk.sync_all()
    }

    fn root(&self) -> Dir<'_, StreamSlice<File>> {
        self.volume.root_dir()
    }

    fn directory(&self, path: &str) -> io::Result<Option<Dir<'_, StreamSlice<File>>>> {
        if path.is_empty() {
            return Ok(Some(self.root()));
        }
        match self.root().open_dir(path) {
            Ok(directory) => Ok(Some(directory)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the directories that `path` lies in.
    fn make_parents(&self, path: &str) -> io::Result<()> {
        let mut at = self.root();
        let Some((parents, _)) = path.rsplit_once('/') else {
            return Ok(());
        };
        for name in parents.split('/') {
            at = at.create_dir(name)?;
        }
        Ok(())
    }

    fn is_there(&self, path: &str) -> io::Result<bool> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let Some(directory) = self.directory(parent)? else {
            return Ok(false);
        };
        for entry in directory.iter() {
            if entry?.file_name().eq_ignore_ascii_case(name) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl BootPartition for FatPartition {
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        if !self.is_there(path)? {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        self.root()
            .open_file(path)?
            .take(FILE_MAX)
            .read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let Some(directory) = self.directory(directory)? else {
            return Ok(Vec::new());
        };
        let mut names = Vec::new();
        for entry in directory.iter() {
            let name = entry?.file_name();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn write(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        self.make_parents(path)?;
        let mut file = self.root().create_file(path)?;
        file.truncate()?;
        file.write_all(contents)?;
        file.flush()?;
        drop(file);
        self.disk.sync_data()
    }

    fn overwrite_sector(&mut self, path: &str, contents: &[u8; SECTOR]) -> io::Result<()> {
        if self.read(path)?.is_none_or(|found| found.len() != SECTOR) {
            return self.write(path, contents);
        }
        let mut file = self.root().open_file(path)?;
        file.write_all(contents)?;
        file.flush()?;
        drop(file);
        self.disk.sync_data()
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        if self.is_there(path)? {
            self.root().remove(path)?;
        }
        self.disk.sync_data()
    }
}

fn slice(disk: &File, region: Region) -> io::Result<StreamSlice<File>> {
    StreamSlice::new(disk.try_clone()?, region.start, region.end())
}

/// Chooses the largest cluster with which a volume still has enough of them to be FAT32.
fn cluster_size(length: u64) -> u32 {
    let mut size = CLUSTER_MAX;
    // The tables take space too: 8 bytes a cluster, and some sectors before them.
    while size > 512 && length / u64::from(size + 8) < FAT32_MIN_CLUSTERS + 64 {
        size /= 2;
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::layout::ESP_MIN;

    fn partition(length: u64) -> (File, Region, FatPartition) {
        let disk = tempfile::tempfile().unwrap();
        let region = Region {
            start: 1 << 20,
            length,
        };
        disk.set_len(region.end() + (1 << 20)).unwrap();
        let partition = FatPartition::format(&disk, region, 7).unwrap();
        (disk, region, partition)
    }

    #[test]
    fn every_size_gives_fat32() {
        for length in [ESP_MIN, 64 << 20, 256 << 20, 512 << 20, 2 << 30] {
            let (_disk, _, partition) = partition(length);
            assert_eq!(partition.volume.fat_type(), FatType::Fat32, "{length}");
        }
    }

    #[test]
    fn files_are_there_after_the_volume_was_closed_and_opened_again() {
        let (disk, region, mut partition) = partition(ESP_MIN);
        let long = vec![7; 100_000];
        let entry = "loader/entries/bedplate-01234567-89abcdef+3.conf";
        partition.write(entry, b"title x\n").unwrap();
        partition
            .write("EFI/bedplate/vmlinuz-0123", b"older, and shorter")
            .unwrap();
        partition.write("EFI/bedplate/vmlinuz-0123", &long).unwrap();
        partition
            .overwrite_sector("loader/loader.conf", &[b'1'; SECTOR])
            .unwrap();
        partition
            .overwrite_sector("loader/loader.conf", &[b'2'; SECTOR])
            .unwrap();
        partition.write("gone", b"x").unwrap();
        partition.remove("gone").unwrap();
        partition.remove("gone").unwrap();
        partition.finish(FatTime::FIRST).unwrap();

        let partition = FatPartition::open(&disk, region).unwrap();
        assert_eq!(partition.list("").unwrap(), ["EFI", "loader"]);
        assert_eq!(
            partition.list("loader/entries").unwrap(),
            ["bedplate-01234567-89abcdef+3.conf"]
        );
        assert_eq!(partition.list("nowhere").unwrap(), Vec::<String>::new());
        assert_eq!(partition.read("nowhere/at/all").unwrap(), None);
        assert_eq!(
            partition
                .read("EFI/bedplate/vmlinuz-0123")
                .unwrap()
                .unwrap(),
            long
        );
        assert_eq!(
            partition.read("loader/loader.conf").unwrap().unwrap(),
            [b'2'; SECTOR]
        );
    }

    #[test]
    fn every_entry_has_the_date_that_was_given() {
        let (disk, region, mut partition) = partition(ESP_MIN);
        partition.write("EFI/BOOT/BOOTX64.EFI", b"loader").unwrap();
        partition.finish(FatTime::from_unix(1_700_000_000)).unwrap();
        let partition = FatPartition::open(&disk, region).unwrap();
        for path in ["", "EFI", "EFI/BOOT"] {
            let directory = partition.directory(path).unwrap().unwrap();
            for entry in directory.iter() {
                let entry = entry.unwrap();
                for date in [
                    entry.created().date,
                    entry.modified().date,
                    entry.accessed(),
                ] {
                    let found = (date.year, date.month, date.day);
                    assert_eq!(found, (2023, 11, 14), "{path}/{}", entry.file_name());
                }
            }
        }
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let make = || {
            let (mut disk, _, mut partition) = partition(ESP_MIN);
            partition.write("loader/entries.srel", b"type1\n").unwrap();
            partition.finish(FatTime::FIRST).unwrap();
            let mut bytes = Vec::new();
            io::Seek::rewind(&mut disk).unwrap();
            disk.read_to_end(&mut bytes).unwrap();
            bytes
        };
        assert!(make() == make());
    }
}
