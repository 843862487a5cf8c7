//! Takes fs-verity's mark off the files of an ext4 that lies in a file, so that a kernel without fs-verity
//! can read them.
//!
//! ```text
//! superblock ─ group descriptors ─ inode tables ─ each inode that is in use: i_flags, and its checksum
//! ```
//!
//! The file system must not be mounted, and its journal must have been replayed.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};

/// Where the superblock is, and how much of it there is.
const SUPERBLOCK: (u64, usize) = (1024, 1024);
const MAGIC: u16 = 0xef53;
/// Features: group descriptors spread over the disk; checksums whose seed is written down.
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const INCOMPAT_RECOVER: u32 = 0x4;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
/// The inodes of this group were never written.
const GROUP_INODES_UNUSED: u16 = 0x1;
/// The mark.
const VERITY: u32 = 0x0010_0000;

/// Numbers of files.
pub type Inodes = BTreeSet<u64>;

/// Takes the mark off every file of the ext4 that begins at `start` of `disk`; returns whose it was.
pub fn unseal(disk: &File, start: u64) -> Result<Inodes> {
    let volume = Volume::read(disk, start)?;
    let mut found = Inodes::new();
    for group in 0..volume.groups {
        volume.unseal_group(group, &mut found)?;
    }
    Ok(found)
}

/// What is known of a file system from its superblock.
#[derive(Debug)]
struct Volume<'a> {
    disk: &'a File,
    start: u64,
    block: u64,
    groups: u64,
    inodes_per_group: u64,
    inode_size: usize,
    descriptors: u64,
    descriptor_size: u64,
    /// What checksums begin with, where there are any.
    seed: Option<u32>,
}

impl<'a> Volume<'a> {
    fn read(disk: &'a File, start: u64) -> Result<Self> {
        let mut superblock = vec![0; SUPERBLOCK.1];
        disk.read_exact_at(&mut superblock, start + SUPERBLOCK.0)
            .context("reading the superblock")?;
        let word = |at| u32_at(&superblock, at);
        ensure!(u16_at(&superblock, 0x38) == MAGIC, "this is no ext4");
        let (incompat, ro_compat) = (word(0x60), word(0x64));
        ensure!(
            incompat & INCOMPAT_META_BG == 0,
            "its group descriptors are spread"
        );
        ensure!(
            incompat & INCOMPAT_RECOVER == 0,
            "its journal was not replayed"
        );
        let block = 1024 << word(0x18);
        let first = u64::from(word(0x14));
        let high = if incompat & INCOMPAT_64BIT != 0 {
            word(0x150)
        } else {
            0
        };
        let blocks = u64::from(word(0x4)) | u64::from(high) << 32;
        let seed = if ro_compat & RO_COMPAT_METADATA_CSUM == 0 {
            None
        } else if incompat & INCOMPAT_CSUM_SEED != 0 {
            Some(word(0x270))
        } else {
            Some(crc32c(!0, &superblock[0x68..0x78]))
        };
        Ok(Self {
            disk,
            start,
            block,
            groups: (blocks - first).div_ceil(u64::from(word(0x20))),
            inodes_per_group: u64::from(word(0x28)),
            inode_size: usize::from(u16_at(&superblock, 0x58)),
            descriptors: start + (first + 1) * block,
            descriptor_size: match incompat & INCOMPAT_64BIT {
                0 => 32,
                _ => u64::from(u16_at(&superblock, 0xfe)),
            },
            seed,
        })
    }

    fn unseal_group(&self, group: u64, found: &mut Inodes) -> Result<()> {
        let mut descriptor = vec![0; self.descriptor_size as usize];
        self.disk
            .read_exact_at(
                &mut descriptor,
                self.descriptors + group * self.descriptor_size,
            )
            .context("reading a group descriptor")?;
        if u16_at(&descriptor, 0x12) & GROUP_INODES_UNUSED != 0 {
            return Ok(());
        }
        let wide = descriptor.len() >= 64;
        let high = if wide { u32_at(&descriptor, 0x28) } else { 0 };
        let table = u64::from(u32_at(&descriptor, 0x8)) | u64::from(high) << 32;
        let high = if wide { u16_at(&descriptor, 0x32) } else { 0 };
        let unused = u64::from(u16_at(&descriptor, 0x1c)) | u64::from(high) << 16;
        let used = self.inodes_per_group.saturating_sub(unused);
        let at = self.start + table * self.block;
        let mut inodes = vec![0; used as usize * self.inode_size];
        self.disk
            .read_exact_at(&mut inodes, at)
            .context("reading a table of inodes")?;
        for (index, inode) in inodes.chunks_mut(self.inode_size).enumerate() {
            let flags = u32_at(inode, 0x20);
            let links = u16_at(inode, 0x1a);
            if flags & VERITY == 0 || links == 0 {
                continue;
            }
            let number = group * self.inodes_per_group + index as u64 + 1;
            found.insert(number);
            inode[0x20..0x24].copy_from_slice(&(flags & !VERITY).to_le_bytes());
            self.sign(inode, number as u32);
            self.disk
                .write_all_at(inode, at + (index * self.inode_size) as u64)
                .context("writing an inode")?;
        }
        Ok(())
    }

    /// Writes an inode's checksum into it.
    fn sign(&self, inode: &mut [u8], number: u32) {
        let Some(seed) = self.seed else { return };
        let high = inode.len() > 128 && u16_at(inode, 0x80) >= 4;
        inode[0x7c..0x7e].fill(0);
        if high {
            inode[0x82..0x84].fill(0);
        }
        let seed = crc32c(seed, &number.to_le_bytes());
        let seed = crc32c(seed, &u32_at(inode, 0x64).to_le_bytes());
        let [a, b, c, d] = crc32c(seed, inode).to_le_bytes();
        inode[0x7c..0x7e].copy_from_slice(&[a, b]);
        if high {
            inode[0x82..0x84].copy_from_slice(&[c, d]);
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// CRC-32C as ext4 has it: not inverted at either end.
fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, byte| {
        (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)]
    })
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn run(program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        said
    }

    #[test]
    fn a_sealed_file_can_be_read_afterwards_and_the_file_system_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let disk = at("disk.img");
        std::fs::create_dir(at("tree")).unwrap();
        for name in ["tree/sealed", "tree/plain"] {
            std::fs::write(at(name), vec![7; 5000]).unwrap();
        }
        let tree = at("tree");
        run(
            "mkfs.ext4",
            &[
                "-q", "-b", "4096", "-O", "verity", "-d", &tree, &disk, "16M",
            ],
        );
        run("debugfs", &["-w", "-R", "sif sealed flags 0x180000", &disk]);
        let flags = |name: &str| run("debugfs", &["-R", &format!("stat {name}"), &disk]);
        assert!(flags("sealed").contains("Flags: 0x180000"));

        let file = File::options().read(true).write(true).open(&disk).unwrap();
        assert_eq!(unseal(&file, 0).unwrap().len(), 1);
        assert_eq!(unseal(&file, 0).unwrap().len(), 0);
        assert!(flags("sealed").contains("Flags: 0x80000"));
        run("e2fsck", &["-f", "-n", &disk]); // checksums, too
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }
}
