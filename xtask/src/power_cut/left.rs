//! The machine that a cut left: its disk, examined and driven on without a virtual machine.
//!
//! ```text
//! power on   GPT → boot partition → what the loader chooses, its files by their digests → counted
//! whole      ext4 after its journal: record, image and every object, fs-verity's marks, /etc
//! verbs      the library's own, with this disk as the host's
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use bedplate_boot::cmdline::BootArguments;
use bedplate_boot::loader_conf::SECTOR;
use bedplate_boot::render::{self, Settings};
use bedplate_deploy::config::{HealthConfig, KeepConfig, LocalConfig};
use bedplate_deploy::events::Actor;
use bedplate_deploy::host::{BootAccess, OpenBoot};
use bedplate_deploy::install::esp::FatPartition;
use bedplate_deploy::install::layout::Region;
use bedplate_deploy::install::table::{ESP_TYPE, ROOT_X86_64_TYPE};
use bedplate_deploy::{Host, Machine, record_file};
use bedplate_model::digest::hex;
use bedplate_model::layout;
use bedplate_model::record::{Deployment, DeploymentId, Record};
use bedplate_store::{Store, objects_of, sized_objects_of};
use bedplate_sys::mount::Access;
use bedplate_sys::space::Space;
use gpt::GptConfig;
use sha2::{Digest as _, Sha256};
use testkit::loader::{self, Chosen};
use testkit::sealed_ext4::{self, Inodes};
use testkit::trial::mount::Mounted;

/// How much of the store is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Every object is there and has its length.
    Names,
    /// Every object is hashed.
    Contents,
}

/// A disk without a machine.
pub(super) struct Left {
    disk: PathBuf,
    parts: Parts,
    /// What lasts until the next boot.
    run: PathBuf,
    root: Mounted,
    sealed: Inodes,
    pub(super) store: Store,
    pub(super) booted: BootArguments,
}

/// Where its file systems are.
#[derive(Clone, Copy, Debug)]
struct Parts {
    esp: Region,
    root: Region,
}

impl Parts {
    fn read(disk: &Path) -> Result<Self> {
        let table = GptConfig::new()
            .writable(false)
            .open(disk)
            .context("reading the partition table")?;
        let find = |kind| {
            table
                .partitions()
                .values()
                .find(|partition| partition.part_type_guid.guid == kind)
                .map(|partition| Region {
                    start: partition.first_lba * SECTOR as u64,
                    length: (partition.last_lba + 1 - partition.first_lba) * SECTOR as u64,
                })
        };
        Ok(Self {
            esp: find(ESP_TYPE).context("the disk has no boot partition")?,
            root: find(ROOT_X86_64_TYPE).context("the disk has no root partition")?,
        })
    }
}

impl Left {
    /// Powers the machine on: the loader chooses, counts, and early boot finds the root. `place` is a
    /// directory to work in.
    pub(super) fn power_on(disk: &Path, place: &Path) -> Result<Self> {
        let parts = Parts::read(disk)?;
        let booted = load(disk, parts.esp)?;
        let directory = place.join("root");
        let mount = || Mounted::part(disk, parts.root.start, parts.root.length, &directory);
        // The kernel replays the journal, but has no fs-verity and cannot open what is sealed.
        mount().context("mounting the root")?.unmount()?;
        let file = File::options().read(true).write(true).open(disk)?;
        let sealed = sealed_ext4::unseal(&file, parts.root.start).context("reading the inodes")?;
        let root = mount().context("mounting the root again")?;
        let store = Store::open(&root.path().join(layout::STORE)).context("opening the store")?;
        let left = Self {
            disk: disk.to_owned(),
            parts,
            run: place.join("run"),
            root,
            sealed,
            store,
            booted,
        };
        left.tell_booted()?;
        Ok(left)
    }

    /// Powers it off and on again.
    pub(super) fn reboot(&mut self) -> Result<DeploymentId> {
        self.booted = load(&self.disk, self.parts.esp)?;
        self.tell_booted()?;
        Ok(self.booted.deployment)
    }

    fn tell_booted(&self) -> Result<()> {
        if self.run.exists() {
            fs::remove_dir_all(&self.run).context("removing what lasted until now")?;
        }
        fs::create_dir_all(&self.run).context("making the run directory")?;
        let booted = serde_json::json!({
            "deployment": self.booted.deployment,
            "root": self.booted.image.to_string(),
            "verity": "require",
            "kernel-features": {},
        });
        fs::write(self.run.join("booted.json"), booted.to_string()).context("telling what booted")
    }

    /// Reads the record.
    pub(super) fn record(&self) -> Result<Record> {
        Ok(record_file::read(self.root.path())?)
    }

    /// Returns what runs, as the record has it.
    pub(super) fn running(&self) -> Result<Deployment> {
        let id = self.booted.deployment;
        let record = self.record()?;
        let found = record.deployment(id);
        let found = found.with_context(|| format!("{id} boots and is not in the record"))?;
        Ok(found.clone())
    }

    /// Returns a deployment's /etc.
    pub(super) fn etc(&self, id: DeploymentId) -> PathBuf {
        let home = self.root.path().join(layout::DEPLOYMENTS);
        home.join(id.to_string()).join("etc")
    }

