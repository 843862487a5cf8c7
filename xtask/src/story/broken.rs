//! Versions that are broken on purpose, and the machine that heals itself.
//!
//! ```text
//! a health check that fails      version 3 of the story
//! a kernel that does not load    damaged on the boot partition, with the machine switched off
//! an initramfs that is none      likewise
//! a kernel that panics           by a unit of the image
//! ```

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::qemu::Machine;

use super::{FOLLOWED, Narrator, PROVING, Published, Stage, Version, check_booted, status, text};
use crate::images::{self, Tree};
use crate::registry::Registry;
use crate::run;

/// What breaks version 3: a check that looks for something that nobody installed.
const CHECK: &str = "usr/lib/greenboot/check/required.d/50-lathe.sh";
const CHECK_TEXT: &str = "test -e /usr/bin/lathe || { echo 'the lathe is missing'; exit 1; }\n";

/// What has the kernel panic as soon as there are services.
const PANIC: [(&str, &str); 2] = [
    (
        "usr/lib/systemd/system/panic.service",
        "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/sh -c 'echo c >/proc/sysrq-trigger'\n",
    ),
    (
        "usr/lib/systemd/system/sysinit.target.d/panic.conf",
        "[Unit]\nWants=panic.service\n",
    ),
];
/// The directory of kernels on the boot partition.
const BOOT_FILES: &str = "::EFI/bedplate";
/// The partition type of an EFI system partition.
const ESP: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";

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
        let tree = self.broken_tree(&[(CHECK, CHECK_TEXT)])?;
        let third = self.build(narrator, 3, &tree)?;
        self.push(narrator, registry, &third, FOLLOWED)?;

        narrator.step("The machine upgrades to it, finds out, and heals itself");
        narrator.guest(machine, "bedplate upgrade")?;
        machine.run("systemctl reboot")?;
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

    /// Three versions that never get as far as a health check.
    pub(super) fn heal(
        &self,
        narrator: &mut Narrator,
        machine: &mut Machine,
        published: &Published,
        registry: &Registry,
    ) -> Result<()> {
        let Published { first, second } = published;
        machine.wait_until_up()?;
        check_booted(narrator, machine, first)?;
        // Fewer tries, so that this ends sooner.
        let settings = r#"[health]\ntries = 2\nprobation = \"2s\"\n"#;
        machine.check(&format!(
            "mkdir /etc/bedplate && printf '{settings}' >/etc/bedplate/machine.toml"
        ))?;
        self.push(narrator, registry, second, FOLLOWED)?;

        let mut upgrade = "bedplate upgrade";
        for (what, prefix) in [("kernel", "vmlinuz-"), ("initramfs", "initramfs-")] {
            narrator.step(&format!(
                "Version 2's {what} is damaged on the boot partition"
            ));
            let known = boot_files(&self.disk())?;
            narrator.guest(machine, upgrade)?;
            // The answer may be lost with the connection.
            machine.run("systemctl poweroff")?;
            machine.wait_for_exit()?;
            let damaged = damage(&self.disk(), &known, prefix)?;
            narrator.fact(&format!("{damaged} is no {what} any more"));
            *machine = Machine::start(&self.machine(registry))?;
            expect_healed(narrator, machine, first, second)?;
            upgrade = "bedplate upgrade --retry";
        }

        narrator.step("A version whose kernel panics");
        let tree = self.broken_tree(&PANIC)?;
        let third = self.build(narrator, 3, &tree)?;
        self.push(narrator, registry, &third, FOLLOWED)?;
        narrator.guest(machine, "bedplate upgrade")?;
        machine.run("systemctl reboot")?;
        expect_healed(narrator, machine, first, &third)?;

        narrator.step("Version 2 once more, and this time nobody damages it");
        self.push(narrator, registry, second, FOLLOWED)?;
        narrator.guest(machine, "bedplate upgrade --retry")?;
        machine.reboot()?;
        check_booted(narrator, machine, second)?;
        let status = status(machine)?;
        let bad = status["bad"].as_array().map_or(0, Vec::len);
        ensure!(
            bad == 1,
            "version 2 holds, and is bad all the same: {status:#}"
        );
        Ok(())
    }

    /// A copy of version 2's tree with some files more.
    fn broken_tree(&self, files: &[(&str, &str)]) -> Result<Tree> {
        self.forget_broken_tree()?;
        let path = self.place.join("broken");
        run::output(
            Tree::reader(Path::new("cp"))
                .args(["--archive", "--reflink=auto"])
                .arg(&self.images.second.path)
                .arg(&path),
        )?;
        let script = "mkdir --parents \"$(dirname \"$1\")\" && printf '%s' \"$2\" >\"$1\"";
        for (file, text) in files {
            run::output(
                Tree::reader(Path::new("sh"))
                    .args(["-c", script, "sh"])
                    .arg(path.join(file))
                    .arg(text),
            )?;
        }
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

/// Waits until the machine has come back to a version by itself, and remembers another one as bad.
fn expect_healed(
    narrator: &mut Narrator,
    machine: &mut Machine,
    base: &Version,
    bad: &Version,
) -> Result<()> {
    let took = machine.wait_for_boot(&runs(base)?)?;
    narrator.fact(&format!(
        "version 1 runs again after {:.0} s; nobody helped",
        took.as_secs_f32()
    ));
    check_booted(narrator, machine, base)?;
    let started = Instant::now();
    // The version that runs was proven before; that the other one is bad is found at this boot's gate.
    loop {
        let status = status(machine)?;
        let newest = &status["deployments"][0];
        ensure!(
            newest["root_digest"] == *bad.root,
            "{} is not the newest deployment: {status:#}",
            bad.name
        );
        if newest["state"] == "bad" {
            let reason = text(newest, "reason")?;
            ensure!(
                reason == "none of 2 boots reached the health gate",
                "{} is remembered with the reason {reason:?}",
                bad.name
            );
            return Ok(());
        }
        ensure!(
            started.elapsed() < PROVING,
            "{} is not remembered as bad: {status:#}\n{}",
            bad.name,
            machine
                .run("journalctl --boot --no-pager --unit 'bedplate-*'")?
                .stdout
        );
        thread::sleep(Duration::from_millis(500));
    }
}

/// How mtools name the boot partition of a disk.
pub(crate) fn boot_partition(disk: &Path) -> Result<String> {
    Ok(format!("{}@@{}", disk.display(), partition(disk, ESP)?))
}

/// Where the partition of a type begins, in bytes.
pub(super) fn partition(disk: &Path, kind: &str) -> Result<u64> {
    let table = run::output(Command::new("sfdisk").arg("--json").arg(disk))?;
    let table: Value = serde_json::from_str(&table).context("reading the partition table")?;
    let table = &table["partitiontable"];
    let sector = table["sectorsize"].as_u64().unwrap_or(512);
    let start = table["partitions"]
        .as_array()
        .and_then(|all| all.iter().find(|one| one["type"] == kind))
        .and_then(|one| one["start"].as_u64())
        .with_context(|| format!("{} has no partition of the type {kind}", disk.display()))?;
    Ok(start * sector)
}

/// Lists the kernels and initramfs of a boot partition.
fn boot_files(disk: &Path) -> Result<Vec<String>> {
    let listed = run::output(
        Command::new("mdir")
            .args(["-b", "-i", &boot_partition(disk)?])
            .arg(BOOT_FILES),
    )?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// Overwrites the file that is not among the known ones and has this prefix; returns its name.
fn damage(disk: &Path, known: &[String], prefix: &str) -> Result<String> {
    let files = boot_files(disk)?;
    let named = |file: &&String| {
        let name = file.rsplit('/').next().unwrap_or(file);
        name.starts_with(prefix) && !known.contains(file)
    };
    let file = files
        .iter()
        .find(named)
        .with_context(|| format!("no new {prefix}… among {files:?}"))?;
    let nothing = disk.with_file_name("nothing");
    fs::write(&nothing, vec![0x5a; 1 << 20])
        .with_context(|| format!("writing {}", nothing.display()))?;
    run::output(
        Command::new("mcopy")
            .args(["-o", "-i", &boot_partition(disk)?])
            .args([nothing.as_os_str(), file.as_ref()]),
    )?;
    Ok(file.clone())
}
