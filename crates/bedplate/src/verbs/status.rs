//! `status`: shows this machine's deployments. Changes nothing, and takes no lock.

use std::io::{self, Write};

use anyhow::Context as _;
use bedplate_deploy::status::{self, DeploymentStatus, Room, Status};
use bedplate_deploy::{Host, Machine};
use bedplate_model::record::EtcMode;

use crate::Answer;
use crate::cli;
use crate::context::Context;
use crate::render::{ago, bytes, json, short};

pub(super) fn run(arguments: &cli::Status, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let now = context.host.now();
    let status = if rustix::process::geteuid().is_root() {
        let host = context.machine()?;
        Machine::open(&host)?
            .status()
            .context("cannot read the machine's state")?
    } else {
        // Record and boot partition are root's; everybody else reads what the last change left.
        context.require_machine()?;
        let host = Host::this_machine(now, context.actor(), &Context::config());
        status::summary(&host).context("cannot read the machine's state")?
    };
    if arguments.json {
        json(context.out, &status)?;
    } else {
        draw(context.out, &status, now)?;
    }
    Ok(Answer::Yes)
}

fn draw(out: &mut dyn Write, status: &Status, now: i64) -> io::Result<()> {
    for deployment in &status.deployments {
        draw_deployment(out, status, deployment, now)?;
    }
    let trust = &status.trust;
    let objects = match trust.objects.as_str() {
        "require" => "checked by the kernel at each open",
        "measured" => "measured by early boot before the mount",
        _ => "not checked",
    };
    writeln!(
        out,
        "Trust: image {}, objects {objects}, signature {}",
        if trust.image {
            "is the record's"
        } else {
            "is NOT the record's"
        },
        if trust.signature {
            "checked"
        } else {
            "not asked for"
        },
    )?;
    let room = |room: &Room| format!("{} of {} free", bytes(room.free), bytes(room.size));
    writeln!(
        out,
        "Room: root {}, boot partition {}",
        room(&status.root),
        room(&status.boot)
    )?;
    writeln!(out, "Loader: {}", status.loader)?;
    writeln!(
        out,
        "Watchdog: {}",
        if status.watchdog {
            "there"
        } else {
            "none: a machine that hangs needs a hand"
        }
    )?;
    if status.usr_writable {
        writeln!(
            out,
            "/usr can be written until the next reboot, and is not what was checked."
        )?;
    }
    if let Some(waits) = &status.waits {
        let until = waits.until().map(|at| format!(" ({})", ago(at, now)));
        writeln!(
            out,
            "Upgrading by itself waits {waits}{}",
            until.unwrap_or_default()
        )?;
    }
    if status.interrupted {
        writeln!(
            out,
            "A change was interrupted; the next boot or change completes or undoes it."
        )?;
    }
    draw_health(out, status)?;
    for bad in &status.bad {
        writeln!(
            out,
            "Bad: {} failed {}: {}",
            bad.manifest,
            ago(bad.seen, now),
            bad.reason
        )?;
        draw_output(out, bad.output.as_deref())?;
    }
    Ok(())
}

/// Says what of this boot is not healthy.
fn draw_health(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    let Some(health) = &status.health else {
        return Ok(());
    };
    if let Some(failure) = &health.failure {
        writeln!(out, "Not healthy: {}", failure.reason)?;
        draw_output(out, failure.output.as_deref())?;
    }
    for script in &health.scripts {
        // What is required and failed was said.
        if let (Some(failure), None) = (&script.failure, &health.failure) {
            writeln!(out, "Warning: {} {failure}", script.path.display())?;
            draw_output(out, Some(&script.output))?;
        }
    }
    if !health.failed_units.is_empty() {
        writeln!(out, "Failed units: {}", health.failed_units.join(", "))?;
    }
    Ok(())
}

/// Draws what a check printed.
fn draw_output(out: &mut dyn Write, output: Option<&str>) -> io::Result<()> {
    for line in output.unwrap_or_default().lines() {
        writeln!(out, "    | {line}")?;
    }
    Ok(())
}

fn draw_deployment(
    out: &mut dyn Write,
    status: &Status,
    deployment: &DeploymentStatus,
    now: i64,
) -> io::Result<()> {
    let mut words = vec![deployment.state.to_string()];
    if deployment.booted {
        words.insert(0, "booted".into());
    }
    if status.staged.is_none() && deployment.default && !deployment.booted {
        words.push("boots next".into());
    }
    if status.staged == Some(deployment.id) {
        words.push("boots next".into());
    }
    if status.previous == Some(deployment.id) {
        words.push("rollback goes here".into());
    }
    if deployment.pinned {
        words.push("pinned".into());
    }
    if let Some(tries) = deployment.tries_left {
        words.push(format!("{tries} tries left"));
    }
    let marker = if deployment.booted { '*' } else { ' ' };
    writeln!(
        out,
        "{marker} {}  {}  {}  ({})",
        deployment.index,
        deployment.id,
        deployment.title,
        words.join(", ")
    )?;
    let mut line = |name: &str, value: &str| writeln!(out, "    {name:<9} {value}");
    line("image", &deployment.image.to_string())?;
    if let Some(version) = &deployment.version {
        line("version", version)?;
    }
    line("kernel", &deployment.kernel)?;
    line("root", &deployment.root_digest.to_string())?;
    if let Some(manifest) = &deployment.manifest_digest {
        line("manifest", short(&manifest.to_string()))?;
    }
    if deployment.etc != EtcMode::Merged {
        line("etc", deployment.etc.name())?;
    }
    line("made", &ago(deployment.created, now))?;
    if let Some(reason) = &deployment.reason {
        line("reason", reason)?;
    }
    let failure = deployment.failure.as_ref();
    // What is bad because of it says so already.
    if let Some(failure) = failure
        && deployment.reason.as_ref() != Some(&failure.reason)
    {
        line("failure", &failure.reason)?;
    }
    for conflict in &deployment.etc_conflicts {
        line("conflict", &conflict.to_string())?;
    }
    draw_output(out, failure.and_then(|failure| failure.output.as_deref()))
}
