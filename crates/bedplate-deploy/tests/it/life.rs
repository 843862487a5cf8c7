//! What an administrator sees when nothing goes wrong with the power.

use std::fs;

use bedplate_deploy::rollback::RollbackError;
use bedplate_deploy::stage::StageError;
use bedplate_deploy::{Finalized, Staged, Staging, record_file};
use bedplate_model::record::{DeploymentId, State};

use super::simulated::{FIRST, Simulated, name};

/// Stages a version of the image.
pub(crate) fn stage(machine: &Simulated, version: u8) -> DeploymentId {
    let target = machine.image(version);
    let staging = Staging {
        image: &name(),
        target: &target,
        retry: false,
    };
    match machine.with(|m| m.stage(&machine.store, &staging)).unwrap() {
        Staged::New(deployment) => deployment.id,
        Staged::Already(deployment) => panic!("{} is there", deployment.id),
    }
}

/// Upgrades to a version and boots into it; it is still on trial then.
pub(crate) fn upgrade(machine: &mut Simulated, version: u8) -> DeploymentId {
    let id = stage(machine, version);
    let done = machine.with(|m| m.finalize(&machine.store)).unwrap();
    assert!(
        matches!(done, Finalized::Trial { deployment, .. } if deployment == id),
        "{done:?}"
    );
    assert_eq!(machine.boot(), id);
    id
}

#[test]
fn an_upgrade_keeps_local_changes_and_takes_the_images() {
    let mut machine = Simulated::proven();
    let etc = machine.etc(FIRST);
    fs::write(etc.join("hostname"), "mine\n").unwrap();
    fs::write(etc.join("local"), "local\n").unwrap();
    let passwd = fs::read_to_string(etc.join("passwd")).unwrap();
    fs::write(
        etc.join("passwd"),
        passwd + "alice:x:1000:1000::/home/alice:/bin/sh\n",
    )
    .unwrap();

    let id = upgrade(&mut machine, 2);
    let read = |path: &str| fs::read_to_string(machine.etc(id).join(path)).unwrap();
    assert_eq!(read("hostname"), "mine\n");
    assert_eq!(read("local"), "local\n");
    assert_eq!(read("release"), "version 2\n");
    assert!(read("app/settings").ends_with(" 2\n"));
    assert_eq!(
        read("passwd"),
        "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\nsystem2:x:200:1::/:/x\n"
    );
    let record = machine.record();
    assert_eq!(record.deployment(id).unwrap().kargs, ["image=2", "local=1"]);
    assert_eq!(record.deployment(id).unwrap().state, State::Trial);

    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    assert_eq!(
        machine.record().deployment(id).unwrap().state,
        State::Proven
    );
    assert_eq!(
        machine.entries(),
        [
            "bedplate-11111111.conf".to_owned(),
            format!("bedplate-{id}.conf")
        ]
        .into_iter()
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
    );
}

#[test]
fn a_rollback_swaps_and_a_second_one_swaps_back() {
    let mut machine = Simulated::proven();
    let second = upgrade(&mut machine, 2);
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    for wanted in [FIRST, second, FIRST] {
        machine.with(|m| m.rollback(&machine.store, None)).unwrap();
        assert_eq!(machine.boot(), wanted);
        machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    }
    // An upgrade from there supersedes the one that was rolled back from.
    let third = upgrade(&mut machine, 3);
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    let ids: Vec<_> = machine.record().deployments.iter().map(|d| d.id).collect();
    assert_eq!(ids, [third, FIRST]);
    assert!(!machine.etc(second).exists());
    let held: Vec<_> = machine
        .store
        .pins()
        .unwrap()
        .into_iter()
        .map(|pin| pin.name)
        .collect();
    assert_eq!(held.len(), 2, "{held:?}");
}

#[test]
fn a_deployment_is_found_by_its_place_and_by_what_its_id_begins_with() {
    let mut machine = Simulated::proven();
    let second = upgrade(&mut machine, 2);
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    let status = machine.with(|m| m.status()).unwrap();
    let places: Vec<_> = status.deployments.iter().map(|d| (d.index, d.id)).collect();
    assert_eq!(places, [(0, second), (1, FIRST)]);
    let plan = |text: &str| machine.with(|m| m.plan_rollback(Some(&text.parse().unwrap())));
    assert_eq!(plan("1").unwrap().to.id, FIRST);
    assert_eq!(plan("111").unwrap().to.id, FIRST);
    assert!(matches!(plan("0"), Err(RollbackError::Already(id)) if id == second));
    let error = plan("7").unwrap_err();
    assert!(matches!(error, RollbackError::Find(_)));
    assert!(error.to_string().contains(&second.to_string()), "{error}");
}

