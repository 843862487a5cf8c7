//! What to do next so that record and boot partition agree: a pure decision.
//!
//! ```text
//! record, booted id, boot partition ─→ next_step ─→ Step ─→ act ─→ look again … until Settled
//!
//! an intent is open      the boot partition says whether it was committed: complete, or undo
//! a trial is over        no tries left, and another one booted: bad, and remembered
//! the gate passed        proven: the record first, then the entry, then loader.conf
//! otherwise              the boot partition becomes what the record says; superseded ones go
//! ```
//!
//! Invariant: each step leaves a machine that boots the old system or the new one; a cut after any of
//! them, and deciding again, ends in the same place. Tries left are the loader's: no step resets them.

use bedplate_boot::entry::EntryName;
use bedplate_boot::render::{self, Observed, Plan, PlanError, Settings};
use bedplate_model::RootDigest;
use bedplate_model::record::{
    BadVersion, Deployment, DeploymentId, Failure, Intent, Record, State,
};

/// How many bad versions are remembered: the oldest is forgotten then.
const BAD_KEPT: usize = 16;
/// How many of them keep what their checks printed.
const OUTPUTS_KEPT: usize = 4;

/// Whether the booted deployment's health gate passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It did: `boot-complete.target` was reached.
    Passed,
    /// Nobody knows yet.
    Unknown,
}

/// Everything that a decision is made from.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// The record.
    pub record: &'a Record,
    /// Which deployment runs.
    pub booted: DeploymentId,
    /// The boot partition.
    pub boot: &'a Observed,
    /// What is the same for all entries.
    pub settings: &'a Settings,
    /// How many proven deployments are kept.
    pub keep: usize,
    /// Whether what runs is healthy.
    pub gate: Gate,
}

/// One step towards agreement. All change the record alone, but `Arrange`, which does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The deployment is on trial: its finalizing had been committed.
    CompleteTry(DeploymentId),
    /// The deployment is the default: its selection had been committed.
    CompleteSelect(DeploymentId),
    /// The open intent is dropped; a deployment that was to be tried stays staged.
    Undo,
    /// The deployment failed its trial.
    MarkBad {
        /// The deployment.
        deployment: DeploymentId,
        /// Why.
        failure: Failure,
    },
    /// The deployment passed its gate.
    Prove(DeploymentId),
    /// These deployments are no longer needed.
    Forget(Vec<DeploymentId>),
    /// The boot partition becomes what the record says.
    Arrange(Plan),
    /// Nothing is to be done.
    Settled,
}

/// Decides what to do next.
pub fn next_step(seen: &Seen<'_>) -> Result<Step, PlanError> {
    let Seen {
        record,
        booted,
        boot,
        settings,
        keep,
        gate,
    } = *seen;
    if let Some(intent) = &record.intent {
        return Ok(finish(record, booted, boot, intent));
    }
    let state = record.deployment(booted).map(|deployment| deployment.state);
    if state == Some(State::Staged) {
        return Ok(Step::CompleteTry(booted)); // it runs, so it is on trial, whatever was lost
    }
    let mut deployments = record.deployments.iter();
    if let Some(step) = deployments.find_map(|deployment| failed(deployment, booted, boot)) {
        return Ok(step);
    }
    if gate == Gate::Passed && state == Some(State::Trial) {
        return Ok(Step::Prove(booted));
    }
    let plan = render::render(record, boot, settings)?;
    if !plan.is_empty() {
        return Ok(Step::Arrange(plan));
    }
    let superseded = superseded(record, booted, keep);
    Ok(if superseded.is_empty() {
        Step::Settled
    } else {
        Step::Forget(superseded)
    })
}

