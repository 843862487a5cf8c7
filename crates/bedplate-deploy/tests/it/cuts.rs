//! The power is cut at each write of each verb: the machine boots the old system or the new one, and
//! whatever was interrupted is completed or undone by the next verb.

use bedplate_boot::local_kargs::Edit;
use bedplate_deploy::{Finalized, Staging};
use bedplate_model::record::{DeploymentId, State};

use super::kargs::change;
use super::life::{stage, upgrade};
use super::simulated::{FIRST, Simulated, name};

/// More writes than any verb makes.
const MANY: u32 = 200;

/// Cuts a verb at each of its writes, on a fresh machine each time, and lets `after` look at what is
/// left. `after` is told whether the verb was cut.
fn cut_everywhere(
    before: impl Fn() -> Simulated,
    verb: impl Fn(&Simulated) -> bool,
    after: impl Fn(Simulated, bool),
) {
    for writes in 0..MANY {
        let machine = before();
        machine.power.leave(Some(writes));
        let done = verb(&machine);
        machine.power.leave(None);
        after(machine, !done);
        if done {
            assert!(writes > 0, "the verb writes something");
            return;
        }
    }
    panic!("the verb does not end");
}

/// The deployment besides the first.
fn other(machine: &Simulated) -> Option<DeploymentId> {
    machine
        .record()
        .deployments
        .iter()
        .map(|d| d.id)
        .find(|id| *id != FIRST)
}

/// Checks that the machine can still be upgraded, proven and rolled back.
fn still_works(machine: &mut Simulated, version: u8) {
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    let booted = machine.booted;
    let new = upgrade(machine, version);
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    machine.with(|m| m.rollback(&machine.store, None)).unwrap();
    assert_eq!(machine.boot(), booted, "{new} is rolled back");
}

#[test]
fn staging_is_done_or_was_never_begun() {
    cut_everywhere(
        Simulated::proven,
        |machine| {
            let target = machine.image(2);
            let staging = Staging {
                image: &name(),
                target: &target,
                retry: false,
            };
            machine.with(|m| m.stage(&machine.store, &staging)).is_ok()
        },
        |mut machine, cut| {
            assert_eq!(machine.boot(), FIRST);
            assert!(cut || other(&machine).is_some());
            still_works(&mut machine, 3);
        },
    );
}

#[test]
fn an_interrupted_finalize_is_completed_or_waits_for_the_next_shutdown() {
    cut_everywhere(
        || {
            let machine = Simulated::proven();
            stage(&machine, 2);
            machine
        },
        |machine| machine.with(|m| m.finalize(&machine.store)).is_ok(),
        |mut machine, cut| {
            let staged = other(&machine).unwrap();
            let booted = machine.boot();
            assert!(booted == staged || (cut && booted == FIRST));
            machine.with(|m| m.prove(&machine.store, &[])).unwrap();
            let record = machine.record();
            assert_eq!(record.intent, None);
            let state = record.deployment(staged).unwrap().state;
            if booted == staged {
                assert_eq!(state, State::Proven);
            } else {
                // Still staged: nothing of the update is lost.
                assert_eq!(state, State::Staged);
                let done = machine.with(|m| m.finalize(&machine.store)).unwrap();
                assert!(
                    matches!(done, Finalized::Trial { deployment, .. } if deployment == staged)
                );
                assert_eq!(machine.boot(), staged);
            }
            assert!(machine.etc(staged).join("release").exists());
            still_works(&mut machine, 3);
        },
    );
}

#[test]
fn an_interrupted_proving_is_completed_whatever_boots() {
    cut_everywhere(
        || {
            let mut machine = Simulated::proven();
            upgrade(&mut machine, 2);
            machine
        },
        |machine| machine.with(|m| m.prove(&machine.store, &[])).is_ok(),
        |mut machine, cut| {
            let new = other(&machine).unwrap();
            let booted = machine.boot();
            assert!(booted == new || (cut && booted == FIRST));
            machine.with(|m| m.prove(&machine.store, &[])).unwrap();
            assert_eq!(machine.record().default, new);
            assert_eq!(machine.boot(), new);
            still_works(&mut machine, 3);
        },
    );
}

#[test]
fn an_interrupted_rollback_leaves_one_of_both() {
    cut_everywhere(
        || {
            let mut machine = Simulated::proven();
            upgrade(&mut machine, 2);
            machine.with(|m| m.prove(&machine.store, &[])).unwrap();
            machine
        },
        |machine| machine.with(|m| m.rollback(&machine.store, None)).is_ok(),
        |mut machine, cut| {
            let booted = machine.boot();
            assert!(booted == FIRST || cut);
            machine.with(|m| m.prove(&machine.store, &[])).unwrap();
            assert_eq!(machine.record().default, booted);
            assert_eq!(machine.record().intent, None);
            still_works(&mut machine, 3);
        },
    );
}

