//! The partition table of a new disk: GPT with the types of the Discoverable Partitions Specification.
//!
//! Invariant: the table is written last, so that a disk whose making was interrupted has none.

use std::fs::File;
use std::io;

use bedplate_model::record::DeploymentId;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use gpt::partition_types::{OperatingSystem, Type};
use gpt::{GptConfig, GptError};
use uuid::Uuid;

use super::layout::{Layout, Region};

/// The bytes of a sector: what a FILE's table counts in.
pub const SECTOR: u64 = 512;

/// The type of the EFI system partition.
pub const ESP_TYPE: Uuid = Uuid::from_u128(0xc12a_7328_f81f_11d2_ba4b_00a0_c93e_c93b);

/// The type of the partition that GRUB's core image lies in.
pub const BIOS_BOOT_TYPE: Uuid = Uuid::from_u128(0x2168_6148_6449_6e6f_744e_6565_6445_4649);

/// The type of the root partition on x86-64.
pub const ROOT_X86_64_TYPE: Uuid = Uuid::from_u128(0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709);

/// The attribute that asks for the file system to be grown to its partition: bit 59.
const GROW_FILE_SYSTEM: u64 = 1 << 59;

/// The identifiers of a disk and its parts: random, or given, so that an image can be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identifiers {
    /// The disk.
    pub disk: Uuid,
    /// The BIOS boot partition's entry in the partition table.
    pub bios_partition: Uuid,
    /// The ESP's entry in the partition table.
    pub esp_partition: Uuid,
    /// The serial number of the ESP's file system.
    pub esp_serial: u32,
    /// The root's entry in the partition table.
    pub root_partition: Uuid,
    /// The root's file system: what the kernel command line names.
    pub root: Uuid,
    /// The first deployment.
    pub deployment: DeploymentId,
}

impl Identifiers {
    /// Makes random identifiers.
    pub fn random() -> Self {
        Self::from_seed(Uuid::new_v4())
    }

    /// Derives all identifiers from one, so that the same seed gives the same disk.
    pub fn from_seed(seed: Uuid) -> Self {
        use sha2::Digest as _;
        let derive = |what: &str| {
            let digest = sha2::Sha256::new()
                .chain_update(seed.as_bytes())
                .chain_update(what)
                .finalize();
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&digest[..16]);
            uuid::Builder::from_random_bytes(bytes).into_uuid()
        };
        Self {
            disk: derive("disk"),
            bios_partition: derive("bios-partition"),
            esp_partition: derive("esp-partition"),
            esp_serial: derive("esp-serial").as_fields().0,
            root_partition: derive("root-partition"),
            root: derive("root"),
            deployment: DeploymentId(derive("deployment").as_fields().0.to_be_bytes()),
        }
    }
}

/// Writes the protective MBR, with `code` where a BIOS starts the disk, and both copies of the table, and waits
/// until they are on the disk.
pub fn write(
    disk: &mut File,
    layout: &Layout,
    identifiers: &Identifiers,
    code: Option<&[u8; 440]>,
) -> Result<(), TableError> {
    let sectors = layout.size / SECTOR;
    // The protective entry counts the sectors after its own, and stops counting at 32 bits.
    let protected = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    let mut mbr = ProtectiveMBR::with_lb_size(protected);
    if let Some(code) = code {
        mbr.set_bootcode(*code);
    }
    mbr.overwrite_lba0(disk)
        .map_err(|error| TableError::Mbr(io::Error::other(error)))?;

    let mut table = GptConfig::new()
        .writable(true)
        .create_from_device(&mut *disk, Some(identifiers.disk))?;
    let bios_boot = layout.bios_boot.map(|region| {
        let id = identifiers.bios_partition;
        partition(BIOS_BOOT_TYPE, id, region, 0, "bios-boot")
    });
    let others = [
        partition(ESP_TYPE, identifiers.esp_partition, layout.esp, 0, "esp"),
        partition(
            ROOT_X86_64_TYPE,
            identifiers.root_partition,
            layout.root,
            GROW_FILE_SYSTEM,
            "bedplate-root",
        ),
    ];
    let partitions = bios_boot.into_iter().chain(others);
    table.update_partitions((1..).zip(partitions).collect())?;
    table.write()?;
    disk.sync_all().map_err(TableError::Sync)
}

