//! Why a machine is not updating, or not on what it was asked for: a pure decision.
//!
//! ```text
//! status, what the source has ─ reasons ─→ [Reason], the most pressing first; none: all is as asked
//! ```

use std::fmt;

use bedplate_model::record::{DeploymentId, State};
use bedplate_model::{ImageName, Sha256};
use serde::Serialize;

use crate::automatic::Waits;
use crate::status::{DeploymentStatus, Status};

/// What the source of upgrades has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody asked.
    Unasked,
    /// The name points at this manifest.
    Has(Sha256),
    /// It cannot be reached, or does not answer as it should.
    Silent(String),
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reason {
    /// The health gate of this boot was not passed.
    Unhealthy {
        /// Why.
        failure: String,
    },
    /// What runs is on trial.
    OnTrial {
        /// What runs.
        deployment: DeploymentId,
        /// How often it may start after this.
        tries_left: Option<u32>,
    },
    /// A change was interrupted.
    Interrupted,
    /// Something is staged, and waits for the shutdown.
    WaitsForReboot {
        /// What waits.
        deployment: DeploymentId,
    },
    /// The machine upgrades by itself, and waits for something.
    Waits {
        /// For what.
        waits: Waits,
    },
    /// Something is staged, and waits until what runs is proven.
    WaitsForProof {
        /// What waits.
        deployment: DeploymentId,
        /// What has to be proven.
        booted: DeploymentId,
    },
    /// Another deployment than the one that runs boots next.
    AnotherBootsNext {
        /// Which.
        deployment: DeploymentId,
    },
    /// Upgrades have no source.
    NoSource {
        /// The name that is in no registry.
        image: ImageName,
    },
    /// The source cannot be asked.
    SourceSilent {
        /// The source.
        image: ImageName,
        /// Why not.
        error: String,
    },
    /// What the source has failed here.
    Bad {
        /// The source.
        image: ImageName,
        /// What it has.
        manifest: Sha256,
        /// Why it failed.
        failure: String,
    },
    /// The source has something newer, and nobody has fetched it.
    Newer {
        /// The source.
        image: ImageName,
        /// What it has.
        manifest: Sha256,
    },
}

/// Lists what keeps a machine from what it was asked for.
pub fn reasons(status: &Status, source: &Source) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let booted = find(status, status.booted);
    if let Some(failure) = status
        .health
        .as_ref()
        .and_then(|health| health.failure.as_ref())
    {
        reasons.push(Reason::Unhealthy {
            failure: failure.reason.clone(),
        });
    }
    let on_trial = booted.is_some_and(|booted| booted.state == State::Trial);
    if on_trial {
        reasons.push(Reason::OnTrial {
            deployment: status.booted,
            tries_left: booted.and_then(|booted| booted.tries_left),
        });
    }
    if status.interrupted {
        reasons.push(Reason::Interrupted);
    }
    match status.staged {
        Some(deployment) if on_trial => reasons.push(Reason::WaitsForProof {
            deployment,
            booted: status.booted,
        }),
        Some(deployment) => reasons.push(Reason::WaitsForReboot { deployment }),
        None if status.default != status.booted => reasons.push(Reason::AnotherBootsNext {
            deployment: status.default,
        }),
        None => {}
    }
    // What is on trial was spoken of.
    if let Some(waits) = &status.waits
        && !matches!(waits, Waits::Trial { .. })
    {
        reasons.push(Reason::Waits {
            waits: waits.clone(),
        });
    }
    if let Some(asked) = asked(status) {
        reasons.extend(of_source(status, &asked.image, source));
    }
    reasons
}

/// Returns the deployment that says where upgrades come from.
pub fn asked(status: &Status) -> Option<&DeploymentStatus> {
    find(status, status.staged.unwrap_or(status.booted))
}

fn find(status: &Status, id: DeploymentId) -> Option<&DeploymentStatus> {
    status.deployments.iter().find(|one| one.id == id)
}

fn of_source(status: &Status, image: &ImageName, source: &Source) -> Option<Reason> {
    let image = image.clone();
    if image.is_local() {
        return Some(Reason::NoSource { image });
    }
    let manifest = match source {
        Source::Unasked => return None,
        Source::Silent(error) => {
            return Some(Reason::SourceSilent {
                image,
                error: error.clone(),
            });
        }
        Source::Has(manifest) => *manifest,
    };
    let is_it = |one: &DeploymentStatus| one.manifest_digest == Some(manifest);
    if find(status, status.booted).is_some_and(is_it) {
        return None;
    }
    if let Some(bad) = status.bad.iter().find(|bad| bad.manifest == manifest) {
        return Some(Reason::Bad {
            image,
            manifest,
            failure: bad.reason.clone(),
        });
    }
    // What is there already is spoken of above.
    let there = [status.staged, Some(status.default)];
    let there = there.into_iter().flatten();
    let known = there.filter_map(|id| find(status, id)).any(is_it);
    (!known).then_some(Reason::Newer { image, manifest })
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unhealthy { failure } => write!(f, "what runs is not healthy: {failure}"),
            Self::OnTrial {
                deployment,
                tries_left: Some(left),
            } => write!(
                f,
                "deployment {deployment} is on trial, and has {left} tries left after this boot"
            ),
            Self::OnTrial {
                deployment,
                tries_left: None,
            } => write!(f, "deployment {deployment} is on trial"),
            Self::Interrupted => write!(f, "a change was interrupted"),
            Self::WaitsForReboot { deployment } => {
                write!(
                    f,
                    "deployment {deployment} is staged, and waits for the reboot"
                )
            }
            Self::Waits { waits } => write!(f, "upgrading by itself waits {waits}"),
            Self::WaitsForProof { deployment, booted } => write!(
                f,
                "deployment {deployment} is staged, and waits until {booted}, which runs, is proven: \
                 there would be nothing to fall back to"
            ),
            Self::AnotherBootsNext { deployment } => {
                write!(
                    f,
                    "deployment {deployment} boots next, and is not what runs"
                )
            }
            Self::NoSource { image } => {
                write!(f, "{image} is in no registry: nothing to upgrade from")
            }
            Self::SourceSilent { image, error } => write!(f, "cannot look for {image}: {error}"),
            Self::Bad {
                image,
                manifest,
                failure,
            } => write!(
                f,
                "{image} is {manifest}, which failed on this machine: {failure}"
            ),
            Self::Newer { image, manifest } => {
                write!(f, "{image} is {manifest}, and nobody has fetched that")
            }
        }
    }
}

impl Reason {
    /// Returns what to do about it, where there is something to do.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Unhealthy { .. } => {
                Some("`bedplate status` has the details, `bedplate rollback` goes back")
            }
            Self::OnTrial { .. } | Self::WaitsForProof { .. } => Some(
                "its checks and its probation decide; `journalctl --unit bedplate-prove` follows them",
            ),
            Self::Interrupted => Some("the next boot or change completes or undoes it"),
            Self::WaitsForReboot { .. } | Self::AnotherBootsNext { .. } => {
                Some("`systemctl reboot`")
            }
            Self::NoSource { .. } => Some("`bedplate switch HOST/REPOSITORY:TAG` names one"),
            Self::SourceSilent { .. } | Self::Waits { .. } => None,
            Self::Bad { .. } => Some(
                "a newer version is staged by itself; `bedplate upgrade --retry` tries this one again",
            ),
            Self::Newer { .. } => Some("`bedplate upgrade`"),
        }
    }
}
