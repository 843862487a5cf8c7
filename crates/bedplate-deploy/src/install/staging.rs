//! A directory that is gone when its owner is done, however that ends.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// A directory for what is being put together.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
}

impl Staging {
    /// Makes a directory in the first of these places that takes one.
    pub(crate) fn begin(places: &[&Path], name: &str) -> Result<Self, StagingError> {
        let mut refused = None;
        for place in places {
            let path = place.join(name);
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(source) => refused = Some(StagingError { path, source }),
            }
        }
        Err(refused.unwrap_or_else(|| StagingError {
            path: PathBuf::from(name),
            source: io::ErrorKind::NotFound.into(),
        }))
    }

    /// Returns where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A directory that stays costs space, and says by its name what it is.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Why there is no place to put something together.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the directory {}", path.display())]
pub struct StagingError {
    path: PathBuf,
    source: io::Error,
}
