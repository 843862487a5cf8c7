//! The host: what a verb takes from the machine that it works on, as a value.
//!
//! ```text
//! on a machine   root /sysroot, run /run/bedplate, the ESP of the root's own disk
//! in tests       directories, a fixed clock, and a hook that cuts the power
//! ```
//!
//! Invariant: nothing in this crate's machine verbs reads the clock, the environment or a fixed path;
//! it all comes from here.

use std::io;
use std::path::{Path, PathBuf};

use bedplate_boot::cmdline::{BootArguments, Cmdline};
use bedplate_boot::partition::BootPartition;
use bedplate_boot::render::Settings;
use bedplate_model::layout;
use bedplate_sys::mount::{self, Access};
use bedplate_sys::namespace;
use bedplate_sys::space::Space;

use crate::config::{Config, HealthConfig, KeepConfig, LocalConfig};
use crate::esp::RootDisk;
use crate::events::Actor;

/// The first watchdog, in sysfs.
const WATCHDOG: &str = "/sys/class/watchdog/watchdog0";

/// What a verb takes from the machine that it works on.
pub struct Host {
    /// The physical root.
    pub root: PathBuf,
    /// The directory of what lasts until the next boot: `/run/bedplate`.
    pub run: PathBuf,
    /// The running system's root.
    pub system: PathBuf,
    /// Who changes it.
    pub actor: Actor,
    /// What time it is, in seconds since 1970.
    pub now: i64,
    /// What is the same for all of the machine's boot entries.
    pub settings: Settings,
    /// What must hold before a deployment counts as proven.
    pub health: HealthConfig,
    /// What the machine keeps of what it had.
    pub keep: KeepConfig,
    /// What the machine's own file sets, over what any image sets.
    pub local: LocalConfig,
    /// How to reach the boot partition.
    pub boot: Box<dyn BootAccess>,
    /// What is there where the hardware has a watchdog.
    pub watchdog: PathBuf,
    /// Who is told of each write to the root before it happens, and may refuse it.
    pub writes: Box<dyn Writes>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("root", &self.root)
            .field("run", &self.run)
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

/// A way to the boot partition.
pub trait BootAccess {
    /// Opens it, for as long as the returned value lives.
    fn open(&self, access: Access) -> io::Result<OpenBoot>;
}

/// A boot partition that is open.
pub struct OpenBoot {
    /// Its files.
    pub partition: Box<dyn BootPartition>,
    /// Its size, and the bytes that can still be written to it.
    pub space: Space,
}

impl std::fmt::Debug for OpenBoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenBoot")
            .field("space", &self.space)
            .finish_non_exhaustive()
    }
}

/// Who is told of writes. A cut of the power between two of them is what crash tests are made of.
pub trait Writes {
    /// The next write begins; an error keeps it from happening.
    fn next(&self, what: &'static str) -> io::Result<()>;
}

/// Nobody who wants to know.
impl Writes for () {
    fn next(&self, _: &'static str) -> io::Result<()> {
        Ok(())
    }
}

impl Host {
    /// Returns the host that this program runs on.
    pub fn this_machine(now: i64, actor: Actor, config: &Config) -> Self {
        Self {
            root: layout::SYSROOT.into(),
            run: Path::new(layout::BOOTED)
                .parent()
                .map_or_else(PathBuf::new, Path::to_owned),
            system: "/".into(),
            actor,
            now,
            settings: Settings {
                tries: config.health.tries,
                unsealed_allowed: unsealed_allowed(Path::new("/proc/cmdline")),
                ..Settings::default()
            },
            health: config.health.clone(),
            keep: config.keep.clone(),
            local: config.local.clone(),
            boot: Box::new(RootDisk::of(Path::new(layout::SYSROOT))),
            watchdog: WATCHDOG.into(),
            writes: Box::new(()),
        }
    }
}

/// Returns whether this boot permits unsealed objects: what was chosen when the machine was installed
/// stays so.
fn unsealed_allowed(cmdline: &Path) -> bool {
    std::fs::read_to_string(cmdline)
        .ok()
        .and_then(|text| BootArguments::of(&Cmdline::parse(&text)).ok())
        .is_some_and(|arguments| arguments.image.unsealed_allowed)
}

/// Makes the physical root writable for this program alone.
///
/// Must be called before the program starts threads, and as root.
pub fn enter_root(root: &Path) -> Result<(), EnterRootError> {
    let failed = |source| EnterRootError {
        root: root.to_owned(),
        source,
    };
    namespace::enter_private_mounts().map_err(failed)?;
    mount::set_access(root, Access::ReadWrite).map_err(failed)
}

/// Why the physical root cannot be written to.
#[derive(Debug, thiserror::Error)]
#[error("cannot make {} writable for this program", root.display())]
pub struct EnterRootError {
    root: PathBuf,
    source: io::Error,
}
