//! The health gate: what must hold after a boot before a deployment counts as proven, and what happens when
//! it does not.
//!
//! ```text
//! bedplate-health.service   check    required.d, wanted.d              ─→ boot-complete.target, with the
//!                                                                         checks of others
//! bedplate-prove.service    watch    units, then the probation         ─→ prove ─→ green.d
//! OnFailure= of that        heal     reason → record ─→ red.d          ─→ restart, or stay
//! ```
//!
//! A restart uses up a try, and the last one is followed by the base: the loader counts, so that this also
//! holds for what never gets here. What is not on trial is never restarted: a machine whose every deployment
//! fails stays up, and says so.
//!
//! Invariant: the reason is in the record before the machine restarts, and needs no room there.

mod glob;
mod scripts;
mod units;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bedplate_model::record::{DeploymentId, Failure, Record, State};
use bedplate_store::Store;
use bedplate_sys::durable;
use serde::{Deserialize, Serialize};

pub use scripts::{Kind, Outcome};
pub use units::{Systemctl, Unit, Units};

use crate::config::{FailedUnits, HealthConfig};
use crate::machine::{Machine, MachineError};
use crate::settle::Gate;

/// What the gate found in this boot, in the run directory.
const REPORT_FILE: &str = "health.json";
/// How many names of units a reason has.
const NAMES_MAX: usize = 8;
/// How many units that failed are remembered with a deployment.
pub(crate) const KNOWN_MAX: usize = 32;

/// What the gate found in this boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The scripts that ran.
    pub scripts: Vec<Outcome>,
    /// Units that failed.
    pub failed_units: Vec<String>,
    /// Why the gate was not passed; `None` also while it is not known.
    pub failure: Option<Failure>,
}

/// What is to be done about a deployment that is not healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Healing {
    /// The machine restarts: another try, or the base once none is left.
    Restart,
    /// The machine stays up.
    Stay(StayReason),
}

/// Why a machine that is not healthy is not restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StayReason {
    /// The deployment was proven: the version is not what changed.
    Proven,
    /// There is nothing that could boot instead.
    Only,
}

