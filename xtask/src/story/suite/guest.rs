//! One machine of a course, with a registry of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::qemu::{Boot, KeyPair, Machine, MachineOptions, Ran};

use super::super::{
    FOLLOWED, Narrator, PROVING, Stage, Version, Voice, check_booted, status, text,
};
use super::workshop::Workshop;
use crate::images::{self, Tree};
use crate::registry::Registry;
use crate::run;

/// One machine of a course.
pub(super) struct Guest<'w> {
    workshop: &'w Workshop,
    place: PathBuf,
    narrator: Narrator,
    registry: Registry,
    machine: Machine,
}

impl<'w> Guest<'w> {
    /// Copies the workshop's machine and registry, and boots it.
    pub(super) fn start(workshop: &'w Workshop, course: &str) -> Result<Self> {
        let place = workshop.place_of(course);
        images::remove(&place)?;
        fs::create_dir_all(&place).with_context(|| format!("creating {}", place.display()))?;
        let stage = &workshop.stage;
        let copy = |options: &[&str], from: &Path| {
            run::output(Command::new("cp").args(options).arg(from).arg(&place))
        };
        // Blobs never change, and tags are replaced by a rename: links will do.
        copy(&["--archive", "--link"], &stage.place.join("registry"))?;
        // The one file that is not of the registry's content, but held by whoever serves it.
        let lock = place.join("registry/lock");
        fs::remove_file(&lock).with_context(|| format!("removing {}", lock.display()))?;
        copy(&["--sparse=always"], &stage.disk())?;
        copy(&[], &stage.place.join("variables.fd"))?;
        let registry = stage.registry(&place)?;
        let machine = Machine::start(&options(stage, &place, &registry))?;
        let mut guest = Self {
            workshop,
            place,
            narrator: Narrator::new(Voice::Silent),
            registry,
            machine,
        };
        guest.machine.wait_until_up()?;
        guest.expect(guest.first())?;
        Ok(guest)
    }