#[test]
fn a_rollback_gives_up_what_was_staged() {
    let mut machine = Simulated::proven();
    upgrade(&mut machine, 2);
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    let staged = stage(&machine, 3);
    let plan = machine.with(|m| m.rollback(&machine.store, None)).unwrap();
    assert_eq!(plan.discards, Some(staged));
    let done = machine.with(|m| m.finalize(&machine.store)).unwrap();
    assert_eq!(done, Finalized::Nothing);
    assert_eq!(machine.boot(), FIRST);
}

#[test]
fn there_is_nothing_to_roll_back_to_on_a_new_machine() {
    let machine = Simulated::proven();
    let error = machine
        .with(|m| m.rollback(&machine.store, None))
        .unwrap_err();
    assert!(matches!(error, RollbackError::NoPrevious));
}

#[test]
fn a_version_that_never_becomes_healthy_gives_way_and_is_remembered() {
    let mut machine = Simulated::proven();
    let id = upgrade(&mut machine, 2);
    assert_eq!(machine.boot(), id);
    assert_eq!(machine.boot(), id);
    assert_eq!(machine.boot(), FIRST, "three tries are used up");
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    let record = machine.record();
    assert_eq!(record.deployment(id).unwrap().state, State::Bad);
    assert_eq!(record.default, FIRST);
    assert_eq!(machine.entries(), ["bedplate-11111111.conf"]);

    let target = machine.image(2);
    let mut staging = Staging {
        image: &name(),
        target: &target,
        retry: false,
    };
    let error = machine
        .with(|m| m.stage(&machine.store, &staging))
        .unwrap_err();
    assert!(matches!(error, StageError::Bad { .. }), "{error}");
    staging.retry = true;
    assert!(machine.with(|m| m.stage(&machine.store, &staging)).is_ok());
}

#[test]
fn a_rollback_during_a_trial_ends_it() {
    let mut machine = Simulated::proven();
    let id = upgrade(&mut machine, 2);
    machine.with(|m| m.rollback(&machine.store, None)).unwrap();
    assert_eq!(machine.boot(), FIRST);
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    let record = machine.record();
    assert_eq!(record.deployment(id).unwrap().state, State::Bad);
    assert!(record.bad.is_empty(), "the version did not fail");
}

#[test]
fn what_is_not_proven_is_no_base() {
    let machine = Simulated::installed();
    let id = stage(&machine, 2);
    let done = machine.with(|m| m.finalize(&machine.store)).unwrap();
    assert_eq!(done, Finalized::Waits(id));
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    let done = machine.with(|m| m.finalize(&machine.store)).unwrap();
    assert!(matches!(done, Finalized::Trial { .. }), "{done:?}");
}

