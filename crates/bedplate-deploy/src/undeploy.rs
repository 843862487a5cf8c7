//! Undeploying: a deployment goes, with its /etc, its boot entry and its hold on its image.
//!
//! ```text
//! 1. record without it                       COMMIT
//! 2. entry, then boot files                  or the next verb or boot removes them
//! 3. its directory and its hold              or the next boot
//! ```
//!
//! Invariant: what runs, what boots next and what that falls back to never go, so that one proven deployment is
//! left beside a trial. What a rollback would go to may go: then what boots next is proven itself.

use bedplate_model::DeploymentSelector;
use bedplate_model::deployment_selector::FindDeploymentError;
use bedplate_model::record::{Deployment, DeploymentId, Record, State};
use bedplate_store::Store;

use crate::machine::{Machine, MachineError};
use crate::settle::{self, Gate};

/// What undeploying will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UndeployPlan {
    /// The deployment that goes.
    pub deployment: Deployment,
    /// It is staged: an upgrade or another change is cancelled.
    pub cancels: bool,
    /// There is nothing to roll back to without it.
    pub last_previous: bool,
}

/// Why a deployment stays.
#[derive(Debug, thiserror::Error)]
pub enum UndeployError {
    /// The machine's state could not be read or changed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// No deployment was meant.
    #[error(transparent)]
    Find(#[from] FindDeploymentError),
    /// It runs.
    #[error("deployment {0} runs")]
    Booted(DeploymentId),
    /// It boots next.
    #[error("deployment {0} boots next")]
    Default(DeploymentId),
    /// It boots when a trial fails.
    #[error("deployment {id} boots when {trial}, which is on trial, fails")]
    FallBack {
        /// The deployment.
        id: DeploymentId,
        /// What is on trial.
        trial: DeploymentId,
    },
    /// Somebody said that it stays.
    #[error("deployment {0} is pinned")]
    Pinned(DeploymentId),
}

impl Machine<'_> {
    /// Says what undeploying would do.
    pub fn plan_undeploy(&self, which: &DeploymentSelector) -> Result<UndeployPlan, UndeployError> {
        let record = self.record()?;
        plan(&record, self.booted().deployment, which.find(&record)?)
    }

    /// Removes a deployment.
    pub fn undeploy(
        &self,
        store: &Store,
        which: &DeploymentSelector,
    ) -> Result<UndeployPlan, UndeployError> {
        let _lock = self.lock()?;
        let (mut record, deployment) = self.settle_for::<UndeployError>(store, which)?;
        let plan = plan(&record, self.booted().deployment, &deployment)?;
        record.deployments.retain(|d| d.id != deployment.id);
        self.write(&record)?; // 1.
        let record = self.settle(store, Gate::Unknown)?; // 2.
        self.sweep(store, &record)?; // 3.
        Ok(plan)
    }
}

fn plan(
    record: &Record,
    booted: DeploymentId,
    deployment: &Deployment,
) -> Result<UndeployPlan, UndeployError> {
    let id = deployment.id;
    if id == booted {
        return Err(UndeployError::Booted(id));
    }
    if id == record.default {
        return Err(UndeployError::Default(id));
    }
    let relies = |d: &&Deployment| d.state == State::Trial && d.base == Some(id);
    if let Some(trial) = record.deployments.iter().find(relies) {
        return Err(UndeployError::FallBack {
            id,
            trial: trial.id,
        });
    }
    if deployment.pinned {
        return Err(UndeployError::Pinned(id));
    }
    let mut without = record.clone();
    without.deployments.retain(|d| d.id != id);
    Ok(UndeployPlan {
        deployment: deployment.clone(),
        cancels: deployment.state == State::Staged,
        last_previous: settle::previous(record).is_some() && settle::previous(&without).is_none(),
    })
}