fn partition(kind: Uuid, id: Uuid, region: Region, flags: u64, name: &str) -> Partition {
    Partition {
        part_type_guid: Type {
            guid: kind,
            os: OperatingSystem::None,
        },
        part_guid: id,
        first_lba: region.start / SECTOR,
        last_lba: region.end() / SECTOR - 1,
        flags,
        name: name.to_owned(),
    }
}

/// Why a partition table could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The protective MBR.
    #[error("cannot write the protective MBR")]
    Mbr(#[source] io::Error),
    /// The table.
    #[error("cannot write the partition table")]
    Table(#[from] GptError),
    /// The flush.
    #[error("cannot flush the partition table")]
    Sync(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::layout::{ESP_MIN, Firmware};

    #[test]
    fn a_table_reads_back_as_it_was_written() {
        let mut file = tempfile::tempfile().unwrap();
        let layout = Layout::new(Firmware::Uefi, 128 << 20, ESP_MIN, 1 << 20).unwrap();
        file.set_len(layout.size).unwrap();
        let identifiers = Identifiers::from_seed(Uuid::from_u128(7));
        write(&mut file, &layout, &identifiers, None).unwrap();

        let table = GptConfig::new()
            .only_valid_headers(true)
            .open_from_device(file)
            .unwrap();
        assert_eq!(*table.guid(), identifiers.disk);
        let root = &table.partitions()[&2];
        assert_eq!(root.part_type_guid.guid, ROOT_X86_64_TYPE);
        assert_eq!(root.part_guid, identifiers.root_partition);
        assert_eq!(root.first_lba * SECTOR, layout.root.start);
        assert_eq!((root.last_lba + 1) * SECTOR, layout.root.end());
        assert_eq!(root.flags, GROW_FILE_SYSTEM);
    }

    #[test]
    fn a_bios_has_its_code_and_its_partition_before_the_others() {
        use std::os::unix::fs::FileExt as _;
        let mut file = tempfile::tempfile().unwrap();
        let layout = Layout::new(Firmware::Bios, 128 << 20, ESP_MIN, 1 << 20).unwrap();
        file.set_len(layout.size).unwrap();
        let identifiers = Identifiers::from_seed(Uuid::from_u128(7));
        write(&mut file, &layout, &identifiers, Some(&[7; 440])).unwrap();
        let mut sector = [0; 512];
        file.read_exact_at(&mut sector, 0).unwrap();
        assert_eq!(
            (&sector[..440], &sector[510..]),
            (&[7; 440][..], &[0x55, 0xaa][..])
        );

        let table = GptConfig::new().open_from_device(file).unwrap();
        let types = [BIOS_BOOT_TYPE, ESP_TYPE, ROOT_X86_64_TYPE];
        let found = table
            .partitions()
            .values()
            .map(|part| part.part_type_guid.guid);
        assert!(found.eq(types));
        assert_eq!(
            table.partitions()[&layout.esp_number()].part_type_guid.guid,
            ESP_TYPE
        );
        assert_eq!(table.partitions()[&1].first_lba, 2048);
        assert_eq!(table.partitions()[&1].last_lba, 4095);
    }

    #[test]
    fn one_seed_gives_the_same_identifiers_and_another_gives_others() {
        let one = Identifiers::from_seed(Uuid::from_u128(1));
        assert_eq!(one, Identifiers::from_seed(Uuid::from_u128(1)));
        assert_ne!(one, Identifiers::from_seed(Uuid::from_u128(2)));
        assert_ne!(one.disk, one.root);
        assert_ne!(Identifiers::random(), Identifiers::random());
    }
}
