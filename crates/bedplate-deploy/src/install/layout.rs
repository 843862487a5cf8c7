//! Where the partitions of a new disk begin and end.
//!
//! ```text
//! 0      1 MiB                1 MiB + esp                            size − 1 MiB   size
//! │ GPT  │  1 ESP (FAT32)     │  2 root (ext4), to the last whole MiB │ GPT backup  │
//! ```
//!
//! Invariant: partitions are whole MiB, lie in order, and leave room for both partition tables.

/// The unit of everything here: disks and their flash like it, and both GPTs fit in one.
pub const ALIGN: u64 = 1 << 20;

/// The smallest ESP: FAT32 needs 65,525 clusters, of 512 bytes at least, and its two tables.
pub const ESP_MIN: u64 = 36 << 20;

/// The size of an ESP unless another is asked for: kernels and initramfs of five deployments.
pub const ESP_DEFAULT: u64 = 512 << 20;

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
    /// The EFI system partition.
    pub esp: Region,
    /// The root.
    pub root: Region,
}

impl Layout {
    /// Divides a disk of `size` bytes.
    ///
    /// `esp` is rounded up to whole MiB; the root gets the rest, which must be `root_min` at least.
    pub fn new(size: u64, esp: u64, root_min: u64) -> Result<Self, LayoutError> {
        if esp < ESP_MIN {
            return Err(LayoutError::SmallEsp { esp });
        }
        let too_small = || LayoutError::SmallDisk {
            size,
            needed: Self::needed(esp, root_min),
        };
        let esp = Region {
            start: ALIGN,
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
            esp,
            root: Region { start, length },
        })
    }

    /// Returns the size of the smallest disk for such partitions, in whole MiB.
    pub fn needed(esp: u64, root_min: u64) -> u64 {
        let whole = |bytes: u64| bytes.div_ceil(ALIGN).saturating_mul(ALIGN);
        whole(esp)
            .saturating_add(whole(root_min))
            .saturating_add(2 * ALIGN)
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
        let needed = Layout::needed(ESP_MIN, 100 << 20);
        let layout = Layout::new(needed, ESP_MIN, 100 << 20).unwrap();
        assert_eq!(layout.root.length, 100 << 20);
        assert_eq!(
            Layout::new(needed - 1, ESP_MIN, 100 << 20),
            Err(LayoutError::SmallDisk {
                size: needed - 1,
                needed
            })
        );
        assert!(Layout::new(needed, ESP_MIN - 1, 0).is_err());
    }

    proptest! {
        #[test]
        fn partitions_lie_in_order_and_leave_room_for_both_tables(size: u64, esp: u64, root: u64) {
            if let Ok(layout) = Layout::new(size, esp, root) {
                prop_assert!(layout.esp.start >= ALIGN);
                prop_assert!(layout.esp.length >= esp);
                prop_assert_eq!(layout.esp.end(), layout.root.start);
                prop_assert!(layout.root.length >= root);
                prop_assert!(layout.root.end() + ALIGN <= size);
            }
        }
    }
}
