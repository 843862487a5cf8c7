//! What must hold of the machine that a cut left, and how its life goes on.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use bedplate_deploy::{Finalized, Staging};
use bedplate_model::record::{DeploymentId, Record, State};
use bedplate_model::{ImageName, RootDigest};

use super::left::Left;
use crate::story::recorded::Phase;

/// Both versions, by their root digests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Versions {
    pub(super) first: RootDigest,
    pub(super) second: RootDigest,
}

/// Which of them boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Boots {
    Old,
    New,
}

/// What can be expected of a machine whose power was cut in a phase: all phases before it were over, and
/// whoever asked for them had been told so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) phase: Phase,
}

/// What puts version 2 into a store again, for an upgrade that was cut before it had it.
pub(super) type Pull<'a> = &'a dyn Fn(&Left) -> Result<ImageName>;

impl Expected {
    fn over(self, phase: Phase) -> bool {
        self.phase > phase
    }

    /// Checks what boots, and what the record says about both.
    pub(super) fn check(self, left: &Left, versions: &Versions) -> Result<Boots> {
        let running = left.running()?;
        let record = left.record()?;
        let boots = if running.root == versions.first {
            Boots::Old
        } else if running.root == versions.second {
            Boots::New
        } else {
            bail!("{} boots, which is neither version", running.root);
        };
        let state = |root: &RootDigest| {
            let found = record.deployments.iter().find(|d| d.root == *root);
            found.map(|d| d.state)
        };
        let (first, second) = (state(&versions.first), state(&versions.second));
        if self.over(Phase::FirstBoot) {
            ensure!(
                first == Some(State::Proven),
                "version 1 was proven and is {first:?}"
            );
        }
        if self.over(Phase::Stage) {
            ensure!(
                second.is_some(),
                "version 2 was staged, and the record has lost it"
            );
        }
        if self.over(Phase::Prove) {
            ensure!(
                second == Some(State::Proven),
                "version 2 was proven and is {second:?}"
            );
        }
        let allowed: &[Boots] = match self.phase {
            Phase::FirstBoot | Phase::Life | Phase::Stage => &[Boots::Old],
            Phase::Finalize | Phase::Rollback => &[Boots::Old, Boots::New],
            // Where the loader's own renaming is cut, the trial counts as failed.
            Phase::Trial => &[Boots::Old, Boots::New],
            Phase::Prove => &[Boots::New],
            Phase::Shutdown | Phase::BootBack => &[Boots::Old],
        };
        ensure!(
            allowed.contains(&boots),
            "{boots:?} boots in {:?}; the record: {}",
            self.phase,
            outline(&record)
        );
        self.check_etc(left, running.id, boots)?;
        Ok(boots)
    }

    /// Checks that what boots has its /etc, with what was changed there.
    fn check_etc(self, left: &Left, id: DeploymentId, boots: Boots) -> Result<()> {
        let etc = left.etc(id);
        if !etc.is_dir() {
            ensure!(
                boots == Boots::Old && !self.over(Phase::FirstBoot),
                "deployment {id} boots without its /etc: early boot would make the image's"
            );
            return Ok(()); // early boot makes it
        }
        if self.over(Phase::Life) {
            for (name, text) in [("motd", "Mind the lathe."), ("passwd", "anna:x:1500:")] {
                let path = etc.join(name);
                let found = fs::read_to_string(&path)
                    .with_context(|| format!("reading {}", path.display()))?;
                ensure!(
                    found.contains(text),
                    "{name} of {id} has lost what was changed"
                );
            }
        }
        Ok(())
    }
}

