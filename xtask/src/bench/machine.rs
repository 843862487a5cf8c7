//! A machine in a directory: what Bedplate's verbs do on a machine, without the mount of a boot partition,
//! which no directory has.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use bedplate_boot::partition::DirectoryPartition;
use bedplate_boot::render::{self, Settings};
use bedplate_deploy::bootable::{BootFile, Bootable};
use bedplate_deploy::config::{HealthConfig, KeepConfig, LocalConfig};
use bedplate_deploy::events::Actor;
use bedplate_deploy::host::{BootAccess, Host, OpenBoot};
use bedplate_deploy::{Finalized, Machine, Staged, Staging, record_file};
use bedplate_model::record::{Deployment, DeploymentId, EtcMode, OtherFields, Record, State};
use bedplate_model::{RootDigest, Sha256, layout};
use bedplate_store::Store;
use bedplate_sys::mount::Access;
use bedplate_sys::space;
use serde_json::json;
use sha2::Digest as _;

/// Stands for kernel and initramfs where only the state is asked for.
const KERNEL: &[u8] = b"a kernel";

/// The deployment that a new machine has.
const FIRST: DeploymentId = DeploymentId([0x11; 4]);

/// A machine with one deployment, or more.
pub(super) struct MadeUp {
    /// Its physical root.
    root: PathBuf,
    run: PathBuf,
    esp: PathBuf,
}

impl MadeUp {
    /// The machine below `place`, which may not be there yet.
    pub(super) fn at(place: &Path) -> Self {
        Self {
            root: place.join("root"),
            run: place.join("run"),
            esp: place.join("esp"),
        }
    }

    /// Makes the machine below `place`, which its store may be in already, with an image that nothing boots by.
    pub(super) fn new(place: &Path, image: RootDigest) -> Result<Self> {
        let file = BootFile {
            bytes: KERNEL.to_vec(),
            sha256: Sha256(sha2::Sha256::digest(KERNEL).into()),
        };
        let made = Self::at(place);
        made.put("6.1", image, [&file, &file])?;
        Ok(made)
    }

    /// Makes it a machine that was just installed with an image of its store, and proven. What an earlier one
    /// left goes, but for its store.
    pub(super) fn install(&self, image: RootDigest) -> Result<()> {
        let store = self.store()?;
        for pin in store.pins()? {
            store.unpin(&pin.name)?;
        }
        let below = |name| self.root.join(name);
        for path in [&self.run, &self.esp, &below(layout::DEPLOYMENTS)] {
            super::remove(path)?;
        }
        for name in [layout::EVENTS, layout::RECORD_NEXT, layout::RECORD] {
            super::remove(&below(name))?;
        }
        let boots = Bootable::read(&store, &store.tree(&image)?)?;
        self.put(&boots.release, image, [&boots.vmlinuz, &boots.initramfs])?;
        fs::create_dir_all(self.etc_home()).context("making the place of /etc")?;
        // Holds its image, as installing does.
        self.verb(|machine, store| Ok(machine.prove(store, &[])?))?;
        Ok(())
    }

    /// Where the first deployment's /etc belongs, as a directory `etc`.
    pub(super) fn etc_home(&self) -> PathBuf {
        self.root.join(layout::DEPLOYMENTS).join(FIRST.to_string())
    }

    /// Where its store is.
    pub(super) fn store_path(&self) -> PathBuf {
        self.root.join(layout::STORE)
    }

    /// What of it takes room on a disk.
    pub(super) fn disks(&self) -> [&Path; 2] {
        [&self.root, &self.esp]
    }

    /// Boots what finalizing left, and has it proven.
    pub(super) fn boot_trial(&self) -> Result<()> {
        let record = record_file::read(&self.root)?;
        let trial = record
            .deployments
            .iter()
            .find(|deployment| deployment.state == State::Trial)
            .context("nothing is on trial")?;
        self.say_booted(trial.id, trial.root)?;
        let proved = self.verb(|machine, store| Ok(machine.prove(store, &[])?))?;
        ensure!(proved.is_new(), "nothing was proven");
        Ok(())
    }

    fn store(&self) -> Result<Store> {
        Store::open(&self.store_path()).context("opening the store")
    }