    /// The version that is installed.
    pub(super) fn first(&self) -> &'w Version {
        &self.workshop.published.first
    }

    /// The version that is newer.
    pub(super) fn second(&self) -> &'w Version {
        &self.workshop.published.second
    }

    /// The machine.
    pub(super) fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Its disk.
    pub(super) fn disk(&self) -> PathBuf {
        disk(&self.workshop.stage, &self.place)
    }

    /// Runs a script in it; one that fails is an error.
    pub(super) fn check(&mut self, script: &str) -> Result<String> {
        self.machine.check(script)
    }

    /// Runs a script in it, however it ends.
    pub(super) fn run(&mut self, script: &str) -> Result<Ran> {
        self.machine.run(script)
    }

    /// Runs a script in it that must not succeed; returns what it said.
    pub(super) fn refused(&mut self, script: &str) -> Result<String> {
        let Ran {
            code,
            stdout,
            stderr,
        } = self.machine.run(script)?;
        ensure!(code != 0, "`{script}` succeeded: {stdout}");
        Ok(format!("{stdout}{stderr}"))
    }

    /// Builds a variant of a version: with some files more.
    pub(super) fn variant(
        &mut self,
        number: u8,
        of: &Version,
        files: &[(&str, &str)],
    ) -> Result<Version> {
        let stage = &self.workshop.stage;
        let original = if of.name == self.first().name {
            &stage.images.first
        } else {
            &stage.images.second
        };
        let tree = self.place.join(format!("tree-{number}"));
        // Links: a build reads, and the files that are added have names of their own.
        run::output(
            Tree::reader(Path::new("cp"))
                .args(["--archive", "--link"])
                .arg(&original.path)
                .arg(&tree),
        )?;
        let script = "mkdir --parents \"$(dirname \"$1\")\" && test ! -e \"$1\" && printf '%s' \"$2\" >\"$1\"";
        for (file, text) in files {
            run::output(
                Tree::reader(Path::new("sh"))
                    .args(["-c", script, "sh"])
                    .arg(tree.join(file))
                    .arg(text),
            )?;
        }
        let version = self.build(number, &Tree { path: tree.clone() })?;
        images::remove(&tree)?;
        Ok(version)
    }

    /// Builds a tree.
    pub(super) fn build(&mut self, number: u8, tree: &Tree) -> Result<Version> {
        self.workshop.stage.build(&mut self.narrator, number, tree)
    }

    /// Lets the tag that the machine follows mean a version.
    pub(super) fn publish(&mut self, version: &Version) -> Result<()> {
        self.publish_as(version, FOLLOWED)
    }

    /// Pushes a version under a tag.
    pub(super) fn publish_as(&mut self, version: &Version, tag: &str) -> Result<()> {
        self.workshop
            .stage
            .push(&mut self.narrator, &self.registry, version, tag)
    }

    /// Publishes a version, upgrades to it, boots it, and sees it proven.
    pub(super) fn upgrade(&mut self, version: &Version) -> Result<()> {
        self.publish(version)?;
        self.check("bedplate upgrade")?;
        self.reboot()?;
        self.expect(version)
    }

    /// Has it reboot in good order.
    pub(super) fn reboot(&mut self) -> Result<()> {
        self.machine.reboot()?;
        Ok(())
    }

    /// Switches it off in good order, and back on after something was done to its disk.
    pub(super) fn off_and_on(&mut self, meanwhile: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.change(meanwhile, |_| {})
    }

    /// Switches it off in good order, and back on with a disk that somebody carried there.
    pub(super) fn carry(&mut self, disk: PathBuf) -> Result<()> {
        self.change(|_| Ok(()), |options| options.carried = Some(disk))
    }

    /// Switches it off in good order, and back on with a watchdog.
    pub(super) fn watch(&mut self) -> Result<()> {
        self.change(|_| Ok(()), |options| options.watchdog = true)
    }

    /// A directory for what a course needs outside of its machine.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// Where its registry is.
    pub(super) fn registry_port(&self) -> u16 {
        self.registry.port()
    }

    fn change(
        &mut self,
        meanwhile: impl FnOnce(&Path) -> Result<()>,
        alter: impl FnOnce(&mut MachineOptions),
    ) -> Result<()> {
        // The answer may be lost with the connection.
        self.machine.run("systemctl poweroff")?;
        self.machine.wait_for_exit()?;
        meanwhile(&self.disk())?;
        let mut options = options(&self.workshop.stage, &self.place, &self.registry);
        alter(&mut options);
        self.machine = Machine::start(&options)?;
        self.machine.wait_until_up()?;
        Ok(())
    }

    /// A version runs, and is proven.
    pub(super) fn expect(&mut self, version: &Version) -> Result<()> {
        check_booted(&mut self.narrator, &mut self.machine, version)
    }

    /// A version runs, whatever came before; it is proven, and its /etc may have conflicts.
    pub(super) fn expect_with_conflicts(&mut self, version: &Version) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let booted = self.booted()?;
            let root = text(&booted, "root_digest")?;
            ensure!(
                root == version.root,
                "{root} runs, and {} was expected",
                version.root
            );
            if booted["state"] == "proven" {
                return Ok(booted);
            }
            ensure!(
                begun.elapsed() < PROVING,
                "it is not proven: {booted:#}\n{}",
                self.gate()?
            );
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits until the machine's units have said something, and returns all that they said in this boot.
    pub(super) fn wait_for_words(&mut self, words: &str) -> Result<String> {
        let begun = Instant::now();
        loop {
            let said = self.gate()?;
            if said.contains(words) {
                return Ok(said);
            }
            ensure!(begun.elapsed() < PROVING, "nobody said `{words}`:\n{said}");
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// The key that opens a shell in it.
    pub(super) fn key(&self) -> &'w KeyPair {
        &self.workshop.stage.images.key
    }

    /// What the health gate said.
    pub(super) fn gate(&mut self) -> Result<String> {
        Ok(self
            .run("journalctl --boot --no-pager --unit 'bedplate-*'")?
            .stdout)
    }

    /// Waits for a boot of a version, however many others come before, and sees it proven.
    pub(super) fn wait_for(&mut self, version: &Version) -> Result<()> {
        let (_, image) = version
            .root
            .split_once('/')
            .context("a root digest names its rule set")?;
        self.machine
            .wait_for_boot(&format!("grep --quiet {image} /run/bedplate/booted.json"))?;
        self.expect(version)
    }

    /// What `bedplate status` says.
    pub(super) fn status(&mut self) -> Result<Value> {
        status(&mut self.machine)
    }

    /// What it says of the deployment that runs.
    pub(super) fn booted(&mut self) -> Result<Value> {
        let status = self.status()?;
        let mut all = status["deployments"].as_array().into_iter().flatten();
        all.find(|one| one["booted"] == true)
            .cloned()
            .with_context(|| format!("nothing is booted: {status:#}"))
    }

    /// Removes what the course made.
    pub(super) fn forget(self) -> Result<()> {
        let Self { place, .. } = self;
        images::remove(&place)
    }

    /// The end of the serial log, for who looks for what went wrong.
    pub(super) fn last_words(&self) -> String {
        format!(
            "the end of the serial log in {}:\n{}",
            self.place.display(),
            self.machine.serial_tail(40)
        )
    }
}

fn disk(stage: &Stage, place: &Path) -> PathBuf {
    let disk = stage.disk();
    place.join(disk.file_name().unwrap_or(disk.as_os_str()))
}

fn options(stage: &Stage, place: &Path, registry: &Registry) -> MachineOptions {
    MachineOptions {
        boot: Boot::Uefi {
            variables: place.join("variables.fd"),
        },
        disk: disk(stage, place),
        serial_log: place.join("serial.log"),
        processors: 1,
        ..stage.machine(registry)
    }
}