/// Has the machine go on: it settles and is proven, and what was interrupted is done again, twice, and the
/// second time changes nothing. Where its store has all of version 2, it ends there.
pub(super) fn go_on(left: &mut Left, versions: &Versions, pull: Option<Pull<'_>>) -> Result<()> {
    prove(left).context("after the cut")?;
    let running = left.booted.deployment;
    if !left.etc(running).is_dir() {
        return Ok(()); // before its first boot was over: nothing was ever changed
    }
    let mut record = left.record()?;
    let known = |record: &Record, root: &RootDigest| {
        record.deployments.iter().find(|d| d.root == *root).cloned()
    };
    let second = known(&record, &versions.second);
    let staged = match second.map(|second| second.state) {
        Some(State::Proven) => false,
        Some(State::Staged) => true,
        Some(State::Trial) => bail!("version 2 is on trial: {}", outline(&record)),
        Some(State::Bad) | None => match pull {
            Some(pull) => {
                let image = pull(left).context("pulling version 2 again")?;
                stage(left, &image).context("staging version 2 again")?;
                true
            }
            None => return Ok(()),
        },
    };
    if staged {
        left.with(|machine| {
            let done = machine.finalize(&left.store)?;
            ensure!(
                matches!(done, Finalized::Trial { .. }),
                "finalize did {done:?}"
            );
            let again = machine.finalize(&left.store)?;
            ensure!(
                again == Finalized::Nothing,
                "a second finalize did {again:?}"
            );
            Ok(())
        })
        .context("finalizing")?;
        left.reboot().context("booting on trial")?;
        ensure!(
            left.running()?.root == versions.second,
            "the old version boots after finalize"
        );
        left.with(|machine| {
            let done = machine.finalize(&left.store)?;
            ensure!(
                done == Finalized::Nothing,
                "finalize of nothing did {done:?}"
            );
            Ok(())
        })
        .context("shutting down on trial")?;
        prove(left).context("on trial")?;
        record = left.record()?;
        let second = known(&record, &versions.second);
        ensure!(
            second.is_some_and(|d| d.state == State::Proven && d.id == record.default),
            "version 2 is not proven: {}",
            outline(&record)
        );
    }
    Ok(())
}

/// Rolls back and forward again, where there are two versions.
pub(super) fn swap_twice(left: &mut Left) -> Result<()> {
    let here = left.booted.deployment;
    if left.record()?.deployments.len() < 2 {
        return Ok(());
    }
    for way in ["back", "forward"] {
        let to = left
            .with(|machine| Ok(machine.rollback(&left.store, None)?.to.id))
            .with_context(|| format!("rolling {way}"))?;
        let boots = left.reboot()?;
        ensure!(boots == to, "after rolling {way} to {to}, {boots} boots");
        prove(left).with_context(|| format!("after rolling {way}"))?;
    }
    let boots = left.booted.deployment;
    ensure!(
        boots == here,
        "{here} ran before two rollbacks, {boots} after them"
    );
    Ok(())
}

/// Has the health gate pass, twice; then record and boot partition agree.
fn prove(left: &Left) -> Result<()> {
    let once = || left.with(|machine| Ok(machine.prove(&left.store, &[])?.record));
    let record = once().context("proving")?;
    let id = left.booted.deployment;
    ensure!(
        record.intent.is_none(),
        "an intent is open: {}",
        outline(&record)
    );
    let state = record.deployment(id).map(|d| d.state);
    ensure!(
        state == Some(State::Proven) && record.default == id,
        "{id} runs, was proven, and the record says {}",
        outline(&record)
    );
    let plan = left.disagreement()?;
    ensure!(plan.is_empty(), "record and boot partition differ:\n{plan}");
    let again = once().context("proving again")?;
    ensure!(
        again == record,
        "proving again changed the record: {}",
        outline(&again)
    );
    Ok(())
}

fn stage(left: &Left, pulled: &ImageName) -> Result<()> {
    let target = left.store.resolve(pulled)?;
    let target = target.with_context(|| format!("{pulled} was pulled and is not there"))?;
    let image = left.running()?.image;
    let staging = Staging {
        image: &image,
        target: &target,
        retry: true, // an entry that the loader lost is a failed trial
    };
    left.with(|machine| {
        machine.stage(&left.store, &staging)?;
        Ok(())
    })
}

/// A record in few words.
pub(super) fn outline(record: &Record) -> String {
    let all: Vec<String> = record
        .deployments
        .iter()
        .map(|d| format!("{} {:?}", d.id, d.state))
        .collect();
    format!(
        "{}; {} boots by default; intent {:?}",
        all.join(", "),
        record.default,
        record.intent
    )
}
