//! A directory that is gone when its owner is done.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// How many runs of one process number may have left theirs, until there is no name any more.
const NAMES: u32 = 1000;

/// A directory for what one run makes.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes a directory in a place.
    pub(crate) fn begin(place: &Path) -> io::Result<Self> {
        // QEMU is started in it, and must find it from there.
        let place = std::path::absolute(place)?;
        for number in 0..NAMES {
            let name = format!(".bedplate-vm-{}-{number}", std::process::id());
            let path = place.join(name);
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                // One that was killed left it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Returns where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of a file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays costs space, and says by its name what it is.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_have_two_directories_and_both_are_gone_afterwards() {
        let place = tempfile::tempdir().unwrap();
        let one = Scratch::begin(place.path()).unwrap();
        let other = Scratch::begin(place.path()).unwrap();
        assert_ne!(one.path(), other.path());
        fs::write(one.file("disk"), "some").unwrap();
        drop((one, other));
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
