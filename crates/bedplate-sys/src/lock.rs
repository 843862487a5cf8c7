//! Locks between processes and threads that a crash releases: `flock` on an open file description.
//!
//! Invariant: two [`Lock`]s of one file never share an open file description, so they exclude each
//! other within a process as well.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Waits for the lock on a file or directory, alone.
    pub fn exclusive(path: &Path) -> io::Result<Self> {
        Self::wait(path, FlockOperation::LockExclusive)
    }

    /// Waits for the lock on a file or directory, beside others who share it.
    pub fn shared(path: &Path) -> io::Result<Self> {
        Self::wait(path, FlockOperation::LockShared)
    }

    /// Takes the lock alone, or returns `None` where somebody holds it.
    pub fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn wait(path: &Path, operation: FlockOperation) -> io::Result<Self> {
        let file = open(path)?;
        loop {
            match rustix::fs::flock(&file, operation) {
                Err(Errno::INTR) => {}
                other => return Ok(other.map(|()| Self(file))?),
            }
        }
    }

    /// Returns the locked file itself.
    pub fn file(&self) -> &File {
        &self.0
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens what is locked; a pipe in its place is not waited for.
fn open(path: &Path) -> io::Result<File> {
    let flags =
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_excludes_others_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let held = Lock::exclusive(directory.path()).unwrap();
        assert!(Lock::try_exclusive(directory.path()).unwrap().is_none());
        drop(held);
        let shared = Lock::shared(directory.path()).unwrap();
        let beside = Lock::shared(directory.path()).unwrap();
        assert!(Lock::try_exclusive(directory.path()).unwrap().is_none());
        drop((shared, beside));
        assert!(Lock::try_exclusive(directory.path()).unwrap().is_some());
    }
}