/// Why health could not be looked after.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// The machine's state could not be read or changed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The scripts could not be listed.
    #[error("cannot list the health scripts")]
    Scripts(#[source] io::Error),
    /// The service manager did not say what its units do.
    #[error("cannot ask the service manager for its units")]
    Units(#[source] io::Error),
    /// What was found could not be read or written.
    #[error("cannot read or write {}", path.display())]
    Report {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Runs the checks that come before `boot-complete.target`; `told` hears of each script that ended.
pub fn check(
    run_directory: &Path,
    system: &Path,
    config: &HealthConfig,
    told: &mut dyn FnMut(Kind, &Outcome),
) -> Result<Report, HealthError> {
    let mut report = Report::default();
    'all: for kind in [Kind::Required, Kind::Wanted] {
        for outcome in run_all(system, kind, config)? {
            told(kind, &outcome);
            let failed = outcome.failure.is_some();
            if failed && kind == Kind::Required {
                report.failure = Some(blamed(&outcome));
            }
            report.scripts.push(outcome);
            if report.failure.is_some() {
                break 'all; // nobody asks for more, and a restart is due
            }
        }
    }
    write_report(run_directory, &report)?;
    Ok(report)
}

/// Runs hooks one after the other, until one does not pass; returns what came of those that ran.
pub fn hooks(system: &Path, kind: Kind, limit: u64) -> Result<Vec<Outcome>, HealthError> {
    let config = HealthConfig {
        script_timeout: limit,
        ..HealthConfig::default()
    };
    let mut all = Vec::new();
    for outcome in run_all(system, kind, &config)? {
        let stops = outcome.failure.is_some();
        all.push(outcome);
        if stops {
            break;
        }
    }
    Ok(all)
}

/// Tells scripts of the result; they decide nothing.
pub fn tell(
    system: &Path,
    kind: Kind,
    config: &HealthConfig,
    told: &mut dyn FnMut(Kind, &Outcome),
) -> Result<(), HealthError> {
    for outcome in run_all(system, kind, config)? {
        told(kind, &outcome);
    }
    Ok(())
}

/// Returns what comes of the scripts of a kind, each run when it is asked for.
fn run_all(
    system: &Path,
    kind: Kind,
    config: &HealthConfig,
) -> Result<impl Iterator<Item = Outcome> + use<>, HealthError> {
    let limit = Duration::from_secs(config.script_timeout);
    let scripts = scripts::find(system, kind).map_err(HealthError::Scripts)?;
    Ok(scripts
        .into_iter()
        .map(move |path| scripts::run(&path, limit)))
}

/// Watches what was booted until its probation is over, and returns why it is not healthy, where it is not.
///
/// `wait` lets some time pass, and returns how many seconds that were.
pub fn watch(
    machine: &Machine<'_>,
    units: &dyn Units,
    config: &HealthConfig,
    wait: &mut dyn FnMut() -> u64,
) -> Result<Report, HealthError> {
    let record = machine.record()?;
    let run_directory = &machine.host.run;
    let mut report = read_report(run_directory).unwrap_or_default();
    // Without a base there is nothing to compare with, and nothing to fall back to.
    let booted = machine.booted().deployment;
    let known = known_failures(&record, booted).filter(|_| trial(&record, booted));
    let before = units.list().map_err(HealthError::Units)?;
    let mut now = before.clone();
    let mut left = known.map_or(0, |_| config.probation);
    loop {
        report.failed_units = units::failures(&now).collect();
        report.failure = known.and_then(|known| judged(&before, &now, known, config));
        if left == 0 || report.failure.is_some() {
            break;
        }
        left = left.saturating_sub(wait());
        now = units.list().map_err(HealthError::Units)?;
    }
    write_report(run_directory, &report)?;
    Ok(report)
}

/// Returns what speaks against a version, from the units before its probation and now.
fn judged(
    before: &[Unit],
    now: &[Unit],
    known: &[String],
    config: &HealthConfig,
) -> Option<Failure> {
    let named = |what: &str, names: &[String]| {
        let shown = &names[..names.len().min(NAMES_MAX)];
        Failure {
            reason: format!("{what}: {}", shown.join(", ")),
            output: None,
        }
    };
    let failed = units::new_failures(now, known, config);
    if config.failed_units == FailedUnits::Fail && !failed.is_empty() {
        return Some(named("units that failed", &failed));
    }
    let loops = units::crash_loops(before, now, config);
    (!loops.is_empty()).then(|| named("services that crash again and again", &loops))
}

/// Returns whether a deployment is on trial, or will be as soon as its finalizing is completed.
fn trial(record: &Record, booted: DeploymentId) -> bool {
    let state = record.deployment(booted).map(|deployment| deployment.state);
    matches!(state, Some(State::Trial | State::Staged))
}

/// Returns the units that had failed when the base of a deployment was proven.
fn known_failures(record: &Record, booted: DeploymentId) -> Option<&[String]> {
    let base = record.deployment(booted)?.base?;
    Some(&record.deployment(base)?.failed_units)
}

/// Decides about a deployment that is not healthy.
pub fn decide(record: &Record, booted: DeploymentId) -> Healing {
    match record.deployment(booted) {
        Some(deployment) if trial(record, booted) => match deployment.base {
            Some(_) => Healing::Restart,
            None => Healing::Stay(StayReason::Only),
        },
        _ => Healing::Stay(StayReason::Proven),
    }
}

impl Machine<'_> {
    /// Writes down why what runs is not healthy, and says what is to be done.
    ///
    /// Where it cannot be written down, the decision is the same: a version that breaks the record's disk is
    /// no better for it.
    pub fn heal(&self, store: &Store, units: &dyn Units) -> Result<Healed, HealthError> {
        let report = read_report(&self.host.run).unwrap_or_default();
        let failure = match report.failure.clone() {
            Some(failure) => failure,
            None => by_others(units),
        };
        let healing = decide(&self.record()?, self.booted().deployment);
        let unwritten = self.blame(store, &failure).err();
        write_report(
            &self.host.run,
            &Report {
                failure: Some(failure.clone()),
                ..report
            },
        )?;
        Ok(Healed {
            failure,
            healing,
            unwritten,
        })
    }

    fn blame(&self, store: &Store, failure: &Failure) -> Result<(), MachineError> {
        let _lock = self.lock()?;
        let mut record = self.settle(store, Gate::Unknown)?;
        if let Some(deployment) = record.deployment_mut(self.booted().deployment)
            && deployment.state == State::Trial
        {
            deployment.failure = Some(failure.clone());
            self.write(&record)?;
        }
        Ok(())
    }

    /// Reads what the gate found in this boot; nothing where it has not begun.
    pub fn health(&self) -> Option<Report> {
        read_report(&self.host.run).ok()
    }
}

/// What healing did.
#[derive(Debug)]
pub struct Healed {
    /// Why the deployment is not healthy.
    pub failure: Failure,
    /// What is to be done.
    pub healing: Healing,
    /// Why the reason is not in the record, where it is not.
    pub unwritten: Option<MachineError>,
}

/// Blames the checks of others that `boot-complete.target` requires.
fn by_others(units: &dyn Units) -> Failure {
    let reason = match units.failed_checks() {
        Ok(names) if !names.is_empty() => {
            format!("checks that failed: {}", names.join(", "))
        }
        Ok(_) | Err(_) => "boot-complete.target was not reached".to_owned(),
    };
    Failure {
        reason,
        output: None,
    }
}

fn blamed(outcome: &Outcome) -> Failure {
    let failure = outcome.failure.as_deref().unwrap_or("failed");
    Failure {
        reason: format!("the health check {} {failure}", outcome.path.display()),
        output: Some(outcome.output.clone()).filter(|text| !text.is_empty()),
    }
}

fn read_report(directory: &Path) -> Result<Report, HealthError> {
    let path = directory.join(REPORT_FILE);
    fs::read(&path)
        .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        .map_err(|source| HealthError::Report { path, source })
}

fn write_report(directory: &Path, report: &Report) -> Result<(), HealthError> {
    let path = directory.join(REPORT_FILE);
    serde_json::to_vec_pretty(report)
        .map_err(io::Error::other)
        .and_then(|text| durable::replace(&path, &text, 0o600))
        .map_err(|source| HealthError::Report { path, source })
}

#[cfg(test)]
mod tests;
