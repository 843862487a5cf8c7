//! What all courses begin from, made once for each program and kept.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use testkit::qemu::Machine;

use super::super::{Narrator, Published, Stage, Voice, check_booted};
use crate::images::Images;
use crate::{images, programs, workspace};

/// What a machine of the courses is told, so that they end sooner.
pub(super) const SETTINGS: &str = "[health]\ntries = 2\nprobation = \"2s\"\n";

/// The file whose presence says that everything is there.
const READY: &str = "ready.json";

/// Two versions in a registry, and a machine that runs the first and has proven it.
pub(super) struct Workshop {
    pub(super) stage: Stage,
    pub(super) published: Published,
}

impl Workshop {
    /// Opens the workshop of the program as it is, or makes it.
    pub(super) fn open_or_make() -> Result<Self> {
        let bedplate = programs::build()?;
        let images = Images::open_or_make()?;
        let home = workspace::target("vm/suite");
        let place = home.join(hash(&bedplate, &images)?);
        if place.join(READY).exists() {
            let stage = Stage::at(place.clone(), &bedplate, images)?;
            let published = serde_json::from_slice(&read(&place.join(READY))?)?;
            return Ok(Self { stage, published });
        }
        // Those of other programs are of no use any more.
        images::remove(&home)?;
        println!("  building two versions, and proving a machine with the first …");
        let stage = Stage::at(place.clone(), &bedplate, images)?;
        let mut narrator = Narrator::new(Voice::Silent);
        let registry = stage.registry(&stage.place)?;
        let published = stage.publish(&mut narrator, &registry)?;
        stage.install(&mut narrator, &registry, &published.first)?;
        let mut machine = Machine::start(&stage.machine(&registry))?;
        machine.wait_until_up()?;
        machine.check(&format!(
            "mkdir /etc/bedplate && printf '{}' >/etc/bedplate/machine.toml",
            SETTINGS.escape_default()
        ))?;
        check_booted(&mut narrator, &mut machine, &published.first)?;
        // The answer may be lost with the connection.
        machine.run("systemctl poweroff")?;
        machine.wait_for_exit()?;
        drop(registry);
        let ready = serde_json::to_vec(&published).context("writing down what was built")?;
        fs::write(place.join(READY), ready).context("writing down what was built")?;
        Ok(Self { stage, published })
    }

    /// Where a course has its things.
    pub(super) fn place_of(&self, course: &str) -> PathBuf {
        self.stage.place.join("courses").join(course)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// A name for everything that decides what is made.
fn hash(bedplate: &Path, images: &Images) -> Result<String> {
    let mut hasher = Sha256::new();
    for program in [bedplate, &bedplate.with_file_name("bedplate-init")] {
        hasher.update(read(program)?);
    }
    for tree in [&images.first, &images.second] {
        hasher.update(tree.path.as_os_str().as_encoded_bytes());
    }
    Ok(bedplate_model::digest::hex(&hasher.finalize()[..8]))
}