    fn verb<T>(&self, verb: impl FnOnce(&Machine<'_>, &Store) -> Result<T>) -> Result<T> {
        verb(&Machine::open(&self.host())?, &self.store()?)
    }

    fn say_booted(&self, id: DeploymentId, image: RootDigest) -> Result<()> {
        let booted = json!({ "deployment": id, "root": image, "verity": "off" });
        let path = self.run.join("booted.json");
        fs::write(&path, booted.to_string()).with_context(|| format!("writing {}", path.display()))
    }

    fn put(&self, kernel: &str, image: RootDigest, files: [&BootFile; 2]) -> Result<()> {
        for path in [&self.root.join(layout::BEDPLATE), &self.run, &self.esp] {
            fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        }
        let deployment = Deployment {
            id: FIRST,
            sequence: 1,
            image: super::NAME.parse()?,
            root: image,
            manifest: None,
            version: Some("1".to_owned()),
            title: "Made up".to_owned(),
            kernel: kernel.to_owned(),
            vmlinuz: files[0].sha256,
            initramfs: files[1].sha256,
            kargs: Vec::new(),
            state: State::Proven,
            reason: None,
            base: None,
            failure: None,
            failed_units: Vec::new(),
            created: 0,
            signature: None,
            local_kargs: None,
            pinned: false,
            etc: EtcMode::Merged,
            other: OtherFields::new(),
        };
        let record = Record::new(
            "5d4f4c2e-7f0f-4a55-8b0c-2d0a57d7f3c1".to_owned(),
            deployment,
        );
        let slot = |name| self.root.join(name);
        fs::write(slot(layout::RECORD), record_file::slot(&record)?)?;
        fs::write(slot(layout::RECORD_NEXT), record_file::EMPTY_SLOT)?;
        self.say_booted(FIRST, image)?;
        let mut partition = DirectoryPartition::new(&self.esp);
        let observed = render::observe(&partition)?;
        let plan = render::render(&record, &observed, &Settings::default())?;
        let contents = |wanted: &Sha256| {
            let found = files.into_iter().find(|file| file.sha256 == *wanted);
            found
                .map(|file| file.bytes.clone())
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        };
        render::execute(&plan, &mut partition, &contents)?;
        Ok(())
    }

    fn host(&self) -> Host {
        Host {
            root: self.root.clone(),
            run: self.run.clone(),
            system: self.root.join("system"),
            actor: Actor::default(),
            now: 0,
            settings: Settings::default(),
            health: HealthConfig::default(),
            keep: KeepConfig::default(),
            local: LocalConfig::default(),
            boot: Box::new(Esp(self.esp.clone())),
            watchdog: self.run.join("no-watchdog"),
            writes: Box::new(()),
        }
    }

    /// The median of the microseconds that asking for the state takes.
    pub(super) fn status(&self) -> Result<f64> {
        const TIMES: usize = 301;
        let host = self.host();
        let mut took = Vec::new();
        for _ in 0..TIMES {
            let started = Instant::now();
            let status = Machine::open(&host)?.status()?;
            took.push(started.elapsed().as_secs_f64() * 1e6);
            ensure!(status.deployments.len() == 1, "a deployment is lost");
        }
        took.sort_by(f64::total_cmp);
        Ok(took[TIMES / 2])
    }
}

/// `cargo xtask bench inside machine VERB PLACE`: a verb on the machine at `PLACE`, in a process of its own.
pub(super) fn inside(arguments: &[&str]) -> Result<()> {
    let [verb, place] = arguments else {
        bail!("`bench inside machine` takes a verb and a place");
    };
    let made = MadeUp::at(Path::new(place));
    match *verb {
        "stage" => made.verb(|machine, store| {
            let image = super::NEXT.parse()?;
            let target = store
                .resolve(&image)?
                .context("the next version is not there")?;
            let staging = Staging {
                image: &image,
                target: &target,
                retry: false,
            };
            let plan = machine.plan_stage(store, &staging)?;
            ensure!(plan.is_some(), "nothing was to be staged");
            let staged = machine.stage(store, &staging)?;
            ensure!(matches!(staged, Staged::New(_)), "nothing was staged");
            Ok(())
        }),
        "finalize" => made.verb(|machine, store| {
            let done = machine.finalize(store)?;
            ensure!(
                matches!(done, Finalized::Trial { .. }),
                "nothing was finalized: {done:?}"
            );
            Ok(())
        }),
        "rollback" => made.verb(|machine, store| {
            machine.rollback(store, None)?;
            Ok(())
        }),
        "status" => {
            // As `bedplate status` does it, which opens no store.
            let status = Machine::open(&made.host())?.status()?;
            println!("{status:?}");
            Ok(())
        }
        other => bail!("`bench inside machine` has no `{other}`"),
    }
}

/// A boot partition that is mounted.
struct Esp(PathBuf);

impl BootAccess for Esp {
    fn open(&self, _: Access) -> io::Result<OpenBoot> {
        Ok(OpenBoot {
            partition: Box::new(DirectoryPartition::new(&self.0)),
            space: space::space(File::open(&self.0)?)?,
        })
    }
}