/// Completes or undoes an intent.
fn finish(record: &Record, booted: DeploymentId, boot: &Observed, intent: &Intent) -> Step {
    let fallback = boot.loader.map(|conf| conf.default);
    match intent {
        Intent::Try { deployment } => {
            let base = record
                .deployment(*deployment)
                .and_then(|wanted| wanted.base);
            let tried = |base| {
                boot.entries_of(*deployment)
                    .any(|name| name.base == Some(base))
            };
            let committed = base.is_some_and(|base| fallback == Some(base) && tried(base));
            if booted == *deployment || committed {
                Step::CompleteTry(*deployment)
            } else {
                Step::Undo
            }
        }
        Intent::Select { deployment } if fallback == Some(*deployment) => {
            Step::CompleteSelect(*deployment)
        }
        Intent::Select { .. } => Step::Undo,
    }
}

/// Says whether a trial is over.
fn failed(deployment: &Deployment, booted: DeploymentId, boot: &Observed) -> Option<Step> {
    // What runs may be on its last try. What has no base is the only one, and has no other to give way to.
    if deployment.state != State::Trial || deployment.id == booted || deployment.base.is_none() {
        return None;
    }
    let entry = boot
        .entries_of(deployment.id)
        .find(|name| name.base.is_some());
    let unknown = match entry {
        Some(name) if name.is_hopeful() => return None,
        Some(EntryName { tries, .. }) => {
            let done = tries.and_then(|tries| tries.done).unwrap_or(0);
            format!("none of {done} boots reached the health gate")
        }
        None => "its boot entry was lost while the loader counted its tries".to_owned(),
    };
    let failure = deployment.failure.clone().unwrap_or(Failure {
        reason: unknown,
        output: None,
    });
    Some(Step::MarkBad {
        deployment: deployment.id,
        failure,
    })
}

/// Returns the deployment that `loader.conf` names: what boots when no trial has tries left.
pub fn fallback(record: &Record) -> DeploymentId {
    match record.deployment(record.default) {
        Some(Deployment {
            state: State::Trial,
            base: Some(base),
            ..
        }) => *base,
        _ => record.default,
    }
}

/// Returns the proven deployment that a rollback goes to.
pub fn previous(record: &Record) -> Option<DeploymentId> {
    let proven = |id: &DeploymentId| {
        *id != record.default
            && record
                .deployment(*id)
                .is_some_and(|d| d.state == State::Proven)
    };
    let base = record.deployment(record.default).and_then(|d| d.base);
    base.filter(proven).or_else(|| {
        let others = record.deployments.iter().filter(|d| proven(&d.id));
        others.max_by_key(|d| d.sequence).map(|d| d.id)
    })
}

/// Lists the deployments that nothing needs any more.
///
/// Kept are: what runs, the default, what a rollback goes to, what is pinned, staged or on trial, every proven
/// one while another is on trial, and a bad one while it is the newest, so that `status` can say why; and of the
/// other proven ones the newest, until there are `keep`.
pub fn superseded(record: &Record, booted: DeploymentId, keep: usize) -> Vec<DeploymentId> {
    let trial = record.deployments.iter().any(|d| d.state == State::Trial);
    let newest = record.deployments.iter().map(|d| d.sequence).max();
    let kept = [Some(booted), Some(record.default), previous(record)];
    let goes = |d: &&Deployment| {
        let needed = match d.state {
            _ if d.pinned => true,
            State::Staged | State::Trial => true,
            State::Proven => trial,
            State::Bad => Some(d.sequence) == newest,
        };
        !needed && !kept.contains(&Some(d.id))
    };
    let proven = |d: &&Deployment| d.state == State::Proven;
    let all = || record.deployments.iter();
    let staying = all().filter(|d| !goes(d)).filter(proven).count();
    let mut spare: Vec<&Deployment> = all().filter(goes).filter(proven).collect();
    spare.sort_by_key(|d| std::cmp::Reverse(d.sequence));
    spare.truncate(keep.saturating_sub(staying));
    let is_spared = |d: &&Deployment| spare.iter().any(|one| one.id == d.id);
    all()
        .filter(|d| goes(d) && !is_spared(d))
        .map(|d| d.id)
        .collect()
}

