//! Kernel arguments of a machine: they go on trial, heal, and outlive upgrades.

use bedplate_boot::loader::Loader;
use bedplate_boot::local_kargs::{Edit, EditError};
use bedplate_deploy::kargs::{KargsError, Outcome, Source};
use bedplate_deploy::stage::StageError;
use bedplate_deploy::{Finalized, Staged, Staging};
use bedplate_model::record::{DeploymentId, State};

use super::life::{stage, upgrade};
use super::simulated::{FIRST, Simulated, name};

fn appending(argument: &str) -> Edit {
    Edit {
        append: vec![argument.into()],
        ..Edit::default()
    }
}

fn deleting(argument: &str) -> Edit {
    Edit {
        delete: vec![argument.into()],
        ..Edit::default()
    }
}

/// Changes arguments, and returns the deployment that is staged for it.
pub(crate) fn change(machine: &Simulated, edit: &Edit) -> DeploymentId {
    let change = machine
        .with(|m| m.change_kargs(&machine.store, edit))
        .unwrap();
    match change.outcome {
        Outcome::Staged { deployment, .. } => deployment,
        other => panic!("{other:?}"),
    }
}

fn kargs(machine: &Simulated, id: DeploymentId) -> Vec<String> {
    machine.record().deployment(id).unwrap().kargs.clone()
}

/// Finalizes what is staged, boots it, and lets it prove itself.
fn proven(machine: &mut Simulated) -> DeploymentId {
    let done = machine.with(|m| m.finalize(&machine.store)).unwrap();
    assert!(matches!(done, Finalized::Trial { .. }), "{done:?}");
    let id = machine.boot();
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    id
}

#[test]
fn two_deployments_of_one_image_differ_in_their_arguments() {
    let mut machine = Simulated::proven();
    let second = change(&machine, &appending("debug"));
    assert_eq!(proven(&mut machine), second);
    let record = machine.record();
    let (new, old) = (&record.deployments[0], &record.deployments[1]);
    assert_eq!((new.id, old.id), (second, FIRST));
    assert_eq!((new.root, &new.image), (old.root, &old.image));
    assert_eq!(kargs(&machine, FIRST), ["image=1", "local=1"]);
    assert_eq!(kargs(&machine, second), ["image=1", "local=1", "debug"]);
    // They share kernel and initramfs, and removing one leaves them to the other.
    let first = FIRST.into();
    machine
        .with(|m| m.undeploy(&machine.store, &first))
        .unwrap();
    assert_eq!(machine.boot(), second);
}

#[test]
fn an_argument_that_the_loader_would_change_is_refused_before_anything_is_staged() {
    let machine = Simulated::proven();
    let wanted = appending(r"a=\x20");
    let changed = machine.with(|m| m.change_kargs(&machine.store, &wanted));
    match super::LOADER {
        Loader::SystemdBoot => assert!(matches!(
            changed.unwrap().outcome,
            Outcome::Staged { .. }
        )),
        Loader::Grub => {
            let error = changed.unwrap_err();
            let expected = matches!(error, KargsError::Stage(StageError::Argument(_)));
            assert!(expected, "{error}");
            assert_eq!(machine.record().deployments.len(), 1);
        }
    }
}

#[test]
fn what_was_deleted_stays_deleted_over_upgrades() {
    let mut machine = Simulated::proven();
    let edit = Edit {
        delete: vec!["image".into()],
        replace: vec!["local=2".into()],
        append: vec!["debug".into()],
    };
    let second = change(&machine, &edit);
    proven(&mut machine);
    assert_eq!(kargs(&machine, second), ["local=2", "debug"]);
    let third = upgrade(&mut machine, 2);
    assert_eq!(kargs(&machine, third), ["local=2", "debug"]);
    let shown = machine.with(|m| m.kargs(&machine.store)).unwrap();
    assert_eq!((shown.deployment, shown.state), (third, State::Trial));
    let of = |source, deleted| -> Vec<_> {
        let all = shown.arguments.iter();
        all.filter(|karg| (karg.origin, karg.deleted) == (source, deleted))
            .map(|karg| karg.argument.as_str())
            .collect()
    };
    assert_eq!(of(Source::Image, true), ["image=2"]);
    assert_eq!(of(Source::Local, false), ["local=2", "debug"]);
    assert_eq!(of(Source::Bedplate, false).len(), 5);
}

