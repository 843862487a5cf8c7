//! The life of a machine, with every write of its disk written down: what the power is cut in.
//!
//! ```text
//! before.img   the disk as it was installed
//! log.raw      every write and flush since, in QEMU's words
//! story.json   how long the log was when each phase ended, and what the machine was to boot
//! registry/    where version 2 comes from, should it be pulled again
//! variables.fd what the firmware remembered at the end
//! ```
//!
//! The log begins at the first boot. What install writes, it writes to a file that has another name until
//! it is whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use testkit::powercut::log;
use testkit::qemu::Machine;

use super::{
    FOLLOWED, Firmware, Narrator, Published, Stage, Voice, check_booted, prepare_programs,
    prepare_trees,
};
use crate::registry::Registry;
use crate::{images, run};

/// What the firmware says on the serial line when it starts something.
const FIRMWARE: &str = "BdsDxe: starting";
/// How long a request of the disk may be on its way to the log.
const UNDERWAY: Duration = Duration::from_millis(300);

/// What the machine goes through, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// Firmware, early boot that seals objects and makes /etc and /var, the root grown, proven.
    FirstBoot,
    /// /etc is edited, a user is added.
    Life,
    /// `bedplate upgrade`.
    Stage,
    /// The shutdown, with finalize.
    Finalize,
    /// Firmware, the loader counts, early boot, until a shell answers.
    Trial,
    /// Until the health gate has passed.
    Prove,
    /// `bedplate rollback`.
    Rollback,
    /// The shutdown after it.
    Shutdown,
    /// The boot of version 1, until it has settled.
    BootBack,
}

/// One phase of the log.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) phase: Phase,
    /// How many entries the log had when it had ended.
    pub(crate) end: usize,
}

/// What was recorded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Recorded {
    pub(crate) marks: Vec<Mark>,
    /// The root digests of both versions.
    pub(crate) first: String,
    pub(crate) second: String,
    #[serde(skip)]
    pub(crate) place: PathBuf,
}

impl Recorded {
    pub(crate) fn read(place: &Path) -> Result<Self> {
        let path = place.join("story.json");
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let mut recorded: Self =
            serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
        place.clone_into(&mut recorded.place);
        Ok(recorded)
    }

    pub(crate) fn before(&self) -> PathBuf {
        self.place.join("before.img")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.place.join("log.raw")
    }

    pub(crate) fn registry(&self) -> PathBuf {
        self.place.join("registry")
    }
}

/// Plays the story, and writes it down in `place`, which is there when it is whole.
pub(crate) fn record(place: &Path) -> Result<Recorded> {
    let unfinished = place.with_extension("new");
    images::remove(&unfinished)?;
    fs::create_dir_all(&unfinished)
        .with_context(|| format!("creating {}", unfinished.display()))?;

    let mut narrator = Narrator::new(Voice::Brief);
    let bedplate = prepare_programs(&mut narrator)?;
    let images = prepare_trees(&mut narrator)?;
    let stage = Stage::new(&bedplate, images, Firmware::Uefi)?;
    let registry_place = unfinished.join("registry");
    let registry = Registry::start(
        &mut stage.builder.bedplate::<&str>(&[]),
        &registry_place,
        &stage.place.join("registry.log"),
    )?;
    let published = stage.publish(&mut narrator, &registry)?;
    let disk = stage.install(&mut narrator, &registry, &published.first)?;
    run::passing(
        std::process::Command::new("cp")
            .arg("--sparse=always")
            .args([&disk, &unfinished.join("before.img")]),
    )?;

    narrator.step("Boot it, with every write of its disk written down");
    let log = unfinished.join("log.raw");
    let options = stage.machine(&registry);
    let mut machine = Machine::start_recorded(&options, &log)?;
    let mut writer = Writer {
        log,
        marks: Vec::new(),
    };
    let played = stage.live_recorded(
        &mut narrator,
        &mut machine,
        &published,
        &registry,
        &mut writer,
    );
    if played.is_err() {
        eprintln!("{}", machine.serial_tail(50));
    }
    played?;
    drop(machine);
    let recorded = Recorded {
        marks: writer.marks,
        first: published.first.root.clone(),
        second: published.second.root.clone(),
        place: place.to_owned(),
    };
    let text = serde_json::to_vec_pretty(&recorded).context("writing the story")?;
    fs::write(unfinished.join("story.json"), text).context("writing the story")?;
    fs::remove_file(&disk).with_context(|| format!("removing {}", disk.display()))?;
    #[expect(
        clippy::disallowed_methods,
        reason = "what is lost with the power is recorded again"
    )]
    fs::rename(&unfinished, place).with_context(|| format!("creating {}", place.display()))?;
    narrator.end();
    Ok(recorded)
}

/// Writes down where in the log a phase ended.
struct Writer {
    log: PathBuf,
    marks: Vec<Mark>,
}

impl Writer {
    fn end(&mut self, narrator: &mut Narrator, phase: Phase) -> Result<()> {
        // Later is safe: whatever the phase left is in the log then, and at most something of the next.
        thread::sleep(UNDERWAY);
        let end = log::count(&self.log)?;
        narrator.fact(&format!("{phase:?} ends at entry {end} of the log"));
        self.marks.push(Mark { phase, end });
        Ok(())
    }
}

impl Stage {
    fn live_recorded(
        &self,
        narrator: &mut Narrator,
        machine: &mut Machine,
        published: &Published,
        registry: &Registry,
        writer: &mut Writer,
    ) -> Result<()> {
        let Published { first, second } = published;
        machine.wait_until_up()?;
        check_booted(narrator, machine, first)?;
        machine.check("systemctl start bedplate-grow bedplate-firmware")?;
        writer.end(narrator, Phase::FirstBoot)?;
        for script in [
            "echo 'Mind the lathe.' >/etc/motd",
            "useradd --create-home --uid 1500 anna",
            "mkdir /etc/bedplate && printf '[health]\\nprobation = \"5s\"\\n' >/etc/bedplate/machine.toml",
            "sync",
        ] {
            narrator.guest(machine, script)?;
        }
        writer.end(narrator, Phase::Life)?;

        self.push(narrator, registry, second, FOLLOWED)?;
        narrator.guest(machine, "bedplate upgrade")?;
        writer.end(narrator, Phase::Stage)?;
        restart(machine)?;
        writer.end(narrator, Phase::Finalize)?;
        machine.wait_until_up()?;
        writer.end(narrator, Phase::Trial)?;
        check_booted(narrator, machine, second)?;
        writer.end(narrator, Phase::Prove)?;

        narrator.guest(machine, "bedplate rollback")?;
        writer.end(narrator, Phase::Rollback)?;
        restart(machine)?;
        writer.end(narrator, Phase::Shutdown)?;
        machine.wait_until_up()?;
        check_booted(narrator, machine, first)?;
        // What it settles, it has settled when this can have the lock.
        machine.check("systemctl start bedplate-prove && sync")?;
        writer.end(narrator, Phase::BootBack)
    }
}

/// Has the guest shut down, and waits until the firmware begins again.
fn restart(machine: &mut Machine) -> Result<()> {
    let position = machine.serial_position()?;
    // The answer may be lost with the connection.
    machine.run("systemctl reboot")?;
    machine.wait_for_serial(FIRMWARE, position)
}
