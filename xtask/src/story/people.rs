//! Who does what on this computer: a builder, who owns the trees, and an installer without privileges.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::narrator::Narrator;
use crate::images::{Tree, remove};
use crate::run;

/// The user that root becomes where no privileges are wanted: `nobody`, everywhere.
const NOBODY: u32 = 65534;

/// Somebody with a store of their own.
#[derive(Debug)]
pub(crate) struct Person {
    /// How the story shows who types.
    prompt: &'static str,
    bedplate: PathBuf,
    /// A directory of their own.
    pub(crate) place: PathBuf,
    role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Builder,
    Installer,
}

impl Person {
    /// Who builds: root, or whoever runs this, in the namespace where they made the trees.
    pub(crate) fn builder(bedplate: &Path, place: &Path) -> Result<Self> {
        let place = place.join("builder");
        fs::create_dir_all(&place).with_context(|| format!("creating {}", place.display()))?;
        Ok(Self {
            prompt: if run::is_root() { "#" } else { "$" },
            bedplate: bedplate.to_owned(),
            place,
            role: Role::Builder,
        })
    }

    /// Who installs: whoever runs this, or `nobody` where that is root.
    pub(crate) fn installer(bedplate: &Path, place: &Path) -> Result<Self> {
        let mut person = Self {
            prompt: "$",
            bedplate: bedplate.to_owned(),
            place: place.join("installer"),
            role: Role::Installer,
        };
        if !run::is_root() {
            fs::create_dir_all(&person.place)
                .with_context(|| format!("creating {}", person.place.display()))?;
            return Ok(person);
        }
        person.prompt = "nobody$";
        own(&person.place)?;
        if !person.reaches_their_place() {
            // The repository lies where only root may look: they work elsewhere, with a copy.
            person.place = PathBuf::from("/var/tmp/bedplate-demo");
            remove(&person.place)?;
            own(&person.place)?;
            person.bedplate = person.place.join("bedplate");
            fs::copy(bedplate, &person.bedplate).context("copying bedplate for nobody")?;
        }
        Ok(person)
    }

    /// `bedplate`, run by them on their store.
    pub(crate) fn bedplate<S: AsRef<str>>(&self, arguments: &[S]) -> Command {
        let mut command = match self.role {
            Role::Builder => Tree::reader(&self.bedplate),
            Role::Installer => self.unprivileged(&self.bedplate),
        };
        command.arg("--store").arg(self.place.join("store"));
        for argument in arguments {
            command.arg(argument.as_ref());
        }
        command
    }

    /// Runs `bedplate` before the reader's eyes.
    pub(super) fn show<S: AsRef<str>>(
        &self,
        narrator: &mut Narrator,
        arguments: &[S],
    ) -> Result<()> {
        let mut shown = Command::new("bedplate");
        for argument in arguments {
            shown.arg(argument.as_ref());
        }
        narrator.host(
            self.prompt,
            &run::typed(&shown),
            &mut self.bedplate(arguments),
        )
    }

    /// Runs `bedplate` for its JSON document.
    pub(super) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let printed = run::output(&mut self.bedplate(arguments))?;
        serde_json::from_str(&printed).with_context(|| format!("reading {printed}"))
    }

    fn unprivileged(&self, program: &Path) -> Command {
        if !run::is_root() {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={NOBODY}"))
            .arg(format!("--regid={NOBODY}"))
            .args(["--clear-groups", "--no-new-privs", "--inh-caps=-all"])
            .arg(program)
            // Root's own settings and credentials are not theirs to read.
            .env("HOME", &self.place)
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME")
            .current_dir(&self.place);
        command
    }

    fn reaches_their_place(&self) -> bool {
        let there = |program: &str, path: &Path| {
            run::output(
                self.unprivileged(Path::new("test"))
                    .current_dir("/")
                    .arg(program)
                    .arg(path),
            )
            .is_ok()
        };
        there("-w", &self.place) && there("-x", &self.bedplate)
    }
}

fn own(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    chown(directory, Some(NOBODY), Some(NOBODY))
        .with_context(|| format!("giving {} to nobody", directory.display()))
}
