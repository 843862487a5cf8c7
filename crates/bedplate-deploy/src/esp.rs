//! The boot partition of a machine: the EFI system partition on the root's own disk.
//!
//! ```text
//! root → its device (stat) → its disk (sysfs) → the partition of ESP type (GPT) → its device → mount
//! ```
//!
//! Invariant: it is found on the disk that the root is on, since copies of a disk have the same
//! identifiers; it is mounted below `/run/bedplate`, in this program's own mount namespace, and only
//! for as long as it is used.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use bedplate_boot::loader_conf::SECTOR;
use bedplate_boot::partition::{BootPartition, DirectoryPartition};
use bedplate_sys::mount::{self, Access, Unmount};
use bedplate_sys::space;
use gpt::GptConfig;

use crate::host::{BootAccess, OpenBoot};
use crate::install::table::ESP_TYPE;

/// Only root may look: the command line of every deployment is there.
const OPTIONS: &str = "umask=0077";

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

    /// Finds the partition's device node.
    fn find(&self) -> io::Result<PathBuf> {
        let device = fs::metadata(&self.root)?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let partition = fs::canonicalize(self.sys.join(format!("dev/block/{major}:{minor}")))?;
        let disk = partition
            .parent()
            .ok_or_else(|| io::Error::other("the root is on no partition"))?;
        let node = self.dev.join(disk.file_name().unwrap_or_default());
        let table = GptConfig::new()
            .writable(false)
            .open_from_device(File::open(&node)?)
            .map_err(io::Error::other)?;
        let number = table
            .partitions()
            .iter()
            .find(|(_, partition)| partition.part_type_guid.guid == ESP_TYPE)
            .map(|(number, _)| *number)
            .ok_or_else(|| {
                io::Error::other(format!("{} has no EFI system partition", node.display()))
            })?;
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
}

impl BootAccess for RootDisk {
    fn open(&self, access: Access) -> io::Result<OpenBoot> {
        let node = self.find()?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.at)?;
        match mount::mount_filesystem("vfat", &node, &self.at, OPTIONS, access) {
            // Somebody else has it mounted for writing: one file system cannot be both.
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && access == Access::ReadOnly =>
            {
                mount::mount_filesystem("vfat", &node, &self.at, OPTIONS, Access::ReadWrite)?;
            }
            other => other?,
        }
        let mounted = Mounted {
            files: DirectoryPartition::new(&self.at),
        };
        let free = space::space(File::open(&self.at)?)?.available;
        Ok(OpenBoot {
            partition: Box::new(mounted),
            free,
        })
    }
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
            free: space::space(File::open(&self.0)?)?.available,
        })
    }
}
