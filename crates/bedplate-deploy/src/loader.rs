//! The loader's own update, step by step: see [`loader_update`].
//!
//! ```text
//! what runs is proven ─→ its image's loader ─ next ─→ one copy on the boot partition, or none
//! ```
//!
//! Invariant: one call replaces one copy at most, and what is written was checked against the image.

use bedplate_boot::loader::Loader;
use bedplate_boot::loader_update::{self, Copy, PRIMARY, REMOVABLE, Started, Step, Version};
use bedplate_model::record::State;
use bedplate_store::{ReadStoreError, Store};
use bedplate_sys::mount::Access;

use crate::bootable::{self, BootableError};
use crate::machine::{Machine, MachineError};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoaderUpdate {
    /// Nothing was to be done.
    Current,
    /// This copy was replaced.
    Written {
        /// Its path on the boot partition.
        path: &'static str,
        /// What it is now.
        version: Version,
    },
    /// The second copy waits until the first has started the machine.
    Waits(Version),
}

/// Why the loader was not updated.
#[derive(Debug, thiserror::Error)]
pub enum UpdateLoaderError {
    /// The machine's state could not be read.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The image that runs cannot be read.
    #[error(transparent)]
    Store(#[from] ReadStoreError),
    /// The image's loader cannot be read.
    #[error(transparent)]
    Image(#[from] BootableError),
    /// A copy could not be read or written.
    #[error("cannot update the loader at {path}")]
    Copy {
        /// Its path on the boot partition.
        path: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl Machine<'_> {
    /// Lets the loader follow that of the image that runs, where it is proven, by one step.
    pub fn update_loader(
        &self,
        store: &Store,
        started: Option<&Started>,
    ) -> Result<LoaderUpdate, UpdateLoaderError> {
        let _lock = self.lock()?;
        let record = self.record()?;
        let runs = record.deployment(self.booted().deployment);
        let Some(runs) = runs.filter(|runs| runs.state == State::Proven) else {
            return Ok(LoaderUpdate::Current);
        };
        let tree = store.tree(&runs.root)?;
        let Some(image) = bootable::loader(store, &tree)? else {
            return Ok(LoaderUpdate::Current);
        };
        // What says no version of itself is not systemd-boot, whatever its name.
        let Some(version) = Version::of(&image.bytes) else {
            return Ok(LoaderUpdate::Current);
        };
        let mut boot = self
            .host
            .boot
            .open(Access::ReadWrite)
            .map_err(MachineError::OpenBoot)?;
        // GRUB lies outside of the boot partition, and stays what it was installed as.
        let flavour = Loader::of(&*boot.partition).map_err(MachineError::OpenBoot)?;
        if flavour == Loader::Grub {
            return Ok(LoaderUpdate::Current);
        }
        let look = |path| {
            let copy = boot.partition.read(path);
            let copy = copy.map_err(|source| UpdateLoaderError::Copy { path, source })?;
            Ok::<_, UpdateLoaderError>(Copy::look(copy.as_deref(), &image.bytes))
        };
        let (primary, removable) = (look(PRIMARY)?, look(REMOVABLE)?);
        match loader_update::next(&version, &primary, &removable, started) {
            Step::Nothing => Ok(LoaderUpdate::Current),
            Step::Waits => Ok(LoaderUpdate::Waits(version)),
            Step::Write(path) => {
                let failed = |source| UpdateLoaderError::Copy { path, source };
                self.host.writes.next("the loader").map_err(failed)?;
                boot.partition.write(path, &image.bytes).map_err(failed)?;
                Ok(LoaderUpdate::Written { path, version })
            }
        }
    }
}
