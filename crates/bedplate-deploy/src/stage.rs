//! Staging: while the machine runs, an image of the store becomes a deployment that waits for the
//! shutdown. Nothing visible changes.
//!
//! ```text
//! image ─ kernel, initramfs, arguments, os-release ─→ Deployment ─→ held in the store ─→ record   COMMIT
//! ```
//!
//! Invariant: what the record calls staged can be finalized: its image is in the store and held there, its
//! boot files are readable, and there was room for them.

use std::collections::BTreeMap;

use bedplate_boot::loader::{ArgumentError, Loader};
use bedplate_boot::local_kargs;
use bedplate_model::human;
use bedplate_model::record::{Deployment, DeploymentId, LocalKargs, OtherFields, Record, State};
use bedplate_model::{ImageName, RootDigest, Tree};
use bedplate_store::diff::{Summary, SummaryError};
use bedplate_store::{ReadStoreError, RefTarget, Store};
use bedplate_sys::mount::Access;

use crate::bootable::{self, Bootable, BootableError};
use crate::etc::Conflict;
use crate::finalize::{MergeEtcError, staged};
use crate::machine::{Machine, MachineError};
use crate::settle::Gate;

/// What must stay free on the root: the merged /etc, names and directories.
const ROOT_MARGIN: u64 = 32 << 20;
/// What must stay free on the boot partition: entries, and files of others.
const BOOT_MARGIN: u64 = 1 << 20;

/// What is to be staged.
#[derive(Clone, Copy, Debug)]
pub struct Staging<'a> {
    /// Where the image came from, and where upgrades will be looked for.
    pub image: &'a ImageName,
    /// The image in the store.
    pub target: &'a RefTarget,
    /// Also a version that failed here before.
    pub retry: bool,
}

/// What an upgrade will do.
#[derive(Clone, Debug)]
pub struct UpgradePlan {
    /// What boots now when nothing is done.
    pub from: Deployment,
    /// The deployment as it will be staged.
    pub to: Deployment,
    /// The staged deployment that it replaces.
    pub replaces: Option<DeploymentId>,
    /// Packages, kernels, sizes.
    pub summary: Summary,
    /// What of the image's /etc gives way to local changes, as /etc is now.
    pub conflicts: Vec<Conflict>,
    /// Bytes that the boot partition needs for its kernel and initramfs.
    pub boot_bytes: u64,
}

/// What came of a wish to stage.
#[derive(Clone, Debug)]
pub enum Staged {
    /// The very image is there already, with the same name: nothing was to be done.
    Already(Box<Deployment>),
    /// It was staged.
    New(Box<Deployment>),
}

