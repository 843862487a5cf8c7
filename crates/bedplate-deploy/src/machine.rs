//! A machine: its record, what it booted, its boot partition; and settling them.
//!
//! ```text
//! Machine::open(&host) ─ status · plan · stage · rollback · …    an administrator's verbs
//!                      ─ finalize · prove                        the machine's own units'
//! every verb that writes:   lock → settle → its own work → settle
//! ```
//!
//! Invariant: whoever writes holds the lock; whoever reads needs none. A verb that was interrupted is
//! completed or undone by the next one, whichever that is.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use bedplate_boot::cmdline::BootRoot;
use bedplate_boot::partition::BootPartition;
use bedplate_boot::render::{self, ExecuteError, Observed, Plan, PlanError, Settings};
use bedplate_model::deployment_selector::FindDeploymentError;
use bedplate_model::record::{Deployment, DeploymentId, Record, State};
use bedplate_model::{Content, DeploymentSelector, RootDigest, Sha256, Tree, TreePath, layout};
use bedplate_store::{Pin, ReadStoreError, RefsError, Store};
use bedplate_sys::lock::Lock;
use bedplate_sys::mount::Access;
use bedplate_sys::space::Space;
use bedplate_sys::{durable, files, space};
use serde::Deserialize;

use crate::bootable::{Bootable, BootableError};
use crate::events;
use crate::health;
use crate::host::Host;
use crate::record_file::{self, ReadRecordError, WriteRecordError};
use crate::settle::{self, Gate, Seen, Step};

/// The file that says what was booted, in the run directory.
const BOOTED_FILE: &str = "booted.json";
/// The file whose lock a writing verb holds, in the run directory.
const LOCK_FILE: &str = "lock";
/// The start of the names by which deployments hold their images in the store.
const PIN_PREFIX: &str = "deployment-";
/// More steps than any machine needs: a decision that does not converge is a bug, not a hang.
const STEPS_MAX: usize = 64;

/// What early boot says about what it booted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Booted {
    /// The deployment.
    pub deployment: DeploymentId,
    /// The root digest, as the command line has it.
    pub root: String,
    /// How objects are checked: `require`, `measured` or `off`.
    pub verity: String,
}

impl Booted {
    /// Returns whether an image is the one that was booted.
    pub fn is(&self, root: &RootDigest) -> bool {
        self.root
            .parse::<BootRoot>()
            .is_ok_and(|booted| booted.image == root.image)
            || self
                .root
                .parse::<RootDigest>()
                .is_ok_and(|booted| booted.image == root.image)
    }
}

/// A machine that Bedplate runs.
#[derive(Debug)]
pub struct Machine<'a> {
    pub(crate) host: &'a Host,
    booted: Booted,
}

