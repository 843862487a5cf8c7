//! A /usr that can be written until the machine restarts: for looking into what is wrong, and for trying what may
//! become an image.
//!
//! ```text
//! image's usr ─┐
//! objects      ├─ overlay ─→ /usr       of its own: the root's overlay has no room for another one above it
//! a directory  ┘
//! ```
//!
//! Invariant: nothing of the store changes, and nothing of what was written is there after a reboot.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use bedplate_model::{Tree, TreePath};
use bedplate_store::{ReadStoreError, Store};
use bedplate_sys::files;
use bedplate_sys::mount::{self, ImageMount, Layer, MountImageError, Verity};
use rustix::fs::OFlags;

use crate::etc::apply::set_attributes;
use crate::machine::{Machine, MachineError};

/// What is laid over.
pub const USR: &str = "usr";
/// Where what is written goes, below the running system's root: removed at the next boot by a line in
/// `tmpfiles.d`, and by the next overlay.
pub const PLACE: &str = "var/tmp/bedplate-usr-overlay";

/// Why /usr stays read-only.
#[derive(Debug, thiserror::Error)]
pub enum UsrOverlayError {
    /// The machine's state could not be read.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// It can be written already.
    #[error("{} can be written already, until the next reboot", .0.display())]
    Already(PathBuf),
    /// The image that runs cannot be read.
    #[error(transparent)]
    Store(#[from] ReadStoreError),
    /// There is no place for what is written.
    #[error("cannot make {}", path.display())]
    Place {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The overlay could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountImageError),
}

impl Machine<'_> {
    /// Returns whether somebody made /usr writable in this boot.
    pub fn usr_is_writable(&self) -> bool {
        mount::is_mount_point(&self.host.system.join(USR)).unwrap_or(false)
    }

    /// Makes /usr writable until the machine restarts. The caller is among the mounts that everybody sees.
    pub fn overlay_usr(&self, store: &Store) -> Result<(), UsrOverlayError> {
        let at = self.host.system.join(USR);
        if self.usr_is_writable() {
            return Err(UsrOverlayError::Already(at));
        }
        let record = self.record()?;
        let booted = self.booted();
        let runs = record
            .deployment(booted.deployment)
            .ok_or(MachineError::UnknownBooted(booted.deployment))?;
        let place = self.host.system.join(PLACE);
        let [layer, work, scratch] = ["layer", "work", "erofs"].map(|name| place.join(name));
        let tree = store.tree(&runs.root)?;
        make(&place, &[&layer, &work, &scratch], &tree).map_err(|source| {
            UsrOverlayError::Place {
                path: place.clone(),
                source,
            }
        })?;
        let image: File = store.image_file(&runs.root)?;
        let how = ImageMount {
            verity: if booted.verity == "require" {
                Verity::Require
            } else {
                Verity::Off
            },
        };
        let layer = Layer {
            upper: &layer,
            work: &work,
        };
        let objects = store.path().join("objects");
        Ok(mount::mount_layer(
            &image,
            &objects,
            Path::new(USR),
            &layer,
            &scratch,
            &at,
            &how,
        )?)
    }
}

/// Makes the directories, the first of them with the attributes that /usr shows.
fn make(place: &Path, directories: &[&Path], tree: &Tree) -> io::Result<()> {
    if let (Some(parent), Some(name)) = (place.parent(), place.file_name()) {
        // Of an earlier boot.
        files::remove_tree(&files::open_root(parent)?, name)?;
    }
    fs::DirBuilder::new().mode(0o700).create(place)?;
    for directory in directories {
        fs::DirBuilder::new().mode(0o755).create(directory)?;
    }
    let usr = TreePath::try_from(USR)
        .ok()
        .and_then(|path| tree.lookup(&path));
    if let (Some(usr), Some(first)) = (usr, directories.first()) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let first = rustix::fs::open(*first, flags, rustix::fs::Mode::empty())?;
        use std::os::fd::AsFd as _;
        set_attributes(first.as_fd(), &tree.node(usr).metadata)?;
    }
    Ok(())
}