    /// Checks that what boots is whole, and the store with it.
    pub(super) fn check_whole(&self, depth: Depth) -> Result<()> {
        let running = self.running()?;
        ensure!(
            running.root.image == self.booted.image.image,
            "the entry of {} names another image than the record",
            running.id
        );
        let mut found = Vec::new();
        let mut tell = |finding| found.push(finding);
        match depth {
            Depth::Names => self.store.fsck_quick(&mut tell)?,
            Depth::Contents => self.store.fsck(&mut tell)?,
        };
        if let Some(first) = found.first() {
            bail!("fsck has {} findings, the first: {first}", found.len());
        }
        // Whoever holds the image or does not: all of it is there.
        for (id, size) in sized_objects_of(&self.store.tree(&running.root)?) {
            let found = self.store.open_object(&id)?.metadata()?.len();
            ensure!(found == size, "object {id} has {found} bytes, not {size}");
        }
        Ok(())
    }

    /// Checks that every object of what boots is sealed where the store says that all are, as they were when
    /// the power came back: the kernel here cannot seal what is stored later.
    pub(super) fn check_sealed(&self) -> Result<()> {
        if !self.root.path().join(layout::SEALED).exists() {
            return Ok(()); // early boot seals them
        }
        let root = self.running()?.root;
        let sealed = |what: &dyn std::fmt::Display, file: &File| -> Result<()> {
            let inode = file.metadata()?.ino();
            ensure!(
                self.sealed.contains(&inode),
                "{what} is not sealed, and the store says that all are"
            );
            Ok(())
        };
        for id in objects_of(&self.store.tree(&root).context("reading the image")?) {
            sealed(&id, &self.store.open_object(&id)?)?;
        }
        sealed(&"the image", &self.store.image_file(&root)?)
    }

    /// Calls a verb of the machine that booted.
    pub(super) fn with<T>(&self, verb: impl FnOnce(&Machine<'_>) -> Result<T>) -> Result<T> {
        let host = Host {
            root: self.root.path().to_owned(),
            run: self.run.clone(),
            system: "/nonexistent".into(),
            actor: Actor {
                who: "system".into(),
                command: "after a power cut".into(),
            },
            now: 1_800_000_000,
            settings: self.settings(),
            health: HealthConfig::default(),
            keep: KeepConfig::default(),
            local: LocalConfig::default(),
            boot: Box::new(Fat {
                disk: self.disk.clone(),
                esp: self.parts.esp,
            }),
            watchdog: self.run.join("no-watchdog"),
            writes: Box::new(()),
        };
        verb(&Machine::open(&host)?)
    }

    fn settings(&self) -> Settings {
        Settings {
            unsealed_allowed: self.booted.image.unsealed_allowed,
            ..Settings::default()
        }
    }

    /// Returns what the boot partition would have to become for the record to be satisfied.
    pub(super) fn disagreement(&self) -> Result<render::Plan> {
        let partition = open(&self.disk, self.parts.esp)?;
        let observed = render::observe(&partition).context("looking at the boot partition")?;
        Ok(render::render(
            &self.record()?,
            &observed,
            &self.settings(),
        )?)
    }
}

/// Does what firmware and loader do, and checks what they start.
fn load(disk: &Path, esp: Region) -> Result<BootArguments> {
    let mut partition = open(disk, esp)?;
    let chosen = loader::choose(&partition)?;
    check_files(&partition, &chosen)?;
    loader::count(&mut partition, &chosen).context("counting the try")?;
    chosen.arguments()
}

/// Checks that kernel and initramfs are what their names say.
fn check_files(partition: &FatPartition, chosen: &Chosen) -> Result<()> {
    use bedplate_boot::partition::BootPartition as _;
    let mut count = 0;
    for path in chosen.files() {
        let bytes = partition
            .read(path)
            .with_context(|| format!("reading {path}"))?;
        let bytes =
            bytes.with_context(|| format!("{path} is missing, and {} boots", chosen.name))?;
        let name = path.rsplit('/').next().unwrap_or(path);
        let digest = hex(&Sha256::digest(&bytes)[..16]);
        let said = name.split(['-', '.']).nth(1);
        ensure!(
            said == Some(digest.as_str()),
            "{path} has the digest {digest}…, and {} boots",
            chosen.name
        );
        count += 1;
    }
    ensure!(count == 2, "{} names {count} files", chosen.name);
    Ok(())
}

fn open(disk: &Path, esp: Region) -> Result<FatPartition> {
    File::options()
        .read(true)
        .write(true)
        .open(disk)
        .and_then(|file| FatPartition::open(&file, esp))
        .context("opening the boot partition")
}

/// The boot partition inside a disk image.
struct Fat {
    disk: PathBuf,
    esp: Region,
}

impl BootAccess for Fat {
    fn open(&self, _: Access) -> io::Result<OpenBoot> {
        let file = File::options().read(true).write(true).open(&self.disk)?;
        Ok(OpenBoot {
            partition: Box::new(FatPartition::open(&file, self.esp)?),
            space: Space {
                total: self.esp.length,
                available: self.esp.length / 2,
                inodes: None,
            },
        })
    }
}
