//! Writing past the page cache.
//!
//! ```text
//! DirectFile ─ write_all(whole blocks) ─→ device       while the file system takes it
//!            └ write_all(anything else) ─→ page cache  the tail of a file; file systems without it
//! ```
//!
//! A store takes in far more than is read again soon. Copied into the page cache, it would cost a copy
//! of every byte, drive out what the machine works with, and wait there for the flush at the end.
//!
//! Invariant: what was written is what a reader finds, whichever way it went.

use std::fs::File;
use std::io::{self, Write};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// What addresses, lengths and positions must be multiples of: no device that Linux boots from wants
/// more.
pub const ALIGNMENT: usize = 4096;

/// A file that is written from its beginning to its end, past the page cache where that can be.
#[derive(Debug)]
pub struct DirectFile<'a> {
    file: &'a File,
    direct: bool,
}

impl<'a> DirectFile<'a> {
    /// Starts writing to a new file of `size` bytes; it has that length from now on.
    ///
    /// The length comes first because a direct write that makes a file longer costs a transaction of the
    /// file system's journal each time.
    pub fn new(file: &'a File, size: u64) -> io::Result<Self> {
        file.set_len(size)?;
        let mut new = Self {
            file,
            direct: false,
        };
        new.direct = new.set_direct(true)?;
        Ok(new)
    }

    /// Switches the flag of the open file, and returns whether the file system took it.
    fn set_direct(&self, direct: bool) -> io::Result<bool> {
        let flags = rustix::fs::fcntl_getfl(self.file)?;
        let wanted = if direct {
            flags | OFlags::DIRECT
        } else {
            flags - OFlags::DIRECT
        };
        match rustix::fs::fcntl_setfl(self.file, wanted) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn leave_direct(&mut self) -> io::Result<()> {
        if self.direct {
            self.set_direct(false)?;
            self.direct = false;
        }
        Ok(())
    }
}

impl Write for DirectFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let whole = bytes.len() - bytes.len() % ALIGNMENT;
        if self.direct && whole > 0 && bytes.as_ptr().addr().is_multiple_of(ALIGNMENT) {
            match self.file.write(&bytes[..whole]) {
                // Devices with larger blocks, and file systems that take the flag but not the write.
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
                other => return other,
            }
        }
        self.leave_direct()?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for DirectFile<'_> {
    fn drop(&mut self) {
        // Whoever writes to the file next knows nothing of blocks; should this fail, they are told by
        // their own first write.
        let _ = self.leave_direct();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    #[test]
    fn whole_blocks_and_tails_come_back_as_they_were_written() {
        let mut buffer = vec![0; 5 * ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        for (position, byte) in buffer.iter_mut().enumerate() {
            *byte = (position % 251) as u8;
        }
        let aligned = &buffer[start..];
        for directory in [std::path::Path::new("."), &std::env::temp_dir()] {
            for pieces in [
                vec![3 * ALIGNMENT],
                vec![ALIGNMENT, 100],
                vec![2 * ALIGNMENT + 7],
                vec![10, ALIGNMENT],
            ] {
                let mut file = tempfile::tempfile_in(directory).unwrap();
                let size = pieces.iter().sum::<usize>();
                let mut direct = DirectFile::new(&file, size as u64).unwrap();
                let mut wanted = Vec::new();
                for length in pieces {
                    direct.write_all(&aligned[..length]).unwrap();
                    wanted.extend_from_slice(&aligned[..length]);
                }
                drop(direct);
                file.rewind().unwrap();
                let mut found = Vec::new();
                file.read_to_end(&mut found).unwrap();
                assert_eq!(found, wanted);
            }
        }
    }
}
