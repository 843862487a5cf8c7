//! `internal check`, `prove` and `heal`: the health gate, as the machine's units call it.

use std::io;
use std::num::NonZeroU32;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use bedplate_deploy::firmware::{EFIVARS, EfiVariables};
use bedplate_deploy::health::{self, Healing, Kind, Outcome, StayReason, Systemctl};
use bedplate_deploy::loader::LoaderUpdate;
use bedplate_deploy::{Host, Machine};
use bedplate_store::{GcPolicy, Store};

use super::upgrade::reboot;
use crate::Answer;
use crate::blame::sentence;
use crate::context::Context;
use crate::render::bytes;

/// The running system's root.
const SYSTEM: &str = "/";
/// How often units are looked at during the probation, in seconds.
const LOOK: u64 = 2;

/// Runs the health checks; the answer is no where one fails that is required.
pub(super) fn check(host: &Host, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let checked = listening(context, |told| {
        health::check(&host.run, Path::new(SYSTEM), &host.health, told)
    })?;
    let report = checked.context("cannot check the health of what was booted")?;
    Ok(match report.failure {
        None => Answer::Yes,
        Some(failure) => {
            writeln!(context.out, "not healthy: {}", failure.reason)?;
            Answer::No
        }
    })
}

/// Watches what was booted, and proves it.
pub(super) fn prove(host: &Host, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let machine = Machine::open(host)?;
    let report = health::watch(&machine, &Systemctl, &host.health, &mut || {
        thread::sleep(Duration::from_secs(LOOK));
        LOOK
    })
    .context("cannot watch what was booted")?;
    if let Some(failure) = report.failure {
        writeln!(context.out, "not healthy: {}", failure.reason)?;
        return Ok(Answer::No);
    }
    let proved = machine
        .prove(&store, &report.failed_units)
        .context("cannot prove what was booted")?;
    machine
        .publish()
        .context("cannot write the machine's state")?;
    writeln!(
        context.out,
        "deployment {} is proven",
        machine.booted().deployment
    )?;
    tell(host, Kind::Green, context)?;
    update_loader(&machine, &store, context)?;
    if proved.is_new() {
        clean(host, &store, context)?;
    }
    Ok(Answer::Yes)
}

/// Removes from the store what a machine does not keep. It is as healthy with it.
fn clean(host: &Host, store: &Store, context: &mut Context<'_>) -> anyhow::Result<()> {
    let Some(keep) = NonZeroU32::new(host.keep.images) else {
        return Ok(());
    };
    let policy = GcPolicy {
        keep: Some(keep),
        ..GcPolicy::default()
    };
    match store.gc(&policy, false) {
        Ok(report) => writeln!(
            context.out,
            "{} of old versions were removed from the store",
            bytes(report.freed_bytes())
        )?,
        Err(error) => writeln!(
            context.out,
            "the store is not cleaned: {}",
            sentence(&error)
        )?,
    }
    Ok(())
}

/// Lets the loader follow the proven image's. The machine is as healthy without.
fn update_loader(
    machine: &Machine<'_>,
    store: &Store,
    context: &mut Context<'_>,
) -> anyhow::Result<()> {
    if !Context::config().boot.update_loader {
        return Ok(());
    }
    let started = EfiVariables::of(Path::new(EFIVARS)).started();
    match machine.update_loader(store, started.as_ref()) {
        Ok(LoaderUpdate::Current) => {}
        Ok(LoaderUpdate::Written { path, version }) => {
            writeln!(context.out, "the loader {path} is {version} now")?;
        }
        Ok(LoaderUpdate::Waits(version)) => writeln!(
            context.out,
            "the second copy of the loader follows when the first has started the machine with {version}"
        )?,
        Err(error) => writeln!(context.out, "the loader stays: {}", sentence(&error))?,
    }
    Ok(())
}

/// Writes down why what was booted is not healthy, and restarts the machine where that helps.
pub(super) fn heal(host: &Host, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let machine = Machine::open(host)?;
    let healed = machine
        .heal(&store, &Systemctl)
        .context("cannot look after what was booted")?;
    writeln!(context.out, "not healthy: {}", healed.failure.reason)?;
    if let Some(error) = &healed.unwritten {
        writeln!(context.out, "that is not written down: {}", sentence(error))?;
    } else if let Err(error) = machine.publish() {
        writeln!(context.out, "no summary: {}", sentence(&error))?;
    }
    tell(host, Kind::Red, context)?;
    match healed.healing {
        Healing::Restart => {
            writeln!(
                context.out,
                "restarting: it is tried again, or what was proven before boots"
            )?;
            reboot(context, false)?;
        }
        Healing::Stay(StayReason::Proven) => writeln!(
            context.out,
            "this version was proven before, so the machine stays up; `bedplate rollback` goes back"
        )?,
        Healing::Stay(StayReason::Only) => writeln!(
            context.out,
            "there is nothing else to boot, so the machine stays up"
        )?,
    }
    Ok(Answer::Yes)
}

/// Tells scripts of the result; what becomes of them changes nothing.
fn tell(host: &Host, kind: Kind, context: &mut Context<'_>) -> anyhow::Result<()> {
    let told = listening(context, |told| {
        health::tell(Path::new(SYSTEM), kind, &host.health, told)
    })?;
    if let Err(error) = told {
        writeln!(context.out, "{}", sentence(&error))?;
    }
    Ok(())
}

/// Does something that runs scripts, and prints what came of each.
fn listening<T>(
    context: &mut Context<'_>,
    work: impl FnOnce(&mut dyn FnMut(Kind, &Outcome)) -> T,
) -> io::Result<T> {
    let mut lines = Vec::new();
    let result = work(&mut |kind, outcome| lines.push(line(kind, outcome)));
    for line in lines {
        writeln!(context.out, "{line}")?;
    }
    Ok(result)
}

/// Says what came of a script.
fn line(kind: Kind, outcome: &Outcome) -> String {
    let kind = match kind {
        Kind::Required => "required check",
        Kind::Wanted => "wanted check",
        Kind::Green | Kind::Red => "script",
        Kind::PreReboot => "hook",
    };
    let path = outcome.path.display();
    match &outcome.failure {
        None => format!("{kind} {path} passed"),
        Some(failure) if outcome.output.is_empty() => format!("{kind} {path} {failure}"),
        Some(failure) => format!("{kind} {path} {failure}:\n{}", outcome.output),
    }
}
