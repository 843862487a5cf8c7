//! The boot partition of a machine: the EFI system partition on the root's own disk.
//!
//! ```text
//! root → its device (stat) → its disk (sysfs) → the partition of ESP type (GPT) → its device → mount
//! ```
//!
//! On a machine with a BIOS it has the same type: nothing is asked of the firmware.
//!
//! Invariant: it is found on the disk that the root is on, since copies of a disk have the same
//! identifiers; it is mounted below `/run/bedplate`, in this program's own mount namespace, and only
//! for as long as it is used.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bedplate_boot::firmware::HardDrive;
use bedplate_boot::loader_conf::SECTOR;
use bedplate_boot::partition::{BootPartition, DirectoryPartition};
use bedplate_sys::mount::{self, Access, Unmount};
use bedplate_sys::space;
use gpt::GptConfig;

use crate::host::{BootAccess, OpenBoot};
use crate::install::table::ESP_TYPE;

/// Only root may look: the command line of every deployment is there.
const OPTIONS: &str = "umask=0077";
/// How long it waits for somebody who has the boot partition mounted otherwise: 30 s in all.
const TURN: Duration = Duration::from_millis(20);
const TURNS: u32 = 1500;

/// The ESP on the disk of a root.
#[derive(Clone, Debug)]
pub struct RootDisk {
    root: PathBuf,
    sys: PathBuf,
    dev: PathBuf,
    at: PathBuf,
}

impl RootDisk {
    /// Looks on the disk of the file system that is mounted at `root`.
    pub fn of(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            sys: "/sys".into(),
            dev: "/dev".into(),
            at: "/run/bedplate/esp".into(),
        }
    }

    /// Finds the partition as the firmware names it.
    pub fn partition(&self) -> io::Result<HardDrive> {
        Ok(self.look()?.partition)
    }

    /// Finds the partition's device node.
    fn find(&self) -> io::Result<PathBuf> {
        let Found {
            disk,
            node,
            partition: HardDrive { number, .. },
        } = self.look()?;
        for entry in fs::read_dir(disk)? {
            let entry = entry?;
            // Other entries of the disk's directory are no partitions and have no number.
            let Ok(text) = fs::read_to_string(entry.path().join("partition")) else {
                continue;
            };
            if text.trim() == number.to_string() {
                return Ok(self.dev.join(entry.file_name()));
            }
        }
        Err(io::Error::other(format!(
            "the kernel does not know partition {number} of {}",
            node.display()
        )))
    }

    /// Looks for the partition in the table of the root's disk.
    fn look(&self) -> io::Result<Found> {
        let device = fs::metadata(&self.root)?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let partition = fs::canonicalize(self.sys.join(format!("dev/block/{major}:{minor}")))?;
        let disk = partition
            .parent()
            .ok_or_else(|| io::Error::other("the root is on no partition"))?;
        let node = self.dev.join(disk.file_name().unwrap_or_default());
        let partition = of_table(&File::open(&node)?, &node)?;
        Ok(Found {
            disk: disk.to_owned(),
            node,
            partition,
        })
    }
}

/// The partition, and the disk that it is on.
#[derive(Debug)]
struct Found {
    /// The disk's directory in sysfs.
    disk: PathBuf,
    /// The disk's device node.
    node: PathBuf,
    partition: HardDrive,
}

/// Finds the ESP in the partition table of a disk; `name` is what an error calls the disk.
fn of_table(disk: &File, name: &Path) -> io::Result<HardDrive> {
    let table = GptConfig::new()
        .writable(false)
        .open_from_device(disk)
        .map_err(io::Error::other)?;
    let (number, partition) = table
        .partitions()
        .iter()
        .find(|(_, partition)| partition.part_type_guid.guid == ESP_TYPE)
        .ok_or_else(|| {
            io::Error::other(format!("{} has no EFI system partition", name.display()))
        })?;
    let length = partition
        .last_lba
        .checked_sub(partition.first_lba)
        .and_then(|distance| distance.checked_add(1))
        .ok_or_else(|| {
            let text = format!(
                "partition {number} of {} ends before it begins",
                name.display()
            );
            io::Error::other(text)
        })?;
    Ok(HardDrive {
        number: *number,
        start: partition.first_lba,
        length,
        guid: partition.part_guid.to_bytes_le(),
    })
}

