//! Where the partitions of a new disk begin and end.
//!
//! ```text
//! 0      1 MiB                1 MiB + esp                            size − 1 MiB   size
//! │ GPT  │  1 ESP (FAT32)     │  2 root (ext4), to the last whole MiB │ GPT backup  │
//!
//! 0      1 MiB        2 MiB                2 MiB + esp                                      for a BIOS
//! │ GPT  │ 1 BIOS boot │  2 ESP (FAT32)     │  3 root (ext4) …
//! ```
//!
//! Invariant: partitions are whole MiB, lie in order, and leave room for both partition tables.

/// The unit of everything here: disks and their flash like it, and both GPTs fit in one.
pub const ALIGN: u64 = 1 << 20;

/// The smallest ESP: FAT32 needs 65,525 clusters, of 512 bytes at least, and its two tables.
pub const ESP_MIN: u64 = 36 << 20;

/// The size of an ESP unless another is asked for: kernels and initramfs of five deployments.
pub const ESP_DEFAULT: u64 = 512 << 20;

/// The length of the BIOS boot partition: twice what a BIOS could load.
const BIOS_BOOT: u64 = ALIGN;

/// What starts a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Firmware {
    /// UEFI, which starts systemd-boot from the ESP.
    #[default]
    Uefi,
    /// A BIOS, which starts GRUB from the disk's first sector.
    Bios,
}

impl Firmware {
    /// Returns what lies before the ESP.
    const fn before_esp(self) -> u64 {
        match self {
            Self::Uefi => ALIGN,
            Self::Bios => ALIGN + BIOS_BOOT,
        }
    }
}

/// A region of a disk in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it begins.
    pub start: u64,
    /// How long it is.
    pub length: u64,
}

impl Region {
    /// Returns where it ends: the first byte that is not in it.
    pub const fn end(&self) -> u64 {
        self.start + self.length
    }
}

/// The regions of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The size of the whole disk.
    pub size: u64,
    /// The BIOS boot partition, where there is one.
    pub bios_boot: Option<Region>,
    /// The EFI system partition: the boot partition, also for a BIOS.
    pub esp: Region,
    /// The root.
    pub root: Region,
}

impl Layout {
    /// Divides a disk of `size` bytes.
    ///
    /// `esp` is rounded up to whole MiB; the root gets the rest, which must be `root_min` at least.
    pub fn new(
        firmware: Firmware,
        size: u64,
        esp: u64,
        root_min: u64,
    ) -> Result<Self, LayoutError> {
        if esp < ESP_MIN {
            return Err(LayoutError::SmallEsp { esp });
        }
        let too_small = || LayoutError::SmallDisk {
            size,
            needed: Self::needed(firmware, esp, root_min),
        };
        let bios_boot = match firmware {
            Firmware::Uefi => None,
            Firmware::Bios => Some(Region {
                start: ALIGN,
                length: BIOS_BOOT,
            }),
        };
        let esp = Region {
            start: firmware.before_esp(),
            length: esp.checked_next_multiple_of(ALIGN).ok_or_else(too_small)?,
        };
        let last = (size / ALIGN).saturating_sub(1).saturating_mul(ALIGN);
        let start = esp.start.checked_add(esp.length).ok_or_else(too_small)?;
        let length = last.saturating_sub(start);
        if length < root_min.max(ALIGN) {
            return Err(too_small());
        }
        Ok(Self {
            size,
            bios_boot,
            esp,
            root: Region { start, length },
        })
    }

    /// Returns the size of the smallest disk for such partitions, in whole MiB.
    pub fn needed(firmware: Firmware, esp: u64, root_min: u64) -> u64 {
        let whole = |bytes: u64| bytes.div_ceil(ALIGN).saturating_mul(ALIGN);
        whole(esp)
            .saturating_add(whole(root_min))
            .saturating_add(firmware.before_esp() + ALIGN)
    }

    /// Returns the number of the ESP in the partition table.
    pub const fn esp_number(&self) -> u32 {
        match self.bios_boot {
            None => 1,
            Some(_) => 2,
        }
    }
}

/// Prints a size in whole MiB, rounded up: what `--size` and `--esp-size` take as `M`.
pub(super) fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(ALIGN))
}

/// Why a disk cannot be divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The ESP is too small for FAT32.
    #[error(
        "an EFI system partition of {} is too small; {} are the least",
        mib(*.esp), mib(ESP_MIN)
    )]
    SmallEsp {
        /// What was asked for.
        esp: u64,
    },
    /// The disk is too small.
    #[error(
        "a disk of {} is too small; this image needs {}",
        mib(*.size), mib(*.needed)
    )]
    SmallDisk {
        /// What there is.
        size: u64,
        /// What is needed.
        needed: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_disk_of_exactly_the_needed_size_is_enough_and_one_byte_less_is_not() {
        for firmware in [Firmware::Uefi, Firmware::Bios] {
            let needed = Layout::needed(firmware, ESP_MIN, 100 << 20);
            let new = |size, esp| Layout::new(firmware, size, esp, 100 << 20);
            assert_eq!(new(needed, ESP_MIN).unwrap().root.length, 100 << 20);
            assert_eq!(
                new(needed - 1, ESP_MIN),
                Err(LayoutError::SmallDisk {
                    size: needed - 1,
                    needed
                })
            );
            assert!(new(needed, ESP_MIN - 1).is_err());
        }
    }

    proptest! {
        #[test]
        fn partitions_lie_in_order_and_leave_room_for_both_tables(
            bios: bool, size: u64, esp: u64, root: u64,
        ) {
            let firmware = if bios { Firmware::Bios } else { Firmware::Uefi };
            if let Ok(layout) = Layout::new(firmware, size, esp, root) {
                let first = layout.bios_boot.unwrap_or(layout.esp);
                prop_assert!(first.start >= ALIGN);
                if let Some(bios_boot) = layout.bios_boot {
                    prop_assert_eq!(bios_boot.end(), layout.esp.start);
                }
                prop_assert!(layout.esp.length >= esp);
                prop_assert_eq!(layout.esp.end(), layout.root.start);
                prop_assert!(layout.root.length >= root);
                prop_assert!(layout.root.end() + ALIGN <= size);
            }
        }
    }
}