/// Returns the record after a step; steps that touch the boot partition alone leave it as it is.
pub fn recorded(record: &Record, step: &Step, now: i64) -> Record {
    let mut new = record.clone();
    match step {
        Step::CompleteTry(id) => {
            new.intent = None;
            if let Some(deployment) = new.deployment_mut(*id) {
                deployment.state = State::Trial;
                new.default = *id;
            }
        }
        Step::CompleteSelect(id) => {
            new.intent = None;
            new.default = *id;
            for deployment in &mut new.deployments {
                if deployment.state == State::Trial && deployment.id != *id {
                    deployment.state = State::Bad;
                    deployment.reason = Some("rolled back before it was proven".to_owned());
                }
            }
        }
        Step::Undo => new.intent = None,
        Step::MarkBad {
            deployment,
            failure,
        } => {
            let other = fallback(&new);
            let proven: Vec<RootDigest> = new
                .deployments
                .iter()
                .filter(|d| d.state == State::Proven)
                .map(|d| d.root)
                .collect();
            if let Some(bad) = new.deployment_mut(*deployment) {
                bad.state = State::Bad;
                bad.reason = Some(failure.reason.clone());
                if proven.contains(&bad.root) {
                    // The version is good: its kernel arguments were what was tried.
                    bad.failure = Some(failure.clone());
                } else if let Some(manifest) = bad.manifest {
                    bad.failure = None; // it is among the bad versions from now on
                    new.bad.retain(|known| known.manifest != manifest);
                    new.bad.push(BadVersion {
                        manifest,
                        reason: failure.reason.clone(),
                        output: failure.output.clone(),
                        seen: now,
                    });
                    let surplus = new.bad.len().saturating_sub(BAD_KEPT);
                    new.bad.drain(..surplus);
                    // The record has a slot of a fixed size.
                    let silent = new.bad.len().saturating_sub(OUTPUTS_KEPT);
                    for older in &mut new.bad[..silent] {
                        older.output = None;
                    }
                }
            }
            if new.default == *deployment {
                new.default = other;
            }
        }
        Step::Prove(id) => {
            if let Some(deployment) = new.deployment_mut(*id) {
                deployment.state = State::Proven;
                deployment.reason = None;
                deployment.failure = None;
                let manifest = deployment.manifest;
                // It was tried again on request, and holds.
                new.bad.retain(|known| Some(known.manifest) != manifest);
            }
        }
        Step::Forget(ids) => new.deployments.retain(|d| !ids.contains(&d.id)),
        Step::Arrange(_) | Step::Settled => {}
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{deployment, id, record};
    use bedplate_boot::loader::Loader;
    use bedplate_boot::loader_conf::LoaderConf;

    fn proven(deployment: u8) -> EntryName {
        EntryName::proven(id(deployment))
    }

    /// The entry of a trial that the loader has counted down to `left`.
    fn trial(deployment: u8, base: u8, left: u32) -> EntryName {
        let mut name = EntryName::trial(id(base), id(deployment), 3);
        while name.tries.unwrap().left > left {
            name.tries = name.tries.map(bedplate_boot::entry::Tries::tried);
        }
        name
    }

    /// A boot partition that has these entries and the files of deployments 1 to 5.
    fn boot(default: u8, entries: &[EntryName]) -> Observed {
        let all = (1..=5).map(|digit| deployment(digit, State::Proven, None));
        let named = |d: Deployment| [render::kernel_name(&d), render::initramfs_name(&d)];
        Observed {
            flavour: Loader::SystemdBoot,
            entries: entries.to_vec(),
            files: all.flat_map(named).collect(),
            loader: Some(LoaderConf {
                timeout: 0,
                default: id(default),
            }),
            fixed: true,
            unfinished: Vec::new(),
        }
    }

    fn step(record: &Record, booted: u8, boot: &Observed, gate: Gate) -> Step {
        let mut boot = boot.clone();
        // Files of deployments that the record does not have would be in the way of these tests.
        let named = |d: &Deployment| [render::kernel_name(d), render::initramfs_name(d)];
        let known: Vec<_> = record
            .deployments
            .iter()
            .filter(|d| d.state != State::Bad)
            .flat_map(named)
            .collect();
        boot.files.retain(|file| known.contains(file));
        next_step(&Seen {
            record,
            booted: id(booted),
            boot: &boot,
            settings: &Settings::default(),
            keep: 2,
            gate,
        })
        .unwrap()
    }

    /// The operations of a plan, as texts.
    fn arranged(step: &Step) -> Vec<String> {
        match step {
            Step::Arrange(plan) => plan.steps().collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Deployment 1 proven, 2 staged or on trial over it.
    fn two(state: State) -> Record {
        let mut record = record();
        record.deployments.insert(0, deployment(2, state, Some(1)));
        if state == State::Trial {
            record.default = id(2);
        }
        record
    }

    #[test]
    fn an_interrupted_finalize_is_completed_when_the_loader_would_try_it() {
        let mut record = two(State::Staged);
        record.intent = Some(Intent::Try { deployment: id(2) });
        let before = boot(1, &[proven(1)]);
        assert_eq!(step(&record, 1, &before, Gate::Unknown), Step::Undo);
        let after = boot(1, &[proven(1), trial(2, 1, 3)]);
        assert_eq!(
            step(&record, 1, &after, Gate::Unknown),
            Step::CompleteTry(id(2))
        );
        assert_eq!(
            step(&record, 2, &before, Gate::Unknown),
            Step::CompleteTry(id(2))
        );
    }

    #[test]
    fn an_interrupted_rollback_goes_by_the_sector() {
        let mut record = record();
        record
            .deployments
            .insert(0, deployment(2, State::Proven, Some(1)));
        record.default = id(2);
        record.intent = Some(Intent::Select { deployment: id(1) });
        let entries = [proven(1), proven(2)];
        assert_eq!(
            step(&record, 2, &boot(2, &entries), Gate::Unknown),
            Step::Undo
        );
        assert_eq!(
            step(&record, 2, &boot(1, &entries), Gate::Unknown),
            Step::CompleteSelect(id(1))
        );
    }

    #[test]
    fn a_trial_without_tries_is_bad_once_another_one_runs() {
        let record = two(State::Trial);
        let used_up = boot(1, &[proven(1), trial(2, 1, 0)]);
        assert_eq!(
            step(&record, 2, &used_up, Gate::Unknown),
            Step::Settled,
            "the last try runs"
        );
        let marked = step(&record, 1, &used_up, Gate::Unknown);
        assert!(matches!(marked, Step::MarkBad { .. }));
        let record = recorded(&record, &marked, 5);
        assert_eq!(record.default, id(1));
        assert_eq!(record.bad.len(), 1);
        assert_eq!(
            arranged(&step(&record, 1, &used_up, Gate::Unknown)),
            ["remove loader/entries/bedplate-11111111-22222222+0-3.conf"]
        );
        assert_eq!(
            step(&record, 1, &boot(1, &[proven(1)]), Gate::Unknown),
            Step::Settled
        );
    }

    #[test]
    fn a_trial_with_tries_left_waits_whatever_was_picked_by_hand() {
        let record = two(State::Trial);
        let seen = boot(1, &[proven(1), trial(2, 1, 2)]);
        assert_eq!(step(&record, 1, &seen, Gate::Passed), Step::Settled);
    }

    #[test]
    fn an_entry_that_was_lost_is_a_failed_trial() {
        let record = two(State::Trial);
        let seen = boot(1, &[proven(1)]);
        assert!(matches!(
            step(&record, 1, &seen, Gate::Unknown),
            Step::MarkBad { .. }
        ));
    }

    #[test]
    fn proving_writes_the_record_then_the_entry_then_the_sector() {
        let mut record = two(State::Trial);
        let mut seen = boot(1, &[proven(1), trial(2, 1, 2)]);
        let proving = step(&record, 2, &seen, Gate::Passed);
        assert_eq!(proving, Step::Prove(id(2)));
        record = recorded(&record, &proving, 5);
        // The same when the fallback booted because of a cut right here.
        for booted in [1, 2] {
            assert_eq!(
                arranged(&step(&record, booted, &seen, Gate::Unknown)),
                [
                    "write loader/entries/bedplate-22222222.conf",
                    "set loader/loader.conf to boot 22222222",
                    "remove loader/entries/bedplate-11111111-22222222+2-1.conf",
                ]
            );
        }
        seen = boot(2, &[proven(1), proven(2)]);
        assert_eq!(step(&record, 2, &seen, Gate::Unknown), Step::Settled);
    }

    #[test]
    fn a_first_installation_is_proven_without_a_counter() {
        let mut record = record();
        record.deployments[0].state = State::Trial;
        let seen = boot(1, &[proven(1)]);
        assert_eq!(step(&record, 1, &seen, Gate::Unknown), Step::Settled);
        let proving = step(&record, 1, &seen, Gate::Passed);
        assert_eq!(proving, Step::Prove(id(1)));
        assert_eq!(
            step(&recorded(&record, &proving, 5), 1, &seen, Gate::Passed),
            Step::Settled
        );
    }

    #[test]
    fn what_runs_what_boots_and_what_a_rollback_needs_is_kept() {
        let mut record = record();
        for (digit, base) in [(2, 1), (3, 2)] {
            record
                .deployments
                .insert(0, deployment(digit, State::Proven, Some(base)));
        }
        record.default = id(3);
        assert_eq!(previous(&record), Some(id(2)));
        assert_eq!(superseded(&record, id(3), 2), [id(1)]);
        assert_eq!(superseded(&record, id(1), 2), []);
        record.default = id(2);
        assert_eq!(previous(&record), Some(id(1)), "the one it came from");
        record
            .deployments
            .insert(0, deployment(4, State::Bad, Some(3)));
        assert_eq!(
            superseded(&record, id(2), 2),
            [id(3)],
            "the newest tells why it is bad"
        );
        record
            .deployments
            .insert(0, deployment(5, State::Trial, Some(2)));
        record.default = id(5);
        assert_eq!(
            superseded(&record, id(2), 2),
            [id(4)],
            "no proven one goes during a trial"
        );
    }

    #[test]
    fn a_machine_keeps_as_many_proven_ones_as_it_is_told() {
        let mut record = record();
        for (digit, base) in [(2, 1), (3, 2), (4, 3), (5, 4)] {
            record
                .deployments
                .insert(0, deployment(digit, State::Proven, Some(base)));
        }
        record.default = id(5);
        for (keep, gone) in [(0, 3), (2, 3), (3, 2), (4, 1), (5, 0), (9, 0)] {
            let superseded = superseded(&record, id(5), keep);
            assert_eq!(superseded.len(), gone, "{keep}");
            assert!(
                superseded.iter().all(|one| one.0[0] <= id(gone as u8).0[0]),
                "the oldest go: {superseded:?}"
            );
        }
        // A bad one is no proven one, and what is pinned counts: 5, 4 and 1 stay in any case.
        record.deployments[3].state = State::Bad;
        record.deployments[4].pinned = true;
        assert_eq!(superseded(&record, id(5), 3), [id(3), id(2)]);
        assert_eq!(superseded(&record, id(5), 4), [id(2)]);
    }

    #[test]
    fn what_is_pinned_is_kept_whatever_its_state() {
        let mut record = record();
        for (digit, state) in [(2, State::Bad), (3, State::Proven), (4, State::Proven)] {
            let newer = deployment(digit, state, Some(digit - 1));
            record.deployments.insert(0, newer);
        }
        record.default = id(4);
        assert_eq!(superseded(&record, id(4), 2), [id(2), id(1)]);
        for pinned in [1, 2] {
            record.deployment_mut(id(pinned)).unwrap().pinned = true;
        }
        assert_eq!(superseded(&record, id(4), 2), []);
        assert_eq!(previous(&record), Some(id(3)), "pinning chooses nothing");
    }

    #[test]
    fn a_second_rollback_swaps_back() {
        let mut record = record();
        record
            .deployments
            .insert(0, deployment(2, State::Proven, Some(1)));
        record.default = id(2);
        let first = previous(&record).unwrap();
        record = recorded(&record, &Step::CompleteSelect(first), 5);
        assert_eq!((record.default, previous(&record)), (id(1), Some(id(2))));
    }
}