impl<'a> Machine<'a> {
    /// Opens the machine of a host.
    pub fn open(host: &'a Host) -> Result<Self, MachineError> {
        let path = host.run.join(BOOTED_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(MachineError::NotBooted(path));
            }
            Err(source) => return Err(MachineError::Booted { path, source }),
        };
        let booted = serde_json::from_slice(&bytes).map_err(|error| MachineError::Booted {
            path,
            source: error.into(),
        })?;
        Ok(Self { host, booted })
    }

    /// Returns what was booted.
    pub fn booted(&self) -> &Booted {
        &self.booted
    }

    /// Reads the record.
    pub fn record(&self) -> Result<Record, MachineError> {
        Ok(record_file::read(&self.host.root)?)
    }

    /// Proves the booted deployment: its health gate passed, with these units failed. Completes or undoes
    /// first what was interrupted, and removes what nothing needs any more.
    pub fn prove(&self, store: &Store, failed_units: &[String]) -> Result<Proved, MachineError> {
        let _lock = self.lock()?;
        let before = self.record()?;
        let mut record = self.settle(store, Gate::Passed)?;
        let known = &failed_units[..failed_units.len().min(health::KNOWN_MAX)];
        if let Some(deployment) = record.deployment_mut(self.booted.deployment)
            && deployment.failed_units != known
        {
            known.clone_into(&mut deployment.failed_units);
            self.write(&record)?;
        }
        self.sweep(store, &record)?;
        Ok(Proved { before, record })
    }

    /// Makes record and boot partition agree, step by step. The caller holds the lock.
    pub(crate) fn settle(&self, store: &Store, gate: Gate) -> Result<Record, MachineError> {
        let mut boot = self
            .host
            .boot
            .open(Access::ReadWrite)
            .map_err(MachineError::OpenBoot)?;
        for _ in 0..STEPS_MAX {
            let record = self.record()?;
            let observed = render::observe(&*boot.partition).map_err(MachineError::OpenBoot)?;
            let step = settle::next_step(&Seen {
                record: &record,
                booted: self.booted.deployment,
                boot: &observed,
                settings: &self.host.settings,
                keep: self.host.keep.deployments,
                gate,
            })?;
            match &step {
                Step::Settled => return Ok(record),
                Step::Arrange(plan) => execute(store, &record, plan, &mut *boot.partition)?,
                Step::CompleteTry(_)
                | Step::CompleteSelect(_)
                | Step::Undo
                | Step::MarkBad { .. }
                | Step::Prove(_)
                | Step::Forget(_) => {
                    self.write(&settle::recorded(&record, &step, self.host.now))?;
                }
            }
        }
        Err(MachineError::Unsettled)
    }

    /// Settles, and finds the deployment that a person named. The caller holds the lock.
    pub(crate) fn settle_for<E>(
        &self,
        store: &Store,
        which: &DeploymentSelector,
    ) -> Result<(Record, Deployment), E>
    where
        E: From<MachineError> + From<FindDeploymentError>,
    {
        // The places are those that `status` shows: settling may change them, and forget what was meant.
        let id = which.find(&self.record()?)?.id;
        let record = self.settle(store, Gate::Unknown)?;
        let found = DeploymentSelector::from(id).find(&record)?.clone();
        Ok((record, found))
    }

    /// Looks at the boot partition, plans a change of it, and carries the plan out.
    pub(crate) fn change_boot(
        &self,
        store: &Store,
        record: &Record,
        plan: impl FnOnce(&Observed, &Settings) -> Result<Plan, PlanError>,
    ) -> Result<(), MachineError> {
        let mut boot = self
            .host
            .boot
            .open(Access::ReadWrite)
            .map_err(MachineError::OpenBoot)?;
        let observed = render::observe(&*boot.partition).map_err(MachineError::OpenBoot)?;
        let plan = plan(&observed, &self.host.settings)?;
        execute(store, record, &plan, &mut *boot.partition)
    }

    /// Looks at the boot partition without changing it, and how much room it has.
    pub(crate) fn observe_boot(&self) -> Result<(Observed, Space), MachineError> {
        let boot = self
            .host
            .boot
            .open(Access::ReadOnly)
            .map_err(MachineError::OpenBoot)?;
        let observed = render::observe(&*boot.partition).map_err(MachineError::OpenBoot)?;
        Ok((observed, boot.space))
    }

    /// Returns how much room the root has.
    pub(crate) fn room(&self) -> Result<Space, MachineError> {
        File::open(&self.host.root)
            .and_then(space::space)
            .map_err(MachineError::Room)
    }

    /// Replaces the record.
    pub(crate) fn write(&self, record: &Record) -> Result<(), MachineError> {
        let refused = |source| WriteRecordError::Write {
            path: self.host.root.join(layout::RECORD),
            source,
        };
        self.host.writes.next("the record").map_err(refused)?;
        let before = self.record();
        record_file::write(&self.host.root, record)?;
        if let Ok(before) = before {
            self.log(&before, record);
        }
        Ok(())
    }

    /// Writes down what a change of the record was. No change waits for that: where it fails, the next event
    /// says that something is missing.
    fn log(&self, before: &Record, record: &Record) {
        let events = events::changes(before, record, &self.host.actor, self.host.now);
        if !events.is_empty() {
            let allowed = self.host.writes.next("the log");
            let _ = allowed.and_then(|()| events::append(&self.host.root, before, &events));
        }
    }

    /// Waits until no other verb writes.
    pub(crate) fn lock(&self) -> Result<Lock, MachineError> {
        let path = self.host.run.join(LOCK_FILE);
        File::options()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|_| Lock::exclusive(&path))
            .map_err(|source| MachineError::Lock { path, source })
    }

    /// Removes what belongs to no deployment of the record: directories and holds on images.
    pub(crate) fn sweep(&self, store: &Store, record: &Record) -> Result<(), MachineError> {
        let known = |text: &str| {
            text.parse()
                .is_ok_and(|id: DeploymentId| record.deployment(id).is_some())
        };
        for deployment in &record.deployments {
            self.hold(store, deployment)?;
        }
        let home = self.host.root.join(layout::DEPLOYMENTS);
        let failed = |source| MachineError::Sweep {
            path: home.clone(),
            source,
        };
        match files::open_root(&home) {
            Ok(directory) => {
                for entry in files::list(&directory).map_err(failed)? {
                    // Names that are no ids are not ours.
                    let text = entry.name.to_string_lossy();
                    if text.parse::<DeploymentId>().is_ok() && !known(&text) {
                        self.host.writes.next("an old deployment").map_err(failed)?;
                        files::remove_tree(&directory, &entry.name).map_err(failed)?;
                    }
                }
            }
            // Early boot makes it at the first boot.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        for pin in store.pins()? {
            if pin
                .name
                .strip_prefix(PIN_PREFIX)
                .is_some_and(|id| !known(id))
            {
                store.unpin(&pin.name)?;
            }
        }
        Ok(())
    }

    /// Keeps a deployment's image from garbage collection.
    pub(crate) fn hold(&self, store: &Store, deployment: &Deployment) -> Result<(), MachineError> {
        let refused = |source| MachineError::Hold {
            deployment: deployment.id,
            source,
        };
        let pin = Pin {
            name: format!("{PIN_PREFIX}{}", deployment.id),
            root: deployment.root,
            manifest: deployment.manifest,
            config: None,
        };
        if !store.pins()?.iter().any(|held| held.name == pin.name) {
            self.host
                .writes
                .next("the hold on an image")
                .map_err(refused)?;
            store.pin(&pin)?;
        }
        Ok(())
    }

    /// Returns the directory of what belongs to one deployment.
    pub(crate) fn home(&self, id: DeploymentId) -> PathBuf {
        self.host
            .root
            .join(layout::DEPLOYMENTS)
            .join(id.to_string())
    }

    /// Makes that directory, durably.
    pub(crate) fn make_home(&self, id: DeploymentId) -> io::Result<PathBuf> {
        let home = self.home(id);
        self.host.writes.next("the deployment's directory")?;
        fs::create_dir_all(&home)?;
        durable::sync_directory(&self.host.root.join(layout::DEPLOYMENTS))?;
        Ok(home)
    }
}

