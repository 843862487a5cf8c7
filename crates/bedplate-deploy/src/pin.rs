//! Pinning: a deployment that stays, whatever comes after it, until it is unpinned.
//!
//! ```text
//! record   COMMIT ─→ (unpin) settle: what nothing needs any more is forgotten ─→ sweep
//! ```
//!
//! Invariant: a pin changes neither what boots next nor what a rollback goes to. What is on trial or bad can be
//! pinned, so that somebody can look at it; what is staged cannot, since the next upgrade takes its place.

use bedplate_model::DeploymentSelector;
use bedplate_model::deployment_selector::FindDeploymentError;
use bedplate_model::record::{Deployment, DeploymentId, State};
use bedplate_store::Store;

use crate::machine::{Machine, MachineError};
use crate::settle::Gate;

/// What pinning or unpinning did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The deployment, as it is now, or as it was last.
    pub deployment: Deployment,
    /// It is otherwise than before.
    pub changed: bool,
    /// Nothing but the pin had kept it: it was removed.
    pub removed: bool,
}

/// Why a deployment was not pinned or unpinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The machine's state could not be read or changed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// No deployment was meant.
    #[error(transparent)]
    Find(#[from] FindDeploymentError),
    /// It never booted.
    #[error("deployment {0} is staged: the next upgrade takes its place")]
    Staged(DeploymentId),
}

impl Machine<'_> {
    /// Keeps a deployment until it is unpinned.
    pub fn pin(&self, store: &Store, which: &DeploymentSelector) -> Result<Pinned, PinError> {
        self.set_pinned(store, which, true)
    }

    /// Lets a deployment go when nothing else needs it, which may be at once.
    pub fn unpin(&self, store: &Store, which: &DeploymentSelector) -> Result<Pinned, PinError> {
        self.set_pinned(store, which, false)
    }

    fn set_pinned(
        &self,
        store: &Store,
        which: &DeploymentSelector,
        pinned: bool,
    ) -> Result<Pinned, PinError> {
        let _lock = self.lock()?;
        let (mut record, mut deployment) = self.settle_for::<PinError>(store, which)?;
        if pinned && deployment.state == State::Staged {
            return Err(PinError::Staged(deployment.id));
        }
        let changed = deployment.pinned != pinned;
        deployment.pinned = pinned;
        if changed {
            if let Some(entry) = record.deployment_mut(deployment.id) {
                entry.pinned = pinned;
            }
            self.write(&record)?;
            record = self.settle(store, Gate::Unknown)?;
            self.sweep(store, &record)?;
        }
        Ok(Pinned {
            removed: record.deployment(deployment.id).is_none(),
            deployment,
            changed,
        })
    }
}
