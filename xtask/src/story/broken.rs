//! Version 3, which is broken on purpose, and the machine that heals itself.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use testkit::qemu::Machine;

use super::{FOLLOWED, Narrator, Published, Stage, Version, check_booted, status, text};
use crate::images::{self, Tree};
use crate::registry::Registry;
use crate::run;

/// What breaks version 3: a check that looks for something that nobody installed.
const CHECK: &str = "usr/lib/greenboot/check/required.d/50-lathe.sh";
const CHECK_TEXT: &str = "test -e /usr/bin/lathe || { echo 'the lathe is missing'; exit 1; }\n";

impl Stage {
    /// Publishes version 3, has the machine upgrade to it, and sees it come back.
    pub(super) fn break_and_heal(
        &self,
        narrator: &mut Narrator,
        machine: &mut Machine,
        published: &Published,
        registry: &Registry,
    ) -> Result<()> {
        narrator.step("Publish version 3, which is broken: a required health check of it fails");
        let third = self.build(narrator, 3, &self.broken_tree()?)?;
        self.push(narrator, registry, &third, FOLLOWED)?;

        narrator.step("The machine upgrades to it, finds out, and heals itself");
        narrator.guest(machine, "bedplate upgrade")?;
        machine.check("systemctl reboot || true")?;
        let base = &published.first;
        let took = machine.wait_for_boot(&runs(base)?)?;
        narrator.fact(&format!(
            "version 1 runs again after {:.0} s; nobody helped",
            took.as_secs_f32()
        ));
        check_booted(narrator, machine, base)?;
        check_remembered(machine, &third)?;
        narrator.fact("version 3 is remembered, with what its check printed");

        let again = machine.run("bedplate upgrade")?;
        ensure!(
            again.code == 4 && again.stderr.contains("failed on this machine before"),
            "an upgrade to the bad version ended with {}: {}{}",
            again.code,
            again.stdout,
            again.stderr
        );
        narrator.told("bedplate upgrade", &again.stderr);
        narrator.fact("it is not staged again until the tag moves or somebody says --retry");
        Ok(())
    }

    /// A copy of version 2's tree with one file more.
    fn broken_tree(&self) -> Result<Tree> {
        let path: PathBuf = self.place.join("broken");
        run::output(
            Tree::reader(Path::new("cp"))
                .args(["--archive", "--reflink=auto"])
                .arg(&self.images.second.path)
                .arg(&path),
        )?;
        let check = path.join(CHECK);
        let directory = check.parent().context("the check has a directory")?;
        run::output(
            Tree::reader(Path::new("mkdir"))
                .arg("--parents")
                .arg(directory),
        )?;
        let script = "printf '%s' \"$1\" >\"$2\"";
        run::output(
            Tree::reader(Path::new("sh"))
                .args(["-c", script, "sh", CHECK_TEXT])
                .arg(check),
        )?;
        Ok(Tree { path })
    }

    /// Removes the copy.
    pub(super) fn forget_broken_tree(&self) -> Result<()> {
        images::remove(&self.place.join("broken"))
    }
}

/// A script that succeeds where a version runs.
fn runs(version: &Version) -> Result<String> {
    let (_, image) = version
        .root
        .split_once('/')
        .context("a root digest names its rule set")?;
    Ok(format!("grep --quiet {image} /run/bedplate/booted.json"))
}

fn check_remembered(machine: &mut Machine, version: &Version) -> Result<()> {
    let status = status(machine)?;
    let bad = status["bad"]
        .as_array()
        .and_then(|bad| bad.last())
        .with_context(|| format!("the status knows of no bad version: {status:#}"))?;
    ensure!(
        text(bad, "reason")?.contains("50-lathe.sh ended with 1")
            && text(bad, "output")? == "the lathe is missing",
        "the bad version is remembered as {bad:#}"
    );
    let deployment = status["deployments"]
        .as_array()
        .and_then(|all| all.iter().find(|one| one["root_digest"] == *version.root));
    ensure!(
        deployment.is_some_and(|one| one["state"] == "bad"),
        "the deployment of the bad version is not called bad: {status:#}"
    );
    Ok(())
}
