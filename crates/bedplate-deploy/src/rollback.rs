//! Rolling back: the previous proven deployment boots next. A second rollback swaps back.
//!
//! ```text
//! 1. record: intent Select, nothing staged any more
//! 2. boot partition: trials based on it go → loader.conf, one sector   COMMIT
//! 3. record: the default                                              or the next boot writes it
//! ```
//!
//! Invariant: no new block is needed anywhere: /var may have filled the disk, and that may be why.
//! Each deployment has its own /etc, so nothing is merged.

use bedplate_boot::render;
use bedplate_model::DeploymentSelector;
use bedplate_model::deployment_selector::FindDeploymentError;
use bedplate_model::record::{Deployment, DeploymentId, Intent, Record, State};
use bedplate_store::Store;

use crate::finalize;
use crate::machine::{Machine, MachineError};
use crate::settle::{self, Gate};

/// What a rollback will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollbackPlan {
    /// What boots now when nothing is done.
    pub from: DeploymentId,
    /// What will boot.
    pub to: Deployment,
    /// The staged deployment that is given up.
    pub discards: Option<DeploymentId>,
}

/// Why there is nothing to roll back to, or it did not work.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// The machine's state could not be read or changed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Only one proven deployment.
    #[error("there is no previous deployment to roll back to")]
    NoPrevious,
    /// The wanted deployment is not there.
    #[error(transparent)]
    Find(#[from] FindDeploymentError),
    /// The wanted deployment was never proven.
    #[error("deployment {id} is {state}, not proven")]
    NotProven {
        /// The deployment.
        id: DeploymentId,
        /// Its state.
        state: State,
    },
    /// It boots next anyway.
    #[error("deployment {0} boots next already")]
    Already(DeploymentId),
}

impl Machine<'_> {
    /// Plans a rollback to a deployment, or to the previous one.
    pub fn plan_rollback(
        &self,
        to: Option<&DeploymentSelector>,
    ) -> Result<RollbackPlan, RollbackError> {
        let record = self.record()?;
        let to = to.map(|to| to.find(&record)).transpose()?;
        plan(&record, to.map(|to| to.id))
    }

    /// Makes the previous proven deployment, or the given one, the next to boot.
    pub fn rollback(
        &self,
        store: &Store,
        to: Option<&DeploymentSelector>,
    ) -> Result<RollbackPlan, RollbackError> {
        let _lock = self.lock()?;
        let (mut record, to) = if let Some(to) = to {
            let (record, to) = self.settle_for::<RollbackError>(store, to)?;
            (record, Some(to.id))
        } else {
            let before = self.record()?;
            let record = self.settle(store, Gate::Unknown)?;
            if let Some(done) = self.completed(&before, &record) {
                return Ok(done);
            }
            (record, None)
        };
        let plan = plan(&record, to)?;
        record.deployments.retain(|d| d.state != State::Staged);
        record.intent = Some(Intent::Select {
            deployment: plan.to.id,
        });
        self.write(&record)?; // 1.
        self.change_boot(store, &record, |observed, settings| {
            render::plan_select(&record, observed, plan.to.id, settings)
        })?; // 2.
        self.settle(store, Gate::Unknown)?; // 3.
        Ok(plan)
    }

    /// Returns the rollback that ended in an error after its commit point, and that settling completed: asked for
    /// again, it must not swap back.
    fn completed(&self, before: &Record, record: &Record) -> Option<RollbackPlan> {
        let runs = self.booted().deployment;
        let Some(Intent::Select { deployment }) = before.intent else {
            return None;
        };
        if deployment == runs || record.default != deployment {
            return None;
        }
        Some(RollbackPlan {
            from: before.default,
            to: record.deployment(deployment)?.clone(),
            discards: None,
        })
    }
}

fn plan(record: &Record, to: Option<DeploymentId>) -> Result<RollbackPlan, RollbackError> {
    let to = match to {
        Some(id) => id,
        None => settle::previous(record).ok_or(RollbackError::NoPrevious)?,
    };
    let to = DeploymentSelector::from(to).find(record)?;
    if to.state != State::Proven {
        return Err(RollbackError::NotProven {
            id: to.id,
            state: to.state,
        });
    }
    if to.id == record.default {
        return Err(RollbackError::Already(to.id));
    }
    Ok(RollbackPlan {
        from: record.default,
        to: to.clone(),
        discards: finalize::staged(record).map(|staged| staged.id),
    })
}