#[test]
fn other_arguments_are_staged_or_not() {
    let edit = || Edit {
        append: vec!["debug".into()],
        ..Edit::default()
    };
    cut_everywhere(
        Simulated::proven,
        |machine| {
            machine
                .with(|m| m.change_kargs(&machine.store, &edit()))
                .is_ok()
        },
        |mut machine, cut| {
            assert!(cut || other(&machine).is_some());
            assert_eq!(machine.boot(), FIRST);
            if other(&machine).is_none() {
                change(&machine, &edit());
            }
            machine.with(|m| m.finalize(&machine.store)).unwrap();
            let new = machine.boot();
            assert_eq!(machine.record().deployment(new).unwrap().kargs.len(), 3);
            still_works(&mut machine, 3);
        },
    );
}

#[test]
fn what_is_undeployed_is_there_or_gone() {
    cut_everywhere(
        || {
            let mut machine = Simulated::proven();
            upgrade(&mut machine, 2);
            machine.with(|m| m.prove(&machine.store, &[])).unwrap();
            machine
        },
        |machine| {
            let first = FIRST.into();
            machine.with(|m| m.undeploy(&machine.store, &first)).is_ok()
        },
        |mut machine, cut| {
            let new = other(&machine).unwrap();
            assert_eq!(machine.boot(), new);
            machine.with(|m| m.prove(&machine.store, &[])).unwrap();
            let gone = machine.record().deployment(FIRST).is_none();
            assert!(gone || cut);
            assert_eq!(machine.etc(FIRST).exists(), !gone);
            assert_eq!(machine.entries().len(), if gone { 1 } else { 2 });
            assert_eq!(machine.store.pins().unwrap().len(), machine.entries().len());
            still_works(&mut machine, 3);
        },
    );
}

#[test]
fn a_cancelled_upgrade_is_staged_or_gone() {
    cut_everywhere(
        || {
            let machine = Simulated::proven();
            stage(&machine, 2);
            machine
        },
        |machine| {
            let staged = other(machine).unwrap().into();
            machine
                .with(|m| m.undeploy(&machine.store, &staged))
                .is_ok()
        },
        |mut machine, cut| {
            let left = other(&machine).is_some();
            assert!(!left || cut);
            let done = machine.with(|m| m.finalize(&machine.store)).unwrap();
            assert_eq!(done == Finalized::Nothing, !left);
            machine.boot();
            still_works(&mut machine, 3);
        },
    );
}

#[test]
fn what_is_pinned_at_a_cut_is_pinned_or_not() {
    cut_everywhere(
        || {
            let mut machine = Simulated::proven();
            upgrade(&mut machine, 2);
            machine.with(|m| m.prove(&machine.store, &[])).unwrap();
            machine
        },
        |machine| {
            let first = FIRST.into();
            machine.with(|m| m.pin(&machine.store, &first)).is_ok()
        },
        |mut machine, cut| {
            let pinned = machine.record().deployment(FIRST).unwrap().pinned;
            assert!(pinned || cut);
            machine.boot();
            upgrade(&mut machine, 3);
            machine.with(|m| m.prove(&machine.store, &[])).unwrap();
            assert_eq!(machine.record().deployment(FIRST).is_some(), pinned);
            still_works(&mut machine, 4);
        },
    );
}

#[test]
fn an_interrupted_fallback_is_settled() {
    cut_everywhere(
        || {
            let mut machine = Simulated::proven();
            let id = upgrade(&mut machine, 2);
            assert_eq!((machine.boot(), machine.boot()), (id, id));
            assert_eq!(machine.boot(), FIRST);
            machine
        },
        |machine| machine.with(|m| m.prove(&machine.store, &[])).is_ok(),
        |mut machine, _| {
            assert_eq!(machine.boot(), FIRST);
            machine.with(|m| m.prove(&machine.store, &[])).unwrap();
            assert_eq!(machine.record().bad.len(), 1);
            still_works(&mut machine, 3);
        },
    );
}

