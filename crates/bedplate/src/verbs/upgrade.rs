//! `upgrade` and `switch`: fetch an image while the machine works, and stage it for the next shutdown.

use anyhow::Context as _;
use bedplate_deploy::stage::UpgradePlan;
use bedplate_deploy::{Machine, Staged, Staging};
use bedplate_model::ImageName;
use bedplate_model::record::Deployment;
use bedplate_transport::PullOptions;
use serde::Serialize;

use super::diff::draw;
use crate::Answer;
use crate::blame::{Blame, Refusal};
use crate::cli::{Remote, Stage, Switch, Upgrade};
use crate::context::{Context, find_image};
use crate::render::json;
use crate::render::progress::{Progress, TransferProgress};

/// What came of it, for programs.
#[derive(Serialize)]
struct Outcome {
    image: String,
    root_digest: String,
    manifest_digest: Option<String>,
    /// There is something that this machine does not have staged or running.
    newer: bool,
    /// The deployment that was staged.
    staged: Option<String>,
    bytes_fetched: u64,
}

pub(super) fn upgrade(upgrade: &Upgrade, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let host = context.machine()?;
    let machine = Machine::open(&host)?;
    let record = machine.record()?;
    let booted = machine.booted().deployment;
    let name = record
        .deployment(booted)
        .map(|deployment| deployment.image.clone())
        .with_context(|| format!("the record does not have the booted deployment {booted}"))?;
    if name.is_local() && upgrade.stage.from.is_none() {
        return Err(Refusal::usage(
            format!("this machine has no source of upgrades: {name} is in no registry"),
            "`bedplate switch HOST/REPOSITORY:TAG` names one, also for later upgrades",
        )
        .into());
    }
    stage(&machine, &name, &upgrade.remote, &upgrade.stage, context)
}

pub(super) fn switch(switch: &Switch, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let host = context.machine()?;
    let machine = Machine::open(&host)?;
    stage(
        &machine,
        &switch.name,
        &switch.remote,
        &switch.stage,
        context,
    )
}

fn stage(
    machine: &Machine<'_>,
    name: &ImageName,
    remote: &Remote,
    stage: &Stage,
    context: &mut Context<'_>,
) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let client = context.client(remote)?;
    let options = PullOptions {
        layout: stage.from.clone(),
        ..PullOptions::new(context.host.now())
    };
    if stage.check {
        let found = client
            .look(name, &options)
            .with_context(|| format!("cannot look for {name}"))?;
        let record = machine.record()?;
        let known = record
            .deployments
            .iter()
            .any(|deployment| deployment.manifest == Some(found) && deployment.image == *name);
        if stage.json {
            let newer =
                serde_json::json!({ "image": name, "manifest_digest": found, "newer": !known });
            json(context.out, &newer)?;
        } else if known {
            writeln!(context.out, "{name} is what this machine has ({found})")?;
        } else {
            writeln!(context.out, "{name} has something newer ({found})")?;
        }
        return Ok(if known { Answer::No } else { Answer::Yes });
    }

    // 1. Everything that the image needs is in the store …
    let progress = Progress::new(context.quiet);
    let pulled = client
        .pull(&store, name, &options, &TransferProgress::new(&progress))
        .with_context(|| format!("cannot fetch {name}"))?;
    progress.finish();
    let target = find_image(&store, &name.clone().into())?.target;
    let staging = Staging {
        image: name,
        target: &target,
        retry: stage.retry,
    };
    // 2. … before it is decided what to do.
    let attempted = || format!("cannot stage {name}");
    let plan = machine
        .plan_stage(&store, &staging)
        .with_context(attempted)?;
    let staged = match &plan {
        Some(_) if !stage.dry_run => {
            let staged = machine.stage(&store, &staging).with_context(attempted)?;
            machine.publish().with_context(attempted)?;
            match staged {
                Staged::New(deployment) => Some(deployment.id.to_string()),
                Staged::Already(_) => None,
            }
        }
        Some(_) | None => None,
    };
    if stage.json {
        let outcome = Outcome {
            image: name.to_string(),
            root_digest: pulled.root.to_string(),
            manifest_digest: Some(pulled.manifest.to_string()),
            newer: plan.is_some(),
            staged: staged.clone(),
            bytes_fetched: pulled.bytes_fetched,
        };
        json(context.out, &outcome)?;
    } else {
        writeln!(context.out, "Image:    {name}")?;
        writeln!(context.out, "Manifest: {}", pulled.manifest)?;
        writeln!(context.out, "Fetched:  {}", super::pull::fetched(&pulled))?;
        match &plan {
            None => writeln!(context.out, "nothing to do: this machine has it already")?,
            Some(plan) => draw_plan(context, plan)?,
        }
        if let Some(id) = &staged {
            writeln!(
                context.out,
                "staged as deployment {id}; it boots at the next reboot"
            )?;
        }
    }
    if stage.apply && staged.is_some() {
        reboot(context, stage.json)?;
    }
    Ok(Answer::Yes)
}

fn draw_plan(context: &mut Context<'_>, plan: &UpgradePlan) -> anyhow::Result<()> {
    let named = |deployment: &Deployment| match &deployment.version {
        Some(version) => format!("{} {version}", deployment.title),
        None => deployment.title.clone(),
    };
    writeln!(
        context.out,
        "Version:  {} → {}",
        named(&plan.from),
        named(&plan.to)
    )?;
    draw(context.out, &plan.summary)?;
    if let Some(id) = plan.replaces {
        writeln!(context.out, "the staged deployment {id} is given up for it")?;
    }
    for conflict in &plan.conflicts {
        writeln!(context.out, "conflict in /etc: {conflict}")?;
    }
    Ok(())
}

/// Asks the service manager for a reboot: staged work is finalized on the way down. Says so, unless what is
/// printed is for programs.
pub(super) fn reboot(context: &mut Context<'_>, json: bool) -> anyhow::Result<()> {
    if !json {
        writeln!(context.out, "rebooting")?;
    }
    context.out.flush()?;
    let status = std::process::Command::new("systemctl")
        .arg("reboot")
        .status()
        .context("cannot run systemctl reboot")?;
    if !status.success() {
        return Err(Refusal {
            blame: Blame::Host,
            message: "systemctl reboot failed".into(),
            hint: Some("what was staged boots at the next reboot, however it comes".into()),
        }
        .into());
    }
    Ok(())
}