#[test]
fn a_plan_says_what_a_stage_will_do_and_does_nothing() {
    let machine = Simulated::proven();
    fs::write(machine.etc(FIRST).join("release"), "mine\n").unwrap();
    let target = machine.image(2);
    let staging = Staging {
        image: &name(),
        target: &target,
        retry: false,
    };
    let before = machine.record();
    let plan = machine
        .with(|m| m.plan_stage(&machine.store, &staging))
        .unwrap()
        .unwrap();
    assert_eq!(plan.to.version.as_deref(), Some("2"));
    assert_eq!(plan.summary.kernels.added, ["6.2"]);
    assert_eq!(plan.conflicts.len(), 1, "{:?}", plan.conflicts);
    assert!(plan.boot_bytes > 0);
    assert_eq!(machine.record(), before);
    let target = machine.image(1);
    let same = Staging {
        target: &target,
        ..staging
    };
    assert!(
        machine
            .with(|m| m.plan_stage(&machine.store, &same))
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_full_boot_partition_is_found_before_anything_is_staged() {
    let mut machine = Simulated::proven();
    machine.room = 100;
    let target = machine.image(2);
    let staging = Staging {
        image: &name(),
        target: &target,
        retry: false,
    };
    let error = machine
        .with(|m| m.stage(&machine.store, &staging))
        .unwrap_err();
    assert!(matches!(error, StageError::Space { .. }), "{error}");
    assert_eq!(machine.record().deployments.len(), 1);
}

#[test]
fn status_says_what_runs_what_waits_and_what_is_tried() {
    let mut machine = Simulated::proven();
    let second = upgrade(&mut machine, 2);
    let status = machine.with(|m| m.publish()).unwrap();
    assert_eq!(status.booted, second);
    assert_eq!(status.previous, Some(FIRST));
    assert_eq!(status.deployments[0].tries_left, Some(2));
    assert!(status.trust.image);
    assert!(status.root.size >= status.root.free && status.root.size > 0);
    assert_eq!((status.boot.free, status.boot.size), (1 << 30, 1 << 30));
    assert!(!status.watchdog);
    fs::write(machine.watchdog(), "").unwrap();
    assert!(machine.with(|m| m.status()).unwrap().watchdog);
    let json = serde_json::to_string(&status).unwrap();
    assert_eq!(
        serde_json::from_str::<bedplate_deploy::Status>(&json).unwrap(),
        status
    );
}

#[test]
fn the_record_on_the_disk_keeps_its_size() {
    let mut machine = Simulated::proven();
    upgrade(&mut machine, 2);
    let length = fs::metadata(machine.root().join("bedplate/record.json"))
        .unwrap()
        .len();
    assert_eq!(length, record_file::SLOT as u64);
}

#[test]
fn every_change_of_a_machine_is_in_its_log() {
    use bedplate_deploy::events::{self, What};
    let mut machine = Simulated::proven();
    let second = upgrade(&mut machine, 2);
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    machine.with(|m| m.rollback(&machine.store, None)).unwrap();
    let told: Vec<_> = events::read(&machine.root())
        .unwrap()
        .into_iter()
        .map(|event| (event.deployment, event.what, event.who))
        .collect();
    let anna = |id, what| (id, what, "anna".to_owned());
    assert_eq!(
        told,
        [
            anna(FIRST, What::Proven),
            anna(second, What::Staged),
            anna(second, What::Tried),
            anna(second, What::Proven),
            anna(FIRST, What::Selected),
        ]
    );
}

#[test]
fn what_keeps_a_machine_from_updating_is_said() {
    use bedplate_deploy::why::{Reason, Source, reasons};
    let mut machine = Simulated::proven();
    let kinds = |machine: &Simulated, source: &Source| {
        let status = machine.with(|m| m.status()).unwrap();
        reasons(&status, source)
    };
    let newest =
        |machine: &Simulated, version| Source::Has(machine.image(version).manifest.unwrap());
    let first = newest(&machine, 1);
    assert!(kinds(&machine, &first).is_empty());
    assert!(matches!(
        kinds(&machine, &newest(&machine, 2))[..],
        [Reason::Newer { .. }]
    ));
    let silent = Source::Silent("no route".into());
    assert!(matches!(
        kinds(&machine, &silent)[..],
        [Reason::SourceSilent { .. }]
    ));

    let id = stage(&machine, 2);
    let second = newest(&machine, 2);
    assert!(matches!(
        kinds(&machine, &second)[..],
        [Reason::WaitsForReboot { deployment }] if deployment == id
    ));
    machine.with(|m| m.finalize(&machine.store)).unwrap();
    assert!(matches!(
        kinds(&machine, &second)[..],
        [Reason::AnotherBootsNext { deployment }] if deployment == id
    ));
    machine.boot();
    assert!(matches!(
        kinds(&machine, &second)[..],
        [Reason::OnTrial {
            tries_left: Some(2),
            ..
        }]
    ));
    stage(&machine, 3);
    assert!(matches!(
        kinds(&machine, &Source::Unasked)[..],
        [Reason::OnTrial { .. }, Reason::WaitsForProof { .. }]
    ));
    while machine.boot() != FIRST {}
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    let seen = kinds(&machine, &second);
    assert!(
        seen.iter()
            .any(|reason| matches!(reason, Reason::Bad { .. })),
        "{seen:?}"
    );
}
