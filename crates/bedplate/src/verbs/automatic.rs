//! `internal upgrade`: what the timer calls. A machine that is told nothing does nothing; one that cannot upgrade
//! now says what it waits for, in its journal and in `status`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use bedplate_deploy::automatic::{self, Inhibitors, LocalTime, Logind, Memory, Waits};
use bedplate_deploy::config::{Automatic, UpgradeConfig};
use bedplate_deploy::health::{self, Kind};
use bedplate_deploy::{Host, Machine, Staged, Staging};
use bedplate_model::record::State;
use bedplate_transport::PullOptions;

use crate::Answer;
use crate::blame::sentence;
use crate::cli::Remote;
use crate::context::{Context, find_image};
use crate::render::ago;
use crate::render::progress::{Progress, TransferProgress};

/// The running system's root.
const SYSTEM: &str = "/";
/// What tells one machine from another.
const MACHINE_ID: &str = "/etc/machine-id";
/// The time zone.
const LOCAL_TIME: &str = "/etc/localtime";

/// Goes one step further. Whatever keeps it from that is no failure of the unit: the next call tries again.
pub(super) fn run(host: &Host, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let config = Context::config().upgrade;
    let mut memory = Memory::read(&host.root);
    let before = memory.clone();
    if config.automatic == Automatic::Off {
        memory = Memory::default();
    } else {
        memory.waits = match advance(host, &config, &mut memory, context) {
            Ok(waits) => waits,
            Err(error) => Some(Waits::Failed {
                error: sentence(error.as_ref()),
            }),
        };
    }
    if let Some(waits) = &memory.waits {
        write!(context.out, "waits {waits}")?;
        match waits.until() {
            Some(at) => writeln!(context.out, " ({})", ago(at, context.host.now()))?,
            None => writeln!(context.out)?,
        }
    }
    if memory != before {
        memory
            .write(&host.root)
            .context("cannot write down what upgrading waits for")?;
        Machine::open(host)?
            .publish()
            .context("cannot write the machine's state")?;
    }
    Ok(Answer::Yes)
}

/// Looks, stages and restarts, as far as it is time for each; returns what it waits for.
fn advance(
    host: &Host,
    config: &UpgradeConfig,
    memory: &mut Memory,
    context: &mut Context<'_>,
) -> anyhow::Result<Option<Waits>> {
    let machine = Machine::open(host)?;
    let now = context.host.now();
    let status = machine.status()?;
    let Some(runs) = status.deployments.iter().find(|one| one.booted) else {
        bail!(
            "the record does not have the booted deployment {}",
            status.booted
        );
    };
    if runs.state == State::Trial {
        let deployment = runs.id;
        return Ok(Some(Waits::Trial { deployment }));
    }

    // 1. Is there something newer?
    if memory.is_due(config, now) && !runs.image.is_local() {
        let client = context.client(&Remote::default())?;
        let found = client
            .look(&runs.image, &PullOptions::new(now))
            .with_context(|| format!("cannot look for {}", runs.image))?;
        let mut known = status.deployments.iter();
        let known = known.any(|one| one.manifest_digest == Some(found) && one.image == runs.image);
        let bad = status.bad.iter().any(|bad| bad.manifest == found);
        memory.saw((!known && !bad).then_some(found), now);
    }

    // 2. Is it wanted here, and is it this machine's turn?
    let mut staged = status.staged;
    if let Some(newer) = &memory.newer {
        if config.automatic == Automatic::Check {
            let manifest = newer.manifest;
            return Ok(Some(Waits::Word { manifest }));
        }
        let id = fs::read(MACHINE_ID).unwrap_or_default();
        let turn = automatic::turn(config, &id, newer);
        if now < turn {
            return Ok(Some(Waits::Turn { at: turn }));
        }
        let name = runs.image.clone();
        let store = context.store()?;
        let client = context.client(&Remote::default())?;
        let progress = Progress::new(true);
        client
            .pull(
                &store,
                &name,
                &PullOptions::new(now),
                &TransferProgress::new(&progress),
            )
            .with_context(|| format!("cannot fetch {name}"))?;
        let target = find_image(&store, &name.clone().into())?.target;
        let staging = Staging {
            image: &name,
            target: &target,
            retry: false,
        };
        let done = machine
            .stage(&store, &staging)
            .with_context(|| format!("cannot stage {name}"))?;
        memory.newer = None;
        if let Staged::New(deployment) = done {
            writeln!(
                context.out,
                "{name} is staged as deployment {}",
                deployment.id
            )?;
            staged = Some(deployment.id);
        }
    }

    // 3. May the machine restart into it?
    if staged.is_none() || config.automatic != Automatic::Apply {
        return Ok(None);
    }
    let inhibitors = Logind
        .list()
        .context("cannot ask logind who wants the machine to stay up")?;
    if let Err(waits) = automatic::may_restart(config, now, local_time(now)?, &inhibitors) {
        return Ok(Some(waits));
    }
    let hooks = health::hooks(
        Path::new(SYSTEM),
        Kind::PreReboot,
        host.health.script_timeout,
    )
    .context("cannot run the hooks of pre-reboot.d")?;
    for outcome in hooks {
        if let Some(failure) = outcome.failure {
            return Ok(Some(Waits::Hook {
                path: outcome.path,
                failure,
                output: outcome.output,
            }));
        }
    }
    writeln!(context.out, "restarting into what is staged")?;
    context.out.flush()?;
    let asked = Command::new("systemctl")
        .arg("reboot")
        .status()
        .context("cannot run systemctl reboot")?;
    if !asked.success() {
        bail!("systemctl reboot ended with {asked}");
    }
    Ok(None)
}

/// Finds out what time of the week it is here. A machine without a time zone lives in UTC.
fn local_time(now: i64) -> anyhow::Result<LocalTime> {
    let zone = match fs::read(LOCAL_TIME) {
        Ok(bytes) => jiff::tz::TimeZone::tzif("local", &bytes)
            .with_context(|| format!("cannot read the time zone {LOCAL_TIME}"))?,
        Err(_) => jiff::tz::TimeZone::UTC,
    };
    let local = jiff::Timestamp::from_second(now)
        .context("the clock is wrong")?
        .to_zoned(zone);
    let day = local.weekday().to_monday_zero_offset();
    let minute =
        u32::from(local.hour().unsigned_abs()) * 60 + u32::from(local.minute().unsigned_abs());
    Ok(LocalTime::new(u32::from(day.unsigned_abs()), minute))
}
