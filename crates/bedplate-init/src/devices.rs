//! The kernel's own file systems, drivers, and the device that the physical root lies on.
//!
//! ```text
//! ext4   at 1024: superblock     0x38 magic · 0x68 UUID · 0x78 label
//! GPT    sector 1: "EFI PART"    72 first sector of entries · 80 their number · 84 their size
//!        entry: 0 type · 16 UUID
//! ```
//!
//! There is no udev here: each block device is read, again and again until the right one is there.
//!
//! Invariant: disks are read, never written; numbers on them are not trusted.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bedplate_boot::cmdline::DeviceName;
use bedplate_boot::initramfs::{MODULE_LIST, ModuleList, Stage};
use bedplate_sys::mount::{self, Access};

use crate::console::{self, Failure};

/// How long the root's device may take to appear: spinning disks and USB are slow.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to sleep between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// The partition type of a root file system on x86-64, by the Discoverable Partitions Specification.
const ROOT_TYPE: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";

/// Mounts what the kernel itself shows: /proc, /sys, /dev, /run.
pub(crate) fn mount_kernel_filesystems() -> Result<(), Failure> {
    for (kind, at, options) in [
        ("devtmpfs", "/dev", "mode=0755"),
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("tmpfs", "/run", "mode=0755"),
    ] {
        mount::mount_filesystem(
            kind,
            Path::new(kind),
            Path::new(at),
            options,
            Access::ReadWrite,
        )
        .map_err(|why| Failure::new(format!("mount {at}"), why))?;
    }
    Ok(())
}

/// The kernel modules that the initramfs carries.
pub(crate) struct Modules(ModuleList);

impl Modules {
    /// Reads the list of them.
    pub(crate) fn listed() -> Result<Self, Failure> {
        std::fs::read_to_string(Path::new("/").join(MODULE_LIST))
            .map(|text| Self(ModuleList::parse(&text)))
            .map_err(|why| Failure::new(format!("read /{MODULE_LIST}"), why))
    }

    /// Loads those that every boot needs.
    pub(crate) fn load_needed(&self) {
        self.load(Stage::Needed);
    }

    /// Loads those that lead to whoever runs a virtual machine.
    pub(crate) fn load_guest(&self) {
        self.load(Stage::Guest);
    }

    fn load_drivers(&self) {
        // Disks of virtual machines are reached through the same bus.
        self.load(Stage::Guest);
        self.load(Stage::Driver);
    }

    /// A module that cannot be loaded is no failure yet: a processor may lack what a faster variant of
    /// an algorithm uses. What is really missing shows at its first use.
    fn load(&self, stage: Stage) {
        for (_, path) in self.0.modules.iter().filter(|(when, _)| *when == stage) {
            let loaded = File::open(path).and_then(|file| bedplate_sys::module::load(&file));
            if let Err(why) = loaded {
                console::note(&format!("module {path} is not loaded: {why}"));
            }
        }
    }
}

/// Finds the root's device, and loads drivers when it is not there without them.
pub(crate) fn wait_for(wanted: &DeviceName, modules: &Modules) -> Result<PathBuf, Failure> {
    if let Some(device) = find(wanted) {
        return Ok(device);
    }
    modules.load_drivers();
    let begun = Instant::now();
    loop {
        if let Some(device) = find(wanted) {
            return Ok(device);
        }
        if begun.elapsed() >= PATIENCE {
            let seen = names().join(" ");
            return Err(Failure::new(
                format!("find the root, {wanted}"),
                format!(
                    "it did not appear in {} s; block devices: {seen}",
                    PATIENCE.as_secs()
                ),
            ));
        }
        std::thread::sleep(PAUSE);
    }
}

