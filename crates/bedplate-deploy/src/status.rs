//! What a machine says about itself.
//!
//! Invariant: reading takes no lock and changes nothing. The summary in `/run/bedplate/status.json`, which
//! everyone may read, is written by the verbs that change something.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;

use bedplate_boot::loader::Loader;
use bedplate_boot::render::Observed;
use bedplate_model::record::{BadVersion, DeploymentId, EtcMode, Failure, Record, State};
use bedplate_model::{ImageName, RootDigest, Sha256};
use bedplate_sys::durable;
use bedplate_sys::space::Space;
use serde::{Deserialize, Serialize};

use crate::automatic::{Memory, Waits};
use crate::etc::Conflict;
use crate::finalize::{CONFLICTS_FILE, staged};
use crate::health::Report;
use crate::machine::{Booted, Machine, MachineError};
use crate::settle;

/// The name of the summary in the run directory.
const SUMMARY_FILE: &str = "status.json";

/// A machine's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What runs.
    pub booted: DeploymentId,
    /// What boots next, unless something is staged.
    pub default: DeploymentId,
    /// What waits for the shutdown.
    pub staged: Option<DeploymentId>,
    /// What a rollback goes to.
    pub previous: Option<DeploymentId>,
    /// Every deployment, the newest first.
    pub deployments: Vec<DeploymentStatus>,
    /// Versions that failed here.
    pub bad: Vec<BadVersion>,
    /// What the health gate found in this boot; `None` where it has not begun.
    pub health: Option<Report>,
    /// A change was interrupted; the next verb completes or undoes it.
    pub interrupted: bool,
    /// Which links of trust hold.
    pub trust: Trust,
    /// How full the root is, which has the store, every /etc and /var.
    pub root: Room,
    /// How full the boot partition is.
    pub boot: Room,
    /// Which loader starts what boots.
    #[serde(default)]
    pub loader: Loader,
    /// The hardware can restart a machine that hangs.
    pub watchdog: bool,
    /// /usr can be written until the next reboot.
    #[serde(default)]
    pub usr_writable: bool,
    /// What upgrading by itself waits for.
    #[serde(default)]
    pub waits: Option<Waits>,
}

/// How full a file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Bytes that can still be written.
    pub free: u64,
    /// All of its bytes.
    pub size: u64,
}

impl From<Space> for Room {
    fn from(space: Space) -> Self {
        Self {
            free: space.available,
            size: space.total,
        }
    }
}

/// One deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentStatus {
    /// Its place: 0 is the newest.
    pub index: usize,
    /// Its id.
    pub id: DeploymentId,
    /// Where it came from.
    pub image: ImageName,
    /// Its version.
    pub version: Option<String>,
    /// What a menu calls it.
    pub title: String,
    /// What the image is.
    pub root_digest: RootDigest,
    /// The manifest that it came with.
    pub manifest_digest: Option<Sha256>,
    /// Its kernel.
    pub kernel: String,
    /// Its kernel arguments, besides those that name the root.
    pub kargs: Vec<String>,
    /// Its state.
    pub state: State,
    /// Why.
    pub reason: Option<String>,
    /// Why its health gate was not passed, while it is on trial.
    pub failure: Option<Failure>,
    /// What boots when it fails.
    pub base: Option<DeploymentId>,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// It runs.
    pub booted: bool,
    /// It boots next, unless something is staged.
    pub default: bool,
    /// It stays until it is unpinned.
    pub pinned: bool,
    /// How it comes by its /etc.
    #[serde(default)]
    pub etc: EtcMode,
    /// How often the loader still tries it.
    pub tries_left: Option<u32>,
    /// What of its image's /etc gave way to local changes.
    pub etc_conflicts: Vec<Conflict>,
}

/// Which links of trust hold, from the command line to the bytes that are read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// What runs is the image that the record says.
    pub image: bool,
    /// How objects are checked: `require` (the kernel, at each read), `measured` (early boot, once), `off`.
    pub objects: String,
    /// Somebody's signature on the image was checked.
    pub signature: bool,
}

impl Machine<'_> {
    /// Reads the machine's state. The boot partition, and so the tries left, only root can read.
    pub fn status(&self) -> Result<Status, MachineError> {
        let record = self.record()?;
        let (observed, boot) = self.observe_boot()?;
        let rooms = (self.room()?.into(), boot.into());
        Ok(self.describe(&record, &observed, rooms))
    }

    /// Writes the summary that everyone may read.
    pub fn publish(&self) -> Result<Status, MachineError> {
        let status = self.status()?;
        let path = self.host.run.join(SUMMARY_FILE);
        let failed = |source| MachineError::Summary {
            path: path.clone(),
            source,
        };
        let mut text =
            serde_json::to_vec_pretty(&status).map_err(|error| failed(io::Error::other(error)))?;
        text.push(b'\n');
        durable::replace(&path, &text, 0o644).map_err(failed)?;
        // The umask took bits away.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(failed)?;
        Ok(status)
    }

    fn describe(&self, record: &Record, observed: &Observed, (root, boot): (Room, Room)) -> Status {
        let booted: &Booted = self.booted();
        let conflicts = |id| {
            let bytes = fs::read(self.home(id).join(CONFLICTS_FILE)).unwrap_or_default();
            serde_json::from_slice(&bytes).unwrap_or_default()
        };
        let runs = record.deployment(booted.deployment);
        Status {
            booted: booted.deployment,
            default: record.default,
            staged: staged(record).map(|staged| staged.id),
            previous: settle::previous(record),
            deployments: record
                .deployments
                .iter()
                .enumerate()
                .map(|(index, d)| DeploymentStatus {
                    index,
                    id: d.id,
                    image: d.image.clone(),
                    version: d.version.clone(),
                    title: d.title.clone(),
                    root_digest: d.root,
                    manifest_digest: d.manifest,
                    kernel: d.kernel.clone(),
                    kargs: d.kargs.clone(),
                    state: d.state,
                    reason: d.reason.clone(),
                    failure: d.failure.clone(),
                    base: d.base,
                    created: d.created,
                    booted: d.id == booted.deployment,
                    default: d.id == record.default,
                    pinned: d.pinned,
                    etc: d.etc,
                    tries_left: observed.tries_left(d.id),
                    etc_conflicts: conflicts(d.id),
                })
                .collect(),
            bad: record.bad.clone(),
            health: self.health(),
            interrupted: record.intent.is_some(),
            trust: Trust {
                image: runs.is_some_and(|d| booted.is(&d.root)),
                objects: booted.verity.clone(),
                signature: runs.is_some_and(|d| d.signature.is_some()),
            },
            root,
            boot,
            loader: observed.flavour,
            watchdog: self.host.watchdog.exists(),
            usr_writable: self.usr_is_writable(),
            waits: Memory::read(&self.host.root).waits,
        }
    }
}

/// Reads the summary that the last verb wrote: what those who are not root are told.
pub fn summary(host: &crate::host::Host) -> Result<Status, MachineError> {
    let path = host.run.join(SUMMARY_FILE);
    let failed = |source| MachineError::Summary {
        path: path.clone(),
        source,
    };
    let bytes = fs::read(&path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}
