//! How much room a file system has, and reserving some of it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// The room of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What this process may still write.
    pub available: u64,
    /// Inodes that can still be made; `None` where the file system makes them as it goes.
    pub inodes: Option<u64>,
}

/// Returns the room of the file system that `fd` lies on.
pub fn space(fd: impl AsFd) -> io::Result<Space> {
    let stat = rustix::fs::fstatvfs(fd)?;
    Ok(Space {
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
        inodes: (stat.f_files > 0).then_some(stat.f_favail),
    })
}

/// Returns whether a write failed because there is no room for it, on the disk or in somebody's share of it.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Reserves blocks of a file without changing its length, where the file system can.
///
/// A full disk is an error here, before the bytes are written.
pub fn reserve(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, bytes) {
        // Without fallocate the write itself finds out.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives back blocks of a file without changing its length, where the file system can: it reads as zeros
/// there.
pub fn release(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, offset, bytes) {
        // Room that was only reserved reads as zeros, too.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_counted_and_can_be_reserved() {
        let file = tempfile::tempfile().unwrap();
        let space = space(&file).unwrap();
        assert!(space.available <= space.total);
        reserve(&file, 4096, 8192).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        release(&file, 0, 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
    }
}