/// What proving changed.
#[derive(Clone, Debug)]
pub struct Proved {
    /// The record before.
    pub before: Record,
    /// The record now.
    pub record: Record,
}

impl Proved {
    /// Returns whether something was proven that was not before.
    pub fn is_new(&self) -> bool {
        let proven = |record: &Record| {
            let all = record.deployments.iter();
            all.filter(|d| d.state == State::Proven)
                .map(|d| d.id)
                .collect::<Vec<_>>()
        };
        let before = proven(&self.before);
        proven(&self.record).iter().any(|id| !before.contains(id))
    }
}

/// Carries a plan for the boot partition out; contents come from the images in the store.
pub(crate) fn execute(
    store: &Store,
    record: &Record,
    plan: &Plan,
    partition: &mut dyn BootPartition,
) -> Result<(), MachineError> {
    // Kernel and initramfs of one deployment are asked for one after the other: its image is read once.
    let read = RefCell::new(None);
    let contents = |wanted: &Sha256| {
        boot_file(store, record, wanted, &mut read.borrow_mut()).map_err(io::Error::other)
    };
    Ok(render::execute(plan, partition, &contents)?)
}

/// Finds a kernel or initramfs by its digest in the images of the record's deployments, or in the one that was
/// read last.
fn boot_file(
    store: &Store,
    record: &Record,
    wanted: &Sha256,
    last: &mut Option<Bootable>,
) -> Result<Vec<u8>, BootFileError> {
    let held = last.take().filter(|bootable| has(bootable, wanted));
    let bootable = if let Some(bootable) = held {
        bootable
    } else {
        let deployment = record
            .deployments
            .iter()
            .find(|d| d.vmlinuz == *wanted || d.initramfs == *wanted)
            .ok_or(BootFileError::Unknown(*wanted))?;
        Bootable::read(store, &store.tree(&deployment.root)?)
            .map_err(|error| BootFileError::Bootable(Box::new(error)))?
    };
    let file = if bootable.vmlinuz.sha256 == *wanted {
        &bootable.vmlinuz
    } else {
        &bootable.initramfs
    };
    let bytes = file.bytes.clone();
    *last = Some(bootable);
    Ok(bytes)
}

