//! What tells a file from a changed one without reading it, and how far that may be trusted.
//!
//! ```text
//! FileSystem::of ─→ knows which file systems change a file's ctime with every change of its bytes …
//! flush_mappings ─→ … also through mappings: pages are clean, so the next store is noticed
//! wait_for_writers ─→ … also through a write(2) that set the times and still copies
//! Stamp::of ─→ equal stamps, with a ctime that was old when the bytes were read: equal bytes
//! ```
//!
//! Invariant: nothing here changes a file.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, SeekFrom, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

/// A time as the file system keeps it: seconds since 1970 and nanoseconds, in their order.
pub type Time = (i64, u32);

/// What the kernel knows about a file that changes when its content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The device number.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
    /// The length in bytes.
    pub size: u64,
    /// When the content was changed last, or was set to have been.
    pub mtime: Time,
    /// When anything about the file was changed last; cannot be set.
    pub ctime: Time,
    /// When the inode was made; zero where the file system does not keep it.
    pub btime: Time,
}

impl Stamp {
    /// Reads the stamp of an open file.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted)?;
        let time = |time: StatxTimestamp| (time.tv_sec, time.tv_nsec);
        let has_btime = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        Ok(Self {
            device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            size: stat.stx_size,
            mtime: time(stat.stx_mtime),
            ctime: time(stat.stx_ctime),
            btime: if has_btime {
                time(stat.stx_btime)
            } else {
                Time::default()
            },
        })
    }
}

/// A mounted file system: what kind it is, and which one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Its magic number (`statfs.f_type`).
    pub kind: u64,
    /// Its number (`statfs.f_fsid`): from its UUID with ext4 and btrfs, from its device with XFS.
    pub id: u64,
}

impl FileSystem {
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const F2FS: u64 = 0xf2f5_2010;
    const TMPFS: u64 = 0x0102_1994;
    const OVERLAY: u64 = 0x794c_7630;

    /// Finds out about the file system of an open file.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let file = file.as_fd();
        Ok(Self {
            kind: rustix::fs::fstatfs(file)?.f_type as u64,
            id: rustix::fs::fstatvfs(file)?.f_fsid,
        })
    }

    /// Returns whether every change of a file's bytes changes its ctime: also one through a mapping,
    /// once [`flush_mappings`] was called.
    ///
    /// A tmpfs never notices stores into a mapping, a network's times are another machine's, an
    /// overlay's inode numbers mean other files after the next mount.
    pub fn notices_changes(&self) -> bool {
        matches!(self.kind, Self::EXT | Self::XFS | Self::BTRFS | Self::F2FS)
    }

    /// Returns whether its times come from this kernel's clock.
    pub fn keeps_this_clock(&self) -> bool {
        self.notices_changes() || matches!(self.kind, Self::TMPFS | Self::OVERLAY)
    }
}

/// Makes every later store through a mapping of any file of a file system change that file's times.
///
/// A page that a process maps and wrote to stays writable without the kernel's notice until it is
/// written back: so it is.
pub fn flush_mappings(file: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::syncfs(file)?)
}

/// Returns when no `write(2)` that had begun is under way any more. The position stays where it is.
///
/// Such a write sets the times first, and may copy for long. Asking for holes takes the lock that it
/// holds.
pub fn wait_for_writers(file: &File) -> io::Result<()> {
    let position = rustix::fs::tell(file)?;
    match rustix::fs::seek(file, SeekFrom::Hole(0)) {
        // An empty file has nothing to seek.
        Ok(_) | Err(Errno::NXIO) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::fs::seek(file, SeekFrom::Start(position))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read as _;
    use std::time::Duration;

    /// Longer than any kernel's tick (10 ms at 100 Hz): the next change gets another time.
    fn next_tick() {
        std::thread::sleep(Duration::from_millis(25));
    }

    #[test]
    fn a_stamp_changes_with_the_content_even_if_size_and_mtime_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "one").unwrap();
        let before = Stamp::of(File::open(&path).unwrap()).unwrap();
        let kept = fs::metadata(&path).unwrap().modified().unwrap();
        next_tick();
        fs::write(&path, "two").unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(kept)
            .unwrap();
        let after = Stamp::of(File::open(&path).unwrap()).unwrap();
        assert_eq!((before.size, before.mtime), (after.size, after.mtime));
        assert_ne!(before, after);
    }

    #[test]
    fn a_store_through_a_dirty_mapping_is_noticed_after_a_flush() {
        use rustix::mm::{MapFlags, ProtFlags};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, [0; 4096]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        if !FileSystem::of(&file).unwrap().notices_changes() {
            return; // this machine builds on a file system that is never trusted
        }
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping of a page of an open file, at a place of the kernel's choice.
        let page =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, protection, flags, &file, 0) };
        let page = page.unwrap().cast::<u8>();
        // SAFETY: the page is mapped for writing until the end of the process, and nobody else has it.
        let store = |byte: u8| unsafe { page.write_volatile(byte) };

        store(1); // from here on the page is writable without notice …
        next_tick();
        flush_mappings(&file).unwrap();
        let before = Stamp::of(&file).unwrap();
        next_tick();
        store(2); // … and this would go unnoticed without the flush
        assert_ne!(Stamp::of(&file).unwrap(), before);
    }

    #[test]
    fn waiting_for_writers_keeps_the_position() {
        let directory = tempfile::tempdir().unwrap();
        for content in ["", "content"] {
            let path = directory.path().join("file");
            fs::write(&path, content).unwrap();
            let mut file = File::open(&path).unwrap();
            wait_for_writers(&file).unwrap();
            let mut read = String::new();
            file.read_to_string(&mut read).unwrap();
            assert_eq!(read, content);
        }
    }
}
