//! Kernel arguments: what boots next has them from its image, from this machine and from Bedplate; changing them
//! makes a new deployment of the same image.
//!
//! ```text
//! record ─ what is staged, else the default ─→ edit ─┬─ as it was                      nothing
//!                                                    ├─ as the default has them        what was staged goes
//!                                                    └─ otherwise                      staged, as an upgrade is
//! ```
//!
//! Invariant: other arguments go on trial as another version does, and give way like one; the image is not
//! blamed for them.

use bedplate_boot::kargs::ImageKargsError;
use bedplate_boot::local_kargs::{self, Origin};
pub use bedplate_boot::local_kargs::{Edit, EditError};
use bedplate_boot::render::{self, OwnArguments};
use bedplate_model::record::{Deployment, DeploymentId, LocalKargs, Record, State};
use bedplate_store::{ReadStoreError, RefTarget, Store};
use serde::Serialize;

use crate::bootable;
use crate::finalize::staged;
use crate::machine::{Machine, MachineError};
use crate::settle::Gate;
use crate::stage::{self, StageError, Staging};

/// The most bytes of a command line: the kernel cuts longer ones off, and the root's name is at the end.
const LINE_MAX: usize = 2047;

/// The kernel arguments of what boots next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kargs {
    /// The deployment.
    pub deployment: DeploymentId,
    /// Its state.
    pub state: State,
    /// Its arguments, in the order of its command line.
    pub arguments: Vec<Karg>,
}

/// One kernel argument.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Karg {
    /// The argument.
    pub argument: String,
    /// Where it comes from.
    pub origin: Source,
    /// The image's, which was deleted here: it is not on the command line.
    pub deleted: bool,
}

/// Where an argument comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// It names root and deployment, or may be overridden by the others.
    Bedplate,
    /// The image brings it.
    Image,
    /// It was set on this machine.
    Local,
}

/// What a change of arguments does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KargsChange {
    /// The arguments after it.
    pub after: Kargs,
    /// How it is done.
    pub outcome: Outcome,
}

/// How arguments are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// They are so already.
    Unchanged,
    /// A new deployment is staged.
    Staged {
        /// The deployment; a plan's is another one than what comes of it.
        deployment: DeploymentId,
        /// What was staged before.
        replaces: Option<DeploymentId>,
    },
    /// What was staged is given up: what boots without it has these arguments.
    Cancelled {
        /// What was staged.
        staged: DeploymentId,
    },
}

/// Why arguments were not shown or changed.
#[derive(Debug, thiserror::Error)]
pub enum KargsError {
    /// The machine's state could not be read or changed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The image cannot be read.
    #[error(transparent)]
    Store(#[from] ReadStoreError),
    /// The image's arguments cannot be read.
    #[error(transparent)]
    Image(#[from] ImageKargsError),
    /// They cannot be changed so.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The kernel would cut them off.
    #[error("the command line would have {0} bytes; the kernel takes {LINE_MAX}")]
    Long(usize),
    /// The new deployment could not be staged.
    #[error(transparent)]
    Stage(#[from] StageError),
}

impl Machine<'_> {
    /// Returns the kernel arguments of what boots next.
    pub fn kargs(&self, store: &Store) -> Result<Kargs, KargsError> {
        let record = self.record()?;
        let next = boots_next(&record);
        let image = bootable::image_kargs(store, &store.tree(&next.root)?)?;
        let local = stage::local_kargs(store, next);
        Ok(self.describe_kargs(&record, next, &image, &local))
    }

    /// Says what a change of arguments would do.
    pub fn plan_kargs(&self, store: &Store, edit: &Edit) -> Result<KargsChange, KargsError> {
        Ok(self.decide_kargs(store, &self.record()?, edit)?.change)
    }

    /// Changes the arguments of what boots next, by a new deployment of its image.
    pub fn change_kargs(&self, store: &Store, edit: &Edit) -> Result<KargsChange, KargsError> {
        let _lock = self.lock()?;
        let mut record = self.settle(store, Gate::Unknown)?;
        let decided = self.decide_kargs(store, &record, edit)?;
        match decided.change.outcome {
            Outcome::Unchanged => {}
            Outcome::Cancelled { .. } => {
                record.deployments.retain(|d| d.state != State::Staged);
                self.write(&record)?;
                self.sweep(store, &record)?;
            }
            Outcome::Staged { .. } => self.put_in_place(store, record, &decided.deployment)?,
        }
        Ok(decided.change)
    }

    fn decide_kargs(
        &self,
        store: &Store,
        record: &Record,
        edit: &Edit,
    ) -> Result<Decided, KargsError> {
        let next = boots_next(record);
        let image = bootable::image_kargs(store, &store.tree(&next.root)?)?;
        let before = stage::local_kargs(store, next);
        let local = local_kargs::edit(&image, &before, edit)?;
        let decided = |outcome, deployment: Deployment| Decided {
            change: KargsChange {
                after: self.describe_kargs(record, &deployment, &image, &local),
                outcome,
            },
            deployment,
        };
        let kargs = local_kargs::apply(&image, &local);
        if local == before && kargs == next.kargs {
            return Ok(decided(Outcome::Unchanged, next.clone()));
        }
        let default = stage::next(record);
        if let Some(staged) = staged(record)
            && (default.root, &default.image, &default.kargs)
                == (staged.root, &staged.image, &kargs)
        {
            let outcome = Outcome::Cancelled { staged: staged.id };
            return Ok(decided(outcome, default.clone()));
        }
        let staging = Staging {
            image: &next.image,
            target: &RefTarget {
                manifest: next.manifest,
                signature: next.signature.clone(),
                ..RefTarget::new(next.root, self.host.now)
            },
            retry: true, // it is what boots next anyway
        };
        let prepared = self.prepare(store, record, &staging, Some(local.clone()))?;
        let line = render::command_line(record, &prepared.deployment, &self.host.settings)
            .map_err(MachineError::from)?
            .to_string();
        if line.len() > LINE_MAX {
            return Err(KargsError::Long(line.len()));
        }
        let outcome = Outcome::Staged {
            deployment: prepared.deployment.id,
            replaces: staged(record).map(|staged| staged.id),
        };
        Ok(decided(outcome, prepared.deployment))
    }

    fn describe_kargs(
        &self,
        record: &Record,
        deployment: &Deployment,
        image: &[String],
        local: &LocalKargs,
    ) -> Kargs {
        let own = OwnArguments::new(record, deployment, &self.host.settings);
        let ours = |argument| Karg {
            argument,
            origin: Source::Bedplate,
            deleted: false,
        };
        let others = local_kargs::origins(image, local).map(|(argument, origin)| Karg {
            argument: argument.to_owned(),
            origin: match origin {
                Origin::Image | Origin::Deleted => Source::Image,
                Origin::Local => Source::Local,
            },
            deleted: origin == Origin::Deleted,
        });
        let first = own.first.into_iter().map(ours);
        Kargs {
            deployment: deployment.id,
            state: deployment.state,
            arguments: first
                .chain(others)
                .chain(own.last.into_iter().map(ours))
                .collect(),
        }
    }
}

/// A change, and the deployment that has the arguments then.
struct Decided {
    change: KargsChange,
    deployment: Deployment,
}

/// Returns what boots next.
fn boots_next(record: &Record) -> &Deployment {
    staged(record).unwrap_or_else(|| stage::next(record))
}