fn has(bootable: &Bootable, wanted: &Sha256) -> bool {
    [&bootable.vmlinuz, &bootable.initramfs]
        .into_iter()
        .any(|file| file.sha256 == *wanted)
}

/// Why a file for the boot partition could not be read from the store.
#[derive(Debug, thiserror::Error)]
enum BootFileError {
    #[error("no deployment has the boot file {0}")]
    Unknown(Sha256),
    #[error(transparent)]
    Store(#[from] ReadStoreError),
    #[error(transparent)]
    Bootable(Box<BootableError>),
}

/// Returns the /etc of an image: its tree and the node, or an empty one.
pub(crate) fn etc_of(mut tree: Tree) -> Result<(Tree, bedplate_model::NodeId), io::Error> {
    let name = bedplate_model::Name::new(b"etc").map_err(io::Error::other)?;
    let path = TreePath::from_iter([name.clone()]);
    if let Some(id) = tree.lookup(&path)
        && tree.entries(id).is_some()
    {
        return Ok((tree, id));
    }
    tree.remove(Tree::ROOT, b"etc");
    let metadata = bedplate_model::Metadata::root_owned(0o755);
    let node = bedplate_model::Node::new(metadata, Content::empty_directory());
    let id = tree
        .insert(Tree::ROOT, name, node)
        .map_err(io::Error::other)?;
    Ok((tree, id))
}

/// Why a machine's state could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Early boot of ours did not run.
    #[error("this system was not booted by bedplate: there is no {}", .0.display())]
    NotBooted(PathBuf),
    /// What early boot wrote cannot be read.
    #[error("cannot read {}", path.display())]
    Booted {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The record does not have what runs.
    #[error("the record does not have the booted deployment {0}")]
    UnknownBooted(DeploymentId),
    /// The lock cannot be taken.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The record cannot be read.
    #[error(transparent)]
    ReadRecord(#[from] ReadRecordError),
    /// The record cannot be written.
    #[error(transparent)]
    WriteRecord(#[from] WriteRecordError),
    /// The boot partition cannot be read.
    #[error("cannot read the boot partition")]
    OpenBoot(#[source] io::Error),
    /// There is no way from the record to boot entries.
    #[error("cannot plan what boots")]
    Plan(#[from] PlanError),
    /// The boot partition could not be changed.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    /// The store's holds could not be changed.
    #[error(transparent)]
    Refs(#[from] RefsError),
    /// A deployment's image could not be held.
    #[error("cannot hold the image of deployment {deployment}")]
    Hold {
        /// The deployment.
        deployment: DeploymentId,
        /// Why not.
        source: io::Error,
    },
    /// What is left of old deployments could not be removed.
    #[error("cannot remove what is left of old deployments below {}", path.display())]
    Sweep {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// How much room there is cannot be found out.
    #[error("cannot ask how much room the root has")]
    Room(#[source] io::Error),
    /// The summary of the state cannot be read or written.
    #[error("cannot read or write the summary {}", path.display())]
    Summary {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The decisions go round in circles.
    #[error("the machine does not settle (a bug)")]
    Unsettled,
}