/// A verb, and the machine before it.
type Verb = (&'static str, fn() -> Simulated, fn(&Simulated) -> bool);

/// The verbs that make another version boot.
const VERBS: [Verb; 4] = [
    ("stage", Simulated::proven, |machine| {
        let target = machine.image(2);
        let staging = Staging {
            image: &name(),
            target: &target,
            retry: false,
        };
        machine.with(|m| m.stage(&machine.store, &staging)).is_ok()
    }),
    (
        "finalize",
        || {
            let machine = Simulated::proven();
            stage(&machine, 2);
            machine
        },
        |machine| machine.with(|m| m.finalize(&machine.store)).is_ok(),
    ),
    (
        "prove",
        || {
            let mut machine = Simulated::proven();
            upgrade(&mut machine, 2);
            machine
        },
        |machine| machine.with(|m| m.prove(&machine.store, &[])).is_ok(),
    ),
    (
        "rollback",
        || {
            let mut machine = Simulated::proven();
            upgrade(&mut machine, 2);
            machine.with(|m| m.prove(&machine.store, &[])).unwrap();
            machine
        },
        |machine| machine.with(|m| m.rollback(&machine.store, None)).is_ok(),
    ),
];

/// Has the disk be full for each write of a verb, and runs the verb again when there is room.
fn fill_everywhere((what, before, verb): Verb) {
    let mut errors = 0;
    for writes in 0..=MANY {
        assert!(writes < MANY, "{what} does not end");
        let mut machine = before();
        machine.power.fill_after(writes);
        let done = verb(&machine);
        let hit = machine.power.was_full();
        machine.power.leave(None);
        errors += u32::from(!done);
        assert!(
            done || verb(&machine),
            "{what}, after write {writes} failed"
        );
        let new = other(&machine).unwrap();
        machine.with(|m| m.finalize(&machine.store)).unwrap();
        let expected = if what == "rollback" { FIRST } else { new };
        assert_eq!(machine.boot(), expected, "{what}, write {writes}");
        machine.with(|m| m.prove(&machine.store, &[])).unwrap();
        assert_eq!(machine.record().default, expected);
        assert_eq!(machine.record().intent, None);
        if !hit {
            break; // it has fewer writes
        }
    }
    assert!(errors > 0, "{what} never says that the disk is full");
}

#[test]
fn staging_on_a_full_disk_is_an_error_and_works_when_there_is_room() {
    fill_everywhere(VERBS[0]);
}

#[test]
fn finalizing_on_a_full_disk_is_an_error_and_works_when_there_is_room() {
    fill_everywhere(VERBS[1]);
}

#[test]
fn proving_on_a_full_disk_is_an_error_and_works_when_there_is_room() {
    fill_everywhere(VERBS[2]);
}

#[test]
fn a_rollback_that_ended_in_an_error_is_completed_and_not_undone_when_it_is_asked_for_again() {
    fill_everywhere(VERBS[3]);
}

#[test]
fn a_machine_that_shuts_down_with_a_full_disk_boots_the_old_version_or_the_new_one() {
    let (_, before, finalize) = VERBS[1];
    for writes in 0..=MANY {
        assert!(writes < MANY, "finalize does not end");
        let mut machine = before();
        machine.power.fill_after(writes);
        let done = finalize(&machine);
        let hit = machine.power.was_full();
        let new = other(&machine).unwrap();
        let booted = machine.boot();
        assert!(booted == new || !done && booted == FIRST, "write {writes}");
        machine.with(|m| m.prove(&machine.store, &[])).unwrap();
        let state = machine.record().deployment(new).unwrap().state;
        let expected = if booted == new {
            State::Proven
        } else {
            State::Staged
        };
        assert_eq!(state, expected, "write {writes}");
        if !hit {
            break;
        }
    }
}

#[test]
fn an_entry_that_the_loader_loses_while_counting_is_a_failed_trial() {
    let mut machine = Simulated::proven();
    let id = stage(&machine, 2);
    machine.with(|m| m.finalize(&machine.store)).unwrap();
    machine.lose(&format!("bedplate-{FIRST}-{id}+3.conf"));
    assert_eq!(machine.boot(), FIRST);
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    assert_eq!(machine.record().deployment(id).unwrap().state, State::Bad);
    still_works(&mut machine, 3);
}

#[test]
fn a_half_written_etc_is_begun_anew() {
    let mut machine = Simulated::proven();
    let id = stage(&machine, 2);
    let unfinished = machine.etc(id).with_file_name("etc.new");
    std::fs::create_dir_all(unfinished.join("half")).unwrap();
    machine.with(|m| m.finalize(&machine.store)).unwrap();
    assert!(!unfinished.exists());
    assert!(!machine.etc(id).join("half").exists());
    assert_eq!(machine.boot(), id);
}
