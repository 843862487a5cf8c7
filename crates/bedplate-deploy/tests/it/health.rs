//! The gate on a machine: what is not healthy gives way, with its reason.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;

use bedplate_deploy::config::HealthConfig;
use bedplate_deploy::health::{self, Healing, Kind, StayReason, Unit, Units};
use bedplate_model::record::State;

use super::life::upgrade;
use super::simulated::{FIRST, Simulated};

/// A service manager that says one thing after the other, and then the last one for ever.
struct Told(RefCell<Vec<Vec<Unit>>>);

impl Told {
    fn of(lists: impl IntoIterator<Item = Vec<Unit>>) -> Self {
        let mut lists: Vec<_> = lists.into_iter().collect();
        lists.reverse();
        Self(RefCell::new(lists))
    }
}

impl Units for Told {
    fn list(&self) -> io::Result<Vec<Unit>> {
        let mut lists = self.0.borrow_mut();
        Ok(match &lists[..] {
            [last] => last.clone(),
            _ => lists.pop().unwrap(),
        })
    }

    fn failed_checks(&self) -> io::Result<Vec<String>> {
        Ok(vec!["their-check.service".into()])
    }
}

fn unit(name: &str, failed: bool, restarts: u32) -> Unit {
    Unit {
        name: name.into(),
        failed,
        restarts,
    }
}

/// Watches what runs, and proves it where it is healthy; returns the reason where not.
fn watch(machine: &Simulated, units: &Told) -> Option<String> {
    let config = HealthConfig::default();
    let report = machine
        .with(|m| health::watch(m, units, &config, &mut || 20))
        .unwrap();
    if report.failure.is_none() {
        machine
            .with(|m| m.prove(&machine.store, &report.failed_units))
            .unwrap();
    }
    report.failure.map(|failure| failure.reason)
}

#[test]
fn a_version_whose_check_fails_gives_way_and_its_words_are_kept() {
    let mut machine = Simulated::proven();
    let id = upgrade(&mut machine, 2);
    let system = tempfile::tempdir().unwrap();
    let script = system.path().join("etc/greenboot/check/required.d/10.sh");
    fs::create_dir_all(script.parent().unwrap()).unwrap();
    fs::write(&script, "echo 'no disk'; exit 7\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
    let config = HealthConfig::default();
    let none = Told::of([Vec::new()]);
    for left in [2, 1, 0] {
        let run_directory = machine.run_directory();
        let report =
            health::check(&run_directory, system.path(), &config, &mut |_: Kind, _| {}).unwrap();
        assert!(report.failure.is_some());
        let healed = machine.with(|m| m.heal(&machine.store, &none)).unwrap();
        assert_eq!(healed.healing, Healing::Restart);
        assert!(healed.unwritten.is_none());
        let status = machine.with(|m| m.status()).unwrap();
        assert_eq!(status.deployments[0].tries_left, Some(left));
        assert!(status.deployments[0].failure.is_some());
        let next = machine.boot();
        assert_eq!(next, if left == 0 { FIRST } else { id });
    }
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    let record = machine.record();
    assert_eq!(record.deployment(id).unwrap().state, State::Bad);
    let bad = record.bad.last().unwrap();
    assert!(bad.reason.ends_with("10.sh ended with 7"), "{bad:?}");
    assert_eq!(bad.output.as_deref(), Some("no disk"));
}

#[test]
fn a_unit_that_fails_in_the_new_version_alone_is_held_against_it() {
    let mut machine = Simulated::installed();
    let old = unit("old.service", true, 0);
    // The first one has nothing to be compared with.
    assert_eq!(watch(&machine, &Told::of([vec![old.clone()]])), None);
    assert_eq!(machine.record().deployments[0].state, State::Proven);

    let id = upgrade(&mut machine, 2);
    let late = Told::of([
        vec![old.clone()],
        vec![old.clone()],
        vec![old.clone(), unit("new.service", true, 0)],
    ]);
    let reason = watch(&machine, &late).unwrap();
    assert_eq!(reason, "units that failed: new.service");
    let healed = machine.with(|m| m.heal(&machine.store, &late)).unwrap();
    assert_eq!(healed.failure.reason, reason);
    assert_eq!(machine.record().deployment(id).unwrap().state, State::Trial);

    // The next try goes well, and nothing of it stays.
    assert_eq!(machine.boot(), id);
    assert_eq!(watch(&machine, &Told::of([vec![old]])), None);
    let record = machine.record();
    let deployment = record.deployment(id).unwrap();
    assert_eq!(deployment.state, State::Proven);
    assert_eq!(deployment.failure, None);
    assert_eq!(deployment.failed_units, ["old.service"]);
    assert!(record.bad.is_empty());
}

#[test]
fn the_checks_of_others_are_named() {
    let mut machine = Simulated::proven();
    upgrade(&mut machine, 2);
    let healed = machine
        .with(|m| m.heal(&machine.store, &Told::of([Vec::new()])))
        .unwrap();
    assert_eq!(
        healed.failure.reason,
        "checks that failed: their-check.service"
    );
}

#[test]
fn what_was_proven_stays_up_and_so_does_the_only_one() {
    let none = Told::of([Vec::new()]);
    for (machine, why) in [
        (Simulated::proven(), StayReason::Proven),
        (Simulated::installed(), StayReason::Only),
    ] {
        let healed = machine.with(|m| m.heal(&machine.store, &none)).unwrap();
        assert_eq!(healed.healing, Healing::Stay(why));
        let status = machine.with(|m| m.status()).unwrap();
        assert!(status.health.unwrap().failure.is_some());
    }
}

#[test]
fn a_machine_that_cannot_write_down_why_restarts_all_the_same() {
    let mut machine = Simulated::proven();
    upgrade(&mut machine, 2);
    machine.power.leave(Some(0));
    let healed = machine
        .with(|m| m.heal(&machine.store, &Told::of([Vec::new()])))
        .unwrap();
    assert_eq!(healed.healing, Healing::Restart);
    assert!(healed.unwritten.is_some());
}
