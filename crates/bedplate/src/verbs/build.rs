//! `build`: makes a bootable image from a root directory.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bedplate_build::{BuildEvent, BuildObserver, BuildOptions};
use bedplate_model::Sha256;
use serde::Serialize;

use crate::Answer;
use crate::blame::{Blame, Refusal};
use crate::cli::Build;
use crate::context::{Context, tag_name};
use crate::render::progress::Progress;
use crate::render::{bytes, json};

/// An image that was built, for programs.
#[derive(Serialize)]
struct Built {
    name: String,
    root_digest: String,
    manifest_digest: Sha256,
    kernel: String,
    version: Option<String>,
    findings: Vec<String>,
}

pub(super) fn run(build: &Build, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let name = tag_name(&build.name)?;
    let attempted = || format!("cannot build {name} from {}", build.rootfs.display());
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let init = match &build.init {
        Some(path) => path.clone(),
        None => init_beside(&program)?,
    };
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let options = BuildOptions {
        program: read(&program)?,
        init: read(&init)?,
        labels: build.labels.iter().cloned().collect(),
        kargs: build.kargs.clone(),
        fatal_warnings: build.fatal_warnings,
        hostname: build.hostname.clone(),
        lints_off: build.skip_lints.clone(),
        compression: build.compression.into(),
        now: context.host.now(),
    };
    let store = context.writable_store()?;
    let drawn = Drawn {
        progress: Progress::new(context.quiet),
    };
    let built = bedplate_build::build(&store, &build.rootfs, &name, &options, &drawn)
        .with_context(attempted)?;
    drawn.progress.finish();
    let out = &mut *context.out;
    if build.json {
        let built = Built {
            name: name.to_string(),
            root_digest: built.root.to_string(),
            manifest_digest: built.manifest,
            kernel: built.kernel,
            version: built.version,
            findings: built.findings.iter().map(ToString::to_string).collect(),
        };
        json(out, &built)?;
        return Ok(Answer::Yes);
    }
    for finding in &built.findings {
        writeln!(out, "{finding}")?;
    }
    writeln!(out, "Image:     {name}")?;
    writeln!(
        out,
        "Version:   {}",
        built.version.as_deref().unwrap_or("none")
    )?;
    writeln!(out, "Kernel:    {}", built.kernel)?;
    writeln!(out, "Root:      {}", built.root)?;
    writeln!(out, "Manifest:  {}", built.manifest)?;
    Ok(Answer::Yes)
}

/// Finds the early-boot program: beside this program in a build directory, in its own place in an image.
fn init_beside(program: &Path) -> anyhow::Result<PathBuf> {
    let beside = program.with_file_name("bedplate-init");
    [beside, PathBuf::from("/usr/lib/bedplate/bedplate-init")]
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Refusal {
                blame: Blame::Host,
                message: "there is no early-boot program to put into the image".into(),
                hint: Some("it is called bedplate-init and lies beside this program, or is named with --init FILE".into()),
            }
            .into()
        })
}

/// Draws how far a build is.
struct Drawn {
    progress: Progress,
}

impl BuildObserver for Drawn {
    fn on(&self, event: BuildEvent<'_>) {
        match event {
            BuildEvent::Taken { bytes } => self.progress.taken(bytes),
            BuildEvent::Found(_) => {}
            BuildEvent::Kernel { release } => self.progress.say(format!("kernel {release}")),
            BuildEvent::Initramfs { bytes: length } => {
                self.progress.say(format!("initramfs of {}", bytes(length)));
            }
            BuildEvent::Packaging => self.progress.say("computing the layer's digest"),
        }
    }
}
