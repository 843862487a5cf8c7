//! ostree's side: a sysroot in a directory, with the same versions as our machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::commit_theirs;
use super::sample::Samples;
use crate::run;

/// What the system is called.
const OS: &str = "bench";

const STAGED: &str = include_str!("../../assets/ostree-staged.sh");
const SET_DEFAULT: &str = include_str!("../../assets/ostree-set-default.py");

/// Leaves deployments removable: otherwise each gets a flag that keeps `rm` from the remains of a run.
const DEBUG: (&str, &str) = ("OSTREE_SYSROOT_DEBUG", "mutable-deployments");

/// A sysroot, and where notes of what it took go.
pub(super) struct Sysroot {
    path: PathBuf,
    scratch: PathBuf,
}

impl Sysroot {
    /// Makes one below `place`, with two versions in its repository and the first one deployed.
    pub(super) fn new(place: &Path, trees: [&Path; 2]) -> Result<Self> {
        let made = Self {
            path: place.join("sysroot"),
            scratch: place.join("notes"),
        };
        for path in [&made.path, &made.scratch] {
            fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        }
        run::output(
            Command::new("ostree")
                .args(["admin", "init-fs"])
                .arg(&made.path),
        )?;
        run::output(made.admin("os-init").arg(OS))?;
        for (tree, branch) in trees.into_iter().zip(["v1", "v2"]) {
            run::output(&mut commit_theirs(&made.repository(), tree, branch))?;
        }
        run::output(&mut made.deploy("v1"))?;
        Ok(made)
    }

    /// `ostree admin deploy`, which keeps the deployment that is there.
    pub(super) fn deploy(&self, branch: &str) -> Command {
        let mut command = self.admin("deploy");
        command.args([&format!("--os={OS}"), "--karg=root=LABEL=root", branch]);
        command
    }

    /// Takes the newest deployment away again.
    pub(super) fn undeploy(&self) -> Result<()> {
        run::output(self.admin("undeploy").arg("0"))?;
        Ok(())
    }

    /// Stages v2 and finalizes it, in the first deployment; needs root.
    pub(super) fn take_staged(&self, stage: &mut Samples, finalize: &mut Samples) -> Result<()> {
        run::output(
            Command::new("unshare")
                .args(["--mount", "--pid", "--fork", "--mount-proc"])
                .args(["sh", "-c", STAGED, "staged"])
                .arg(&self.path)
                .args([OS, "v2"])
                .arg(&self.scratch)
                .env(DEBUG.0, DEBUG.1),
        )?;
        for (what, samples) in [("stage", stage), ("finalize", finalize)] {
            let path = self.scratch.join(what);
            let said =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            samples.take_told(&format!("ostree admin, {what}"), &said)?;
        }
        Ok(())
    }

    /// Makes the second deployment the first.
    pub(super) fn take_set_default(&self, samples: &mut Samples) -> Result<()> {
        run::output(&mut Command::new("sync"))?;
        let said = run::output(
            Command::new("/usr/bin/python3")
                .args(["-c", SET_DEFAULT])
                .arg(&self.path)
                .env(DEBUG.0, DEBUG.1),
        )?;
        samples.take_clocked("ostree, set-default", &said)
    }

    /// The first deployment's /etc.
    pub(super) fn etc(&self) -> Result<PathBuf> {
        let deployments = self.deployments()?;
        Ok(deployments
            .first()
            .context("nothing is deployed")?
            .join("etc"))
    }

    /// Its repository.
    pub(super) fn repository(&self) -> PathBuf {
        self.path.join("ostree/repo")
    }

    /// What of it takes room on a disk.
    pub(super) fn disk(&self) -> &Path {
        &self.path
    }

    fn deployments(&self) -> Result<Vec<PathBuf>> {
        let place = self.path.join(format!("ostree/deploy/{OS}/deploy"));
        let mut found = Vec::new();
        for entry in fs::read_dir(&place).with_context(|| format!("listing {}", place.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    fn admin(&self, verb: &str) -> Command {
        let mut command = Command::new("ostree");
        command
            .args(["admin", verb])
            .arg(format!("--sysroot={}", self.path.display()))
            .env(DEBUG.0, DEBUG.1);
        command
    }
}

/// Gives a tree the shape that ostree deploys.
pub(super) fn shape(tree: &Path) -> Result<()> {
    run::output(
        Command::new("mv")
            .arg("--")
            .args([tree.join("etc"), tree.join("usr/etc")]),
    )?;
    for name in ["sysroot", "boot", "run", "proc", "dev", "var", "tmp"] {
        let path = tree.join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    }
    symlink("sysroot/ostree", tree.join("ostree")).context("linking ostree")
}
