//! A machine in a directory, whose state can be asked for: what `bedplate status` does, without the start
//! of the program and the mount of a boot partition, which no directory has.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bedplate_boot::partition::DirectoryPartition;
use bedplate_boot::render::{self, Settings};
use bedplate_deploy::config::{HealthConfig, KeepConfig, LocalConfig};
use bedplate_deploy::events::Actor;
use bedplate_deploy::host::{BootAccess, Host, OpenBoot};
use bedplate_deploy::{Machine, record_file};
use bedplate_model::record::{Deployment, DeploymentId, EtcMode, OtherFields, Record, State};
use bedplate_model::{RootDigest, Sha256, layout};
use bedplate_sys::mount::Access;
use bedplate_sys::space;
use serde_json::json;
use sha2::Digest as _;

/// Stands for kernel and initramfs.
const KERNEL: &[u8] = b"a kernel";

/// A machine with one deployment.
pub(super) struct MadeUp {
    /// Its physical root.
    root: PathBuf,
    run: PathBuf,
    esp: PathBuf,
}

impl MadeUp {
    /// Makes the machine below `place`, which its store may be in already.
    pub(super) fn new(place: &Path, image: RootDigest) -> Result<Self> {
        let made = Self {
            root: place.join("root"),
            run: place.join("run"),
            esp: place.join("esp"),
        };
        for path in [&made.root.join(layout::BEDPLATE), &made.run, &made.esp] {
            fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        }
        let id = DeploymentId([0x11; 4]);
        let kernel = Sha256(sha2::Sha256::digest(KERNEL).into());
        let deployment = Deployment {
            id,
            sequence: 1,
            image: super::NAME.parse()?,
            root: image,
            manifest: None,
            version: Some("1".to_owned()),
            title: "Made up".to_owned(),
            kernel: "6.1".to_owned(),
            vmlinuz: kernel,
            initramfs: kernel,
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
        fs::write(made.root.join(layout::RECORD), record_file::slot(&record)?)?;
        let booted = json!({ "deployment": id, "root": image, "verity": "off" });
        fs::write(made.run.join("booted.json"), booted.to_string())?;
        let mut partition = DirectoryPartition::new(&made.esp);
        let observed = render::observe(&partition)?;
        let plan = render::render(&record, &observed, &Settings::default())?;
        render::execute(&plan, &mut partition, &|_| Ok(KERNEL.to_vec()))?;
        Ok(made)
    }

    /// The median of the microseconds that asking for the state takes.
    pub(super) fn status(&self) -> Result<f64> {
        const TIMES: usize = 301;
        let host = Host {
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
        };
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