/// Why an image was not staged.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The machine's state could not be read or changed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The image cannot be read.
    #[error(transparent)]
    Store(#[from] ReadStoreError),
    /// The image cannot be booted.
    #[error("{image} cannot be booted")]
    NotBootable {
        /// Its name.
        image: Box<ImageName>,
        /// Why not.
        source: Box<BootableError>,
    },
    /// The version failed here before.
    #[error("{image} failed on this machine before: {reason}")]
    Bad {
        /// Its name.
        image: Box<ImageName>,
        /// Why it failed.
        reason: String,
    },
    /// There is no room.
    #[error("{place} has {} free, and {} are needed", human::bytes(*.free), human::bytes(*.needed))]
    Space {
        /// `the root` or `the boot partition`.
        place: &'static str,
        /// What is free.
        free: u64,
        /// What is needed.
        needed: u64,
    },
    /// This machine's loader would change a kernel argument.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// /etc could not be compared.
    #[error("cannot compare /etc")]
    Etc(#[source] Box<MergeEtcError>),
    /// The images could not be compared.
    #[error("cannot compare the two images")]
    Summary(#[source] Box<SummaryError>),
}

impl From<MergeEtcError> for StageError {
    fn from(error: MergeEtcError) -> Self {
        Self::Etc(Box::new(error))
    }
}

impl From<SummaryError> for StageError {
    fn from(error: SummaryError) -> Self {
        Self::Summary(Box::new(error))
    }
}

impl Machine<'_> {
    /// Says what staging an image would do, or `None` where it is there already.
    pub fn plan_stage(
        &self,
        store: &Store,
        staging: &Staging<'_>,
    ) -> Result<Option<UpgradePlan>, StageError> {
        let record = self.record()?;
        if already(&record, staging).is_some() {
            return Ok(None);
        }
        let prepared = self.prepare(store, &record, staging, None)?;
        let from = next(&record).clone();
        let old = store.tree(&from.root)?;
        let summary = bedplate_store::diff::summary(store, &old, &prepared.tree)?;
        let to = &prepared.deployment;
        let merged = match record.deployment(self.booted().deployment) {
            Some(base) => self.merge_etc(store, base, (to.root, to.etc), || {
                // Most often what runs is what boots next: a tree takes longer to read than to compare.
                let old = if base.root == from.root {
                    old
                } else {
                    store.tree(&base.root)?
                };
                Ok((old, prepared.tree))
            })?,
            None => None,
        };
        Ok(Some(UpgradePlan {
            from,
            to: prepared.deployment,
            replaces: staged(&record).map(|staged| staged.id),
            summary,
            conflicts: merged.map(|merged| merged.conflicts).unwrap_or_default(),
            boot_bytes: prepared.boot_bytes,
        }))
    }

    /// Stages an image: it becomes the next to boot when the machine shuts down.
    pub fn stage(&self, store: &Store, staging: &Staging<'_>) -> Result<Staged, StageError> {
        let _lock = self.lock()?;
        let record = self.settle(store, Gate::Unknown)?;
        if let Some(known) = already(&record, staging) {
            return Ok(Staged::Already(Box::new(known.clone())));
        }
        let prepared = self.prepare(store, &record, staging, None)?;
        self.put_in_place(store, record, &prepared.deployment)?;
        Ok(Staged::New(Box::new(prepared.deployment)))
    }

    /// Makes a prepared deployment the one that is staged. The caller holds the lock.
    pub(crate) fn put_in_place(
        &self,
        store: &Store,
        mut record: Record,
        deployment: &Deployment,
    ) -> Result<(), MachineError> {
        self.hold(store, deployment)?; // 1. gc leaves it alone …
        record.deployments.retain(|d| d.state != State::Staged);
        record.deployments.insert(0, deployment.clone());
        self.write(&record)?; // 2. … before it is staged …
        self.sweep(store, &record) // 3. … and what it replaces is given up.
    }

    /// Reads what boots the image and checks that it can be staged. Without `local` it has the arguments that are
    /// set on this machine now: those of what is staged, which it replaces, else of what runs.
    pub(crate) fn prepare(
        &self,
        store: &Store,
        record: &Record,
        staging: &Staging<'_>,
        local: Option<LocalKargs>,
    ) -> Result<Prepared, StageError> {
        let target = staging.target;
        let bad = record
            .bad
            .iter()
            .find(|bad| Some(bad.manifest) == target.manifest);
        if let Some(bad) = bad
            && !staging.retry
        {
            return Err(StageError::Bad {
                image: Box::new(staging.image.clone()),
                reason: bad.reason.clone(),
            });
        }
        let not_bootable = |source| StageError::NotBootable {
            image: Box::new(staging.image.clone()),
            source: Box::new(source),
        };
        let tree = store.tree(&target.root)?;
        let bootable = Bootable::read(store, &tree).map_err(not_bootable)?;
        let (loader, boot_bytes) = self.check_boot(&bootable)?;
        let base = record
            .deployment(self.booted().deployment)
            .unwrap_or_else(|| next(record));
        let local = local.unwrap_or_else(|| local_kargs(store, staged(record).unwrap_or(base)));
        let kargs = local_kargs::apply(&bootable.kargs, &local);
        // Found now, and not when the machine shuts down.
        kargs
            .iter()
            .try_for_each(|argument| loader.check_argument(argument))?;
        let deployment = Deployment {
            id: new_id(record),
            sequence: record.next_sequence(),
            image: staging.image.clone(),
            root: target.root,
            manifest: target.manifest,
            version: bootable.version,
            title: bootable.title,
            kernel: bootable.release,
            vmlinuz: bootable.vmlinuz.sha256,
            initramfs: bootable.initramfs.sha256,
            kargs,
            local_kargs: Some(local),
            state: State::Staged,
            reason: None,
            base: Some(base.id),
            failure: None,
            failed_units: Vec::new(),
            created: self.host.now,
            signature: target.signature.clone(),
            pinned: false,
            etc: bootable.config.over(&self.host.local).etc.mode,
            other: OtherFields::new(),
        };
        Ok(Prepared {
            deployment,
            boot_bytes,
            tree,
        })
    }

    /// Checks that there is room, and returns whose boot partition it is and what it needs.
    fn check_boot(&self, bootable: &Bootable) -> Result<(Loader, u64), StageError> {
        let boot = self
            .host
            .boot
            .open(Access::ReadOnly)
            .map_err(MachineError::OpenBoot)?;
        let loader = Loader::of(&*boot.partition).map_err(MachineError::OpenBoot)?;
        let there = boot
            .partition
            .list(bedplate_boot::FILES)
            .map_err(MachineError::OpenBoot)?;
        let needed: u64 = [&bootable.vmlinuz, &bootable.initramfs]
            .into_iter()
            .filter(|file| {
                let digest = &file.sha256.to_hex()[..32];
                !there.iter().any(|name| name.contains(digest))
            })
            .map(|file| file.bytes.len() as u64)
            .sum();
        let room = |place, free, needed| {
            if free < needed {
                return Err(StageError::Space {
                    place,
                    free,
                    needed,
                });
            }
            Ok(())
        };
        room(
            "the boot partition",
            boot.space.available,
            needed + BOOT_MARGIN,
        )?;
        let root = self.room()?;
        room("the root", root.available, ROOT_MARGIN)?;
        Ok((loader, needed))
    }
}

/// A deployment that can be staged.
pub(crate) struct Prepared {
    pub(crate) deployment: Deployment,
    boot_bytes: u64,
    /// Its image's.
    tree: Tree,
}

/// Returns what boots next when nothing is staged.
pub(crate) fn next(record: &Record) -> &Deployment {
    // A record's default is one of its deployments: its parser checks that.
    record
        .deployment(record.default)
        .unwrap_or(&record.deployments[0])
}

/// Finds out whether an image is what will boot next, or what is staged, already. Its arguments are right then:
/// they are this machine's, or what somebody went back to.
fn already<'r>(record: &'r Record, staging: &Staging<'_>) -> Option<&'r Deployment> {
    let newest = staged(record).unwrap_or_else(|| next(record));
    let same = newest.root == staging.target.root && newest.image == *staging.image;
    same.then_some(newest)
}

/// Makes an id that the record does not have.
fn new_id(record: &Record) -> DeploymentId {
    loop {
        let [a, b, c, d, ..] = *uuid::Uuid::new_v4().as_bytes();
        let id = DeploymentId([a, b, c, d]);
        if record.deployment(id).is_none() {
            return id;
        }
    }
}

/// Returns what of a deployment's arguments was set on this machine.
pub(crate) fn local_kargs(store: &Store, deployment: &Deployment) -> LocalKargs {
    if let Some(local) = &deployment.local_kargs {
        return local.clone();
    }
    let read = |root: &RootDigest| -> Option<Vec<String>> {
        bootable::image_kargs(store, &store.tree(root).ok()?).ok()
    };
    // Where the old image cannot be read any more, keeping an argument too many is the safe mistake.
    let mut of_image: BTreeMap<String, usize> = BTreeMap::new();
    for argument in read(&deployment.root).unwrap_or_default() {
        *of_image.entry(argument).or_default() += 1;
    }
    let local = |argument: &&String| match of_image.get_mut(*argument) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        Some(_) | None => true,
    };
    LocalKargs {
        append: deployment.kargs.iter().filter(local).cloned().collect(),
        delete: Vec::new(),
    }
}