fn find(wanted: &DeviceName) -> Option<PathBuf> {
    if let DeviceName::Path(path) = wanted {
        return Path::new(path).exists().then(|| path.into());
    }
    // A device that cannot be read is not the one: an empty drive, or one that just went.
    let is_wanted = |name: &String| match wanted {
        DeviceName::Uuid(uuid) => superblock(name).is_ok_and(|ext4| ext4.uuid == *uuid),
        DeviceName::Label(label) => superblock(name).is_ok_and(|ext4| ext4.label == *label),
        DeviceName::PartUuid(uuid) => partition(name).is_ok_and(|part| part.uuid == *uuid),
        DeviceName::Discoverable => partition(name).is_ok_and(|part| part.kind == ROOT_TYPE),
        DeviceName::Path(_) => false,
    };
    let name = names().into_iter().find(is_wanted)?;
    Some(Path::new("/dev").join(name))
}

/// The names of all block devices, sorted so that the same machine finds the same one.
fn names() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/class/block");
    let mut names: Vec<String> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

/// What an ext4 says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    uuid: String,
    label: String,
}

fn superblock(name: &str) -> io::Result<Superblock> {
    let mut bytes = [0; 1024];
    File::open(Path::new("/dev").join(name))?.read_exact_at(&mut bytes, 1024)?;
    parse_superblock(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

pub(crate) fn parse_superblock(bytes: &[u8; 1024]) -> Option<Superblock> {
    if bytes[0x38..0x3a] != [0x53, 0xef] {
        return None;
    }
    let label = &bytes[0x78..0x88];
    let end = label.iter().position(|byte| *byte == 0);
    Some(Superblock {
        uuid: uuid_text(bytes[0x68..0x78].try_into().ok()?),
        label: String::from_utf8_lossy(&label[..end.unwrap_or(label.len())]).into_owned(),
    })
}

/// What a partition table says of a partition.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    kind: String,
    uuid: String,
}

fn partition(name: &str) -> io::Result<Partition> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let shown = Path::new("/sys/class/block").join(name);
    let number = |path: PathBuf| -> io::Result<u64> {
        let text = std::fs::read_to_string(path)?;
        text.trim().parse().map_err(|_| invalid())
    };
    let index = number(shown.join("partition"))?;
    // The disk's directory holds those of its partitions.
    let place = std::fs::canonicalize(&shown)?;
    let disk = place.parent().ok_or_else(invalid)?;
    let sector = number(disk.join("queue/logical_block_size"))?;
    let node = Path::new("/dev").join(disk.file_name().ok_or_else(invalid)?);
    read_partition(&File::open(node)?, sector, index)?.ok_or_else(invalid)
}

/// Reads the `index`-th entry, counted from one, of a disk's GUID partition table.
pub(crate) fn read_partition(
    disk: &File,
    sector: u64,
    index: u64,
) -> io::Result<Option<Partition>> {
    let mut header = [0; 92];
    disk.read_exact_at(&mut header, sector)?;
    if !header.starts_with(b"EFI PART") {
        return Ok(None);
    }
    let word = |at: usize| {
        let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
        u64::from(u32::from_le_bytes(bytes))
    };
    let first = word(72) | word(76) << 32;
    let (count, size) = (word(80), word(84));
    let entry_at = || {
        let before = index.checked_sub(1).filter(|before| *before < count)?;
        first
            .checked_mul(sector)?
            .checked_add(before.checked_mul(size)?)
    };
    let Some(at) = entry_at() else {
        return Ok(None);
    };
    let (mut kind, mut uuid) = ([0; 16], [0; 16]);
    disk.read_exact_at(&mut kind, at)?;
    disk.read_exact_at(&mut uuid, at.saturating_add(16))?;
    Ok(Some(Partition {
        kind: guid_text(kind),
        uuid: guid_text(uuid),
    }))
}

/// A GUID as disks have it: its first three groups are little-endian.
fn guid_text(mut bytes: [u8; 16]) -> String {
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    uuid_text(bytes)
}

fn uuid_text(bytes: [u8; 16]) -> String {
    let hex = bedplate_model::digest::hex(&bytes);
    let groups = [0..8, 8..12, 12..16, 16..20, 20..32];
    groups.map(|group| &hex[group]).join("-")
}
