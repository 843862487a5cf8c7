//! More than two deployments: pinned, undeployed, gone back to.

use bedplate_deploy::Finalized;
use bedplate_deploy::pin::PinError;
use bedplate_deploy::rollback::RollbackError;
use bedplate_deploy::undeploy::UndeployError;
use bedplate_model::record::{DeploymentId, State};

use super::life::{stage, upgrade};
use super::simulated::{FIRST, Simulated};

/// Upgrades to a version that proves itself.
fn upgraded(machine: &mut Simulated, version: u8) -> DeploymentId {
    let id = upgrade(machine, version);
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    id
}

fn ids(machine: &Simulated) -> Vec<DeploymentId> {
    machine.record().deployments.iter().map(|d| d.id).collect()
}

#[test]
fn a_pinned_deployment_outlives_upgrades_and_can_be_gone_back_to() {
    let mut machine = Simulated::proven();
    let first = FIRST.into();
    let pinned = machine.with(|m| m.pin(&machine.store, &first)).unwrap();
    assert!(pinned.changed);
    let again = machine.with(|m| m.pin(&machine.store, &first)).unwrap();
    assert!(!again.changed);
    let second = upgraded(&mut machine, 2);
    let third = upgraded(&mut machine, 3);
    assert_eq!(ids(&machine), [third, second, FIRST]);
    let fourth = upgraded(&mut machine, 4);
    assert_eq!(ids(&machine), [fourth, third, FIRST]);

    // What is staged gives way, whichever deployment is gone back to.
    let staged = stage(&machine, 5);
    let status = machine.with(|m| m.status()).unwrap();
    assert_eq!(status.previous, Some(third));
    assert!(status.deployments[3].pinned);
    let place = "3".parse().unwrap();
    let plan = machine
        .with(|m| m.rollback(&machine.store, Some(&place)))
        .unwrap();
    assert_eq!(
        (plan.from, plan.to.id, plan.discards),
        (fourth, FIRST, Some(staged))
    );
    assert_eq!(machine.boot(), FIRST);
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    assert_eq!(
        ids(&machine),
        [fourth, FIRST],
        "a second rollback goes to the newest"
    );
    machine.with(|m| m.rollback(&machine.store, None)).unwrap();
    assert_eq!(machine.boot(), fourth);

    // Without its pin it stays while a rollback would go to it, and then no longer.
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    let unpinned = machine.with(|m| m.unpin(&machine.store, &first)).unwrap();
    assert!(unpinned.changed && !unpinned.removed);
    let fifth = upgraded(&mut machine, 5);
    assert_eq!(ids(&machine), [fifth, fourth]);
}

#[test]
fn unpinning_what_nothing_else_needs_removes_it() {
    let mut machine = Simulated::proven();
    let first = FIRST.into();
    machine.with(|m| m.pin(&machine.store, &first)).unwrap();
    let second = upgraded(&mut machine, 2);
    let third = upgraded(&mut machine, 3);
    let unpinned = machine.with(|m| m.unpin(&machine.store, &first)).unwrap();
    assert!(unpinned.removed);
    assert_eq!(ids(&machine), [third, second]);
    assert!(!machine.etc(FIRST).exists());
    assert_eq!(machine.entries().len(), 2);
}

#[test]
fn a_pinned_trial_that_fails_stays_to_be_looked_at() {
    let mut machine = Simulated::proven();
    let bad = upgrade(&mut machine, 2);
    let selector = bad.into();
    machine.with(|m| m.pin(&machine.store, &selector)).unwrap();
    while machine.boot() != FIRST {}
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    let third = upgraded(&mut machine, 3);
    assert_eq!(ids(&machine), [third, bad, FIRST]);
    assert_eq!(machine.record().deployment(bad).unwrap().state, State::Bad);
    assert!(machine.etc(bad).exists());
    let error = machine
        .with(|m| m.rollback(&machine.store, Some(&selector)))
        .unwrap_err();
    assert!(matches!(error, RollbackError::NotProven { .. }));
}

#[test]
fn what_is_staged_cannot_be_pinned_nor_gone_back_to() {
    let machine = Simulated::proven();
    let staged = stage(&machine, 2);
    let selector = staged.into();
    let error = machine
        .with(|m| m.pin(&machine.store, &selector))
        .unwrap_err();
    assert!(matches!(error, PinError::Staged(id) if id == staged));
    let error = machine
        .with(|m| m.rollback(&machine.store, Some(&selector)))
        .unwrap_err();
    assert!(matches!(error, RollbackError::NotProven { .. }));
    assert_eq!(
        ids(&machine),
        [staged, FIRST],
        "what was refused did nothing"
    );
}

#[test]
fn an_upgrade_is_cancelled_by_undeploying_what_is_staged() {
    let mut machine = Simulated::proven();
    let staged = stage(&machine, 2).into();
    let plan = machine.with(|m| m.plan_undeploy(&staged)).unwrap();
    assert!(plan.cancels && !plan.last_previous);
    assert_eq!(ids(&machine).len(), 2, "a plan does nothing");
    machine
        .with(|m| m.undeploy(&machine.store, &staged))
        .unwrap();
    assert_eq!(machine.store.pins().unwrap().len(), 1);
    let done = machine.with(|m| m.finalize(&machine.store)).unwrap();
    assert_eq!(done, Finalized::Nothing);
    assert_eq!(machine.boot(), FIRST);
}

#[test]
fn what_is_relied_upon_is_not_undeployed() {
    let mut machine = Simulated::proven();
    let first = FIRST.into();
    let undeploy = |machine: &Simulated, which: &str| {
        let which = which.parse().unwrap();
        machine
            .with(|m| m.undeploy(&machine.store, &which))
            .unwrap_err()
    };
    assert!(matches!(undeploy(&machine, "0"), UndeployError::Booted(_)));
    assert!(matches!(undeploy(&machine, "9"), UndeployError::Find(_)));
    let second = upgrade(&mut machine, 2);
    let error = undeploy(&machine, "1");
    assert!(matches!(error, UndeployError::FallBack { id: FIRST, trial } if trial == second));
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    machine.with(|m| m.pin(&machine.store, &first)).unwrap();
    assert!(matches!(undeploy(&machine, "1"), UndeployError::Pinned(_)));
    machine.with(|m| m.rollback(&machine.store, None)).unwrap();
    assert!(matches!(undeploy(&machine, "0"), UndeployError::Booted(_)));
    assert_eq!(machine.boot(), FIRST);
    let second = second.into();
    let plan = machine
        .with(|m| m.undeploy(&machine.store, &second))
        .unwrap();
    assert!(plan.last_previous);
    assert_eq!(ids(&machine), [FIRST]);
    assert_eq!(machine.entries().len(), 1);
}

#[test]
fn what_boots_next_is_not_undeployed() {
    let mut machine = Simulated::proven();
    upgraded(&mut machine, 2);
    machine.with(|m| m.rollback(&machine.store, None)).unwrap();
    let first = FIRST.into();
    let error = machine
        .with(|m| m.undeploy(&machine.store, &first))
        .unwrap_err();
    assert!(matches!(error, UndeployError::Default(FIRST)));
}