impl BootAccess for RootDisk {
    fn open(&self, access: Access) -> io::Result<OpenBoot> {
        let node = self.find()?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.at)?;
        shared(access, |access| {
            mount::mount_filesystem("vfat", &node, &self.at, OPTIONS, access)
        })?;
        let mounted = Mounted {
            files: DirectoryPartition::new(&self.at),
        };
        let space = space::space(File::open(&self.at)?)?;
        Ok(OpenBoot {
            partition: Box::new(mounted),
            space,
        })
    }
}

/// Mounts a file system that others may have mounted, too: it cannot be mounted for reading here and for writing
/// there. Who only reads mounts it as those others do. Who writes waits until those who read are done, which
/// takes them milliseconds: a `status` must not make a deployment fail its trial.
fn shared(access: Access, mount: impl Fn(Access) -> io::Result<()>) -> io::Result<()> {
    let busy = |outcome: &io::Result<()>| {
        let error = outcome.as_ref().err();
        error.is_some_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
    };
    for _ in 0..TURNS {
        let mut outcome = mount(access);
        if access == Access::ReadOnly && busy(&outcome) {
            outcome = mount(Access::ReadWrite);
        }
        if !busy(&outcome) {
            return outcome;
        }
        thread::sleep(TURN);
    }
    mount(access)
}

/// A mounted boot partition, unmounted when dropped.
#[derive(Debug)]
struct Mounted {
    files: DirectoryPartition,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Where it stays, it goes with this program's mount namespace; every write was durable.
        let _ = mount::unmount(self.files.root(), Unmount::Now);
    }
}

impl BootPartition for Mounted {
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        self.files.read(path)
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.files.list(directory)
    }

    fn write(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        self.files.write(path, contents)
    }

    fn overwrite_sector(&mut self, path: &str, contents: &[u8; SECTOR]) -> io::Result<()> {
        self.files.overwrite_sector(path, contents)
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.files.remove(path)
    }
}

/// A boot partition that is a directory: one that is mounted elsewhere, or a test's.
#[derive(Clone, Debug)]
pub struct Directory(pub PathBuf);

impl BootAccess for Directory {
    fn open(&self, _: Access) -> io::Result<OpenBoot> {
        Ok(OpenBoot {
            partition: Box::new(DirectoryPartition::new(&self.0)),
            space: space::space(File::open(&self.0)?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::install::layout::{ESP_MIN, Firmware, Layout};
    use crate::install::table::{self, Identifiers};
    use uuid::Uuid;

    #[test]
    fn a_writer_waits_for_readers_and_a_reader_joins_a_writer() {
        let busy = || io::Error::from(io::ErrorKind::ResourceBusy);
        let readers = Cell::new(3);
        shared(Access::ReadWrite, |_| {
            let left = readers.get();
            readers.set(left - 1);
            if left > 0 { Err(busy()) } else { Ok(()) }
        })
        .unwrap();
        assert_eq!(readers.get(), -1);
        shared(Access::ReadOnly, |access| match access {
            Access::ReadOnly => Err(busy()),
            Access::ReadWrite => Ok(()),
        })
        .unwrap();
        let tried = Cell::new(0);
        let error = shared(Access::ReadWrite, |_| {
            tried.set(tried.get() + 1);
            Err(io::ErrorKind::NotFound.into())
        });
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(tried.get(), 1, "other errors are errors at once");
    }

    #[test]
    fn the_partition_of_a_new_disk_is_found_as_the_firmware_names_it() {
        let mut disk = tempfile::tempfile().unwrap();
        let layout = Layout::new(Firmware::Uefi, 100 << 20, ESP_MIN, 1 << 20).unwrap();
        disk.set_len(layout.size).unwrap();
        let identifiers = Identifiers::from_seed(Uuid::from_u128(1));
        table::write(&mut disk, &layout, &identifiers, None).unwrap();

        let esp = of_table(&disk, Path::new("disk")).unwrap();
        assert_eq!(esp.number, 1);
        assert_eq!(esp.start * table::SECTOR, layout.esp.start);
        assert_eq!(esp.length * table::SECTOR, layout.esp.length);
        // The first three fields of a GUID are little-endian in a table.
        let mut guid = identifiers.esp_partition.into_bytes();
        guid[..4].reverse();
        guid[4..6].reverse();
        guid[6..8].reverse();
        assert_eq!(esp.guid, guid);
    }
}
