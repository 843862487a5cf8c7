//! The gate, on directories and lists of units.

use super::*;
use crate::sample::{deployment, id, record};

fn unit(name: &str, failed: bool, restarts: u32) -> Unit {
    Unit {
        name: name.into(),
        failed,
        restarts,
    }
}

fn script(system: &Path, path: &str, text: &str) {
    let path = system.join("usr/lib/greenboot").join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn checked(system: &Path) -> (Report, Vec<(Kind, String)>) {
    let run_directory = tempfile::tempdir().unwrap();
    let mut heard = Vec::new();
    let mut told = |kind, outcome: &Outcome| {
        let name = outcome.path.file_name().unwrap().to_string_lossy();
        heard.push((kind, name.into_owned()));
    };
    let config = HealthConfig::default();
    let report = check(run_directory.path(), system, &config, &mut told).unwrap();
    assert_eq!(read_report(run_directory.path()).unwrap(), report);
    (report, heard)
}

#[test]
fn a_wanted_script_may_fail() {
    let system = tempfile::tempdir().unwrap();
    script(system.path(), "check/required.d/a.sh", "exit 0\n");
    script(system.path(), "check/wanted.d/b.sh", "exit 1\n");
    let (report, heard) = checked(system.path());
    assert_eq!(report.failure, None);
    assert_eq!(
        heard,
        [
            (Kind::Required, "a.sh".to_owned()),
            (Kind::Wanted, "b.sh".to_owned())
        ]
    );
}

#[test]
fn the_first_required_script_that_fails_is_the_reason_and_the_last() {
    let system = tempfile::tempdir().unwrap();
    script(
        system.path(),
        "check/required.d/a.sh",
        "echo no disk; exit 2\n",
    );
    script(system.path(), "check/required.d/b.sh", "exit 3\n");
    script(system.path(), "check/wanted.d/c.sh", "exit 0\n");
    let (report, heard) = checked(system.path());
    let failure = report.failure.unwrap();
    assert!(failure.reason.ends_with("a.sh ended with 2"), "{failure:?}");
    assert_eq!(failure.output.as_deref(), Some("no disk"));
    assert_eq!(heard.len(), 1);
}

#[test]
fn only_what_is_new_is_held_against_a_version() {
    let config = HealthConfig::default();
    let now = [unit("old.service", true, 0), unit("new.service", true, 0)];
    let known = ["old.service".to_owned()];
    let failure = judged(&now, &now, &known, &config).unwrap();
    assert_eq!(failure.reason, "units that failed: new.service");
    let noted = HealthConfig {
        failed_units: FailedUnits::Note,
        ..config.clone()
    };
    assert_eq!(judged(&now, &now, &known, &noted), None);
    let crashing = [unit("new.service", false, 9)];
    let failure = judged(&[], &crashing, &known, &noted).unwrap();
    assert_eq!(
        failure.reason,
        "services that crash again and again: new.service"
    );
}

#[test]
fn only_a_trial_with_a_base_restarts() {
    let mut record = record();
    assert_eq!(decide(&record, id(1)), Healing::Stay(StayReason::Proven));
    for (state, base, healing) in [
        (State::Trial, Some(1), Healing::Restart),
        (State::Staged, Some(1), Healing::Restart),
        (State::Trial, None, Healing::Stay(StayReason::Only)),
        (State::Bad, Some(1), Healing::Stay(StayReason::Proven)),
    ] {
        record.deployments.truncate(1);
        record.deployments.push(deployment(2, state, base));
        assert_eq!(decide(&record, id(2)), healing, "{state}");
    }
}
