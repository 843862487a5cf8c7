//! Block devices: their size, and telling the kernel and ext4 that a partition grew.
//!
//! Invariant: nothing here writes to a device; partition tables are written by their owners.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;

use rustix::ioctl::{self, Opcode, opcode};

/// Returns the size of a block device or regular file in bytes.
pub fn size(device: &File) -> io::Result<u64> {
    let mut device = device;
    let before = device.stream_position()?;
    let size = device.seek(SeekFrom::End(0))?;
    device.seek(SeekFrom::Start(before))?;
    Ok(size)
}

/// Returns the size in bytes of the smallest unit that a disk addresses: what GPT counts in.
pub fn logical_sector_size(device: &File) -> io::Result<u32> {
    Ok(rustix::fs::ioctl_blksszget(device)?)
}

/// `struct blkpg_partition` of linux/blkpg.h.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: i32,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// `struct blkpg_ioctl_arg` of linux/blkpg.h.
#[repr(C)]
struct BlkpgArgument {
    operation: i32,
    flags: i32,
    data_length: i32,
    data: *mut BlkpgPartition,
}

/// `_IO(0x12, 105)`.
const BLKPG: Opcode = opcode::none(0x12, 105);
const BLKPG_RESIZE_PARTITION: i32 = 3;

/// Tells the kernel that partition `number` of `disk` has a new length, also while it is mounted.
///
/// Start and length are in bytes.
pub fn resize_partition(disk: &File, number: u32, start: u64, length: u64) -> io::Result<()> {
    let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut partition = BlkpgPartition {
        start: start.try_into().map_err(out_of_range)?,
        length: length.try_into().map_err(out_of_range)?,
        number: number.try_into().map_err(out_of_range)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let argument = BlkpgArgument {
        operation: BLKPG_RESIZE_PARTITION,
        flags: 0,
        data_length: size_of::<BlkpgPartition>() as i32,
        data: &raw mut partition,
    };
    // SAFETY: BLKPG reads a `blkpg_ioctl_arg`, which `argument` is by its layout, and through `data`
    // a `blkpg_partition` that outlives the call; it keeps neither.
    unsafe {
        let call = ioctl::Setter::<BLKPG, BlkpgArgument>::new(argument);
        ioctl::ioctl(disk.as_fd(), call)?;
    }
    Ok(())
}

/// `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: Opcode = opcode::write::<u64>(b'f', 16);

/// Grows a mounted ext4 to `blocks` of its own blocks. `mounted` is any directory of it.
pub fn resize_ext4(mounted: &File, blocks: u64) -> io::Result<()> {
    // SAFETY: the call reads one u64 and keeps nothing.
    unsafe {
        let call = ioctl::Setter::<EXT4_IOC_RESIZE_FS, u64>::new(blocks);
        ioctl::ioctl(mounted.as_fd(), call)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_layouts_are_those_of_the_kernels_headers() {
        assert_eq!(BLKPG, 0x1269);
        assert_eq!(EXT4_IOC_RESIZE_FS, 0x4008_6610);
        assert_eq!(size_of::<BlkpgPartition>(), 152);
        assert_eq!(size_of::<BlkpgArgument>(), 24);
    }

    #[test]
    fn a_file_has_its_size_and_is_no_disk() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(12345).unwrap();
        assert_eq!(size(&file).unwrap(), 12345);
        assert!(logical_sector_size(&file).is_err());
        assert!(resize_partition(&file, 1, 0, 512).is_err());
        assert!(
            resize_ext4(&file, 1).is_err(),
            "a file is no directory of ext4"
        );
    }
}