#[test]
fn arguments_that_do_not_boot_give_way_and_the_image_is_not_blamed() {
    let mut machine = Simulated::proven();
    let bad = change(&machine, &appending("init=/nothing"));
    machine.with(|m| m.finalize(&machine.store)).unwrap();
    for _ in 0..3 {
        assert_eq!(machine.boot(), bad);
    }
    assert_eq!(machine.boot(), FIRST);
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    let record = machine.record();
    let deployment = record.deployment(bad).unwrap();
    assert_eq!(deployment.state, State::Bad);
    assert!(deployment.failure.is_some());
    assert!(record.bad.is_empty(), "{:?}", record.bad);
    // The next change, and the next upgrade, begin from what boots.
    let second = change(&machine, &appending("debug"));
    assert_eq!(kargs(&machine, second), ["image=1", "local=1", "debug"]);
}

#[test]
fn a_change_of_arguments_and_an_upgrade_go_together_in_either_order() {
    for arguments_first in [true, false] {
        let mut machine = Simulated::proven();
        let staged = if arguments_first {
            change(&machine, &appending("debug"));
            stage(&machine, 2)
        } else {
            stage(&machine, 2);
            change(&machine, &appending("debug"))
        };
        assert_eq!(machine.record().deployments.len(), 2);
        assert_eq!(kargs(&machine, staged), ["image=2", "local=1", "debug"]);
        assert_eq!(proven(&mut machine), staged);
    }
}

#[test]
fn an_upgrade_without_anything_new_leaves_staged_arguments_alone() {
    let machine = Simulated::proven();
    let staged = change(&machine, &appending("debug"));
    let target = machine.image(1);
    let staging = Staging {
        image: &name(),
        target: &target,
        retry: false,
    };
    let done = machine.with(|m| m.stage(&machine.store, &staging)).unwrap();
    assert!(matches!(done, Staged::Already(there) if there.id == staged));
}

#[test]
fn a_change_that_is_taken_back_leaves_nothing_staged() {
    let machine = Simulated::proven();
    let staged = change(&machine, &appending("debug"));
    let back = machine
        .with(|m| m.change_kargs(&machine.store, &deleting("debug")))
        .unwrap();
    assert_eq!(back.outcome, Outcome::Cancelled { staged });
    assert_eq!(machine.record().deployments.len(), 1);
    assert_eq!(machine.store.pins().unwrap().len(), 1);
    let edit = Edit {
        replace: vec!["local=1".into()],
        ..Edit::default()
    };
    let nothing = machine
        .with(|m| m.change_kargs(&machine.store, &edit))
        .unwrap();
    assert_eq!(nothing.outcome, Outcome::Unchanged);
}

#[test]
fn a_plan_changes_nothing_and_what_makes_no_sense_is_refused() {
    let machine = Simulated::proven();
    let before = machine.record();
    let plan = |edit: Edit| machine.with(|m| m.plan_kargs(&machine.store, &edit));
    let planned = plan(appending("debug")).unwrap();
    assert!(matches!(
        planned.outcome,
        Outcome::Staged { replaces: None, .. }
    ));
    assert!(
        planned
            .after
            .arguments
            .iter()
            .any(|k| k.argument == "debug")
    );
    let error = plan(appending("root=/dev/sda")).unwrap_err();
    assert!(matches!(error, KargsError::Edit(EditError::Owned(_))));
    let error = plan(deleting("nothing")).unwrap_err();
    assert!(matches!(error, KargsError::Edit(EditError::Missing(_))));
    let error = plan(appending(&"x".repeat(2000))).unwrap_err();
    assert!(matches!(error, KargsError::Long(_)), "{error}");
    assert_eq!(machine.record(), before);
}
