//! `install`: an image becomes a disk that boots. The plan is printed first.

use anyhow::Context as _;
use bedplate_boot::local_kargs;
use bedplate_deploy::install::{
    Firmware, Identifiers, InstallEvent, InstallObserver, InstallOptions, InstallPlan,
};

use crate::Answer;
use crate::blame::Refusal;
use crate::cli::{Boot, Install, ToDisk};
use crate::context::Context;
use crate::render::progress::Progress;

pub(super) fn run(install: &Install, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    match install {
        Install::ToDisk(arguments) => to_disk(arguments, context),
    }
}

fn to_disk(arguments: &ToDisk, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let attempted = || {
        format!(
            "cannot install {} to {}",
            arguments.image,
            arguments.target.display()
        )
    };
    if let Some(argument) = arguments
        .kargs
        .iter()
        .find(|one| local_kargs::is_owned(one))
    {
        return Err(Refusal::usage(
            format!("`{argument}` names the root or the deployment, which is bedplate's to say"),
            "other arguments are taken as they are",
        )
        .into());
    }
    let store = context.store()?;
    let options = InstallOptions {
        firmware: match arguments.boot {
            Boot::Uefi => Firmware::Uefi,
            Boot::Bios => Firmware::Bios,
        },
        size: arguments.size,
        esp_size: arguments.esp_size,
        upgrade_from: arguments.target_image.clone(),
        kargs: arguments.kargs.clone(),
        allow_unsealed: arguments.allow_unsealed,
        wipe: arguments.wipe,
        identifiers: Identifiers::random(),
        now: context.host.now(),
        source_date: context.host.number("SOURCE_DATE_EPOCH"),
    };
    let plan = InstallPlan::new(&store, &arguments.image, &arguments.target, &options)
        .with_context(attempted)?;
    write!(context.out, "{plan}")?;
    context.out.flush()?;
    if arguments.dry_run {
        return Ok(Answer::Yes);
    }
    let mut drawn = Drawn::new(context.quiet);
    let privileged = rustix::process::geteuid().is_root();
    let installed = plan
        .execute(privileged, &mut drawn)
        .with_context(attempted)?;
    drawn.progress.finish();
    writeln!(
        context.out,
        "installed {} as deployment {}",
        arguments.target.display(),
        installed.deployment.id
    )?;
    Ok(Answer::Yes)
}

/// Draws how far an install is.
pub(super) struct Drawn {
    pub(super) progress: Progress,
}

impl Drawn {
    pub(super) fn new(quiet: bool) -> Self {
        Self {
            progress: Progress::new(quiet),
        }
    }
}

impl InstallObserver for Drawn {
    fn on(&mut self, event: InstallEvent) {
        self.progress.say(match event {
            InstallEvent::BootPartition => "writing the boot partition".to_owned(),
            InstallEvent::Content { objects } => format!("putting {objects} objects together"),
            InstallEvent::Root => "writing the root".to_owned(),
            InstallEvent::Table => "writing the partition table".to_owned(),
        });
    }
}
