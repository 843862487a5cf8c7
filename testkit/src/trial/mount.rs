//! What is mounted, for as long as somebody holds it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// A mounted directory; it is taken off when this is dropped, and a loop device below it goes with it.
#[derive(Debug)]
pub struct Mounted {
    directory: PathBuf,
}

impl Mounted {
    /// Mounts an empty file system in memory; `size` is as `mount` takes it.
    pub fn memory(directory: &Path, size: &str) -> Result<Self> {
        let mut mount = Command::new("mount");
        let options = format!("size={size},mode=0700");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
        Self::by(mount, directory)
    }

    /// Mounts an ext4 file system that lies in a file.
    pub(crate) fn disk(file: &Path, directory: &Path, recorded: bool) -> Result<Self> {
        let mut mount = Command::new("mount");
        // A loop device of this kind is gone as soon as nothing is mounted from it. While a disk is
        // recorded, the journal is written every second, not every five: more cuts that differ.
        let options = if recorded { "loop,commit=1" } else { "loop" };
        mount.args(["-t", "ext4", "-o", options]).arg(file);
        Self::by(mount, directory)
    }

    /// Mounts an ext4 file system that lies in a part of a file.
    pub fn part(file: &Path, start: u64, length: u64, directory: &Path) -> Result<Self> {
        let mut mount = Command::new("mount");
        let options = format!("loop,offset={start},sizelimit={length}");
        mount.args(["-t", "ext4", "-o", &options]).arg(file);
        Self::by(mount, directory)
    }

    /// Makes and mounts an empty file system in a file of `size` bytes, on which files can be cloned.
    pub fn cloning(file: &Path, size: u64, directory: &Path) -> Result<Self> {
        File::create(file)
            .and_then(|file| file.set_len(size))
            .with_context(|| format!("making {}", file.display()))?;
        run(Command::new("mkfs.xfs")
            .args(["-q", "-f", "-m", "reflink=1"])
            .arg(file))?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "xfs", "-o", "loop,discard"]).arg(file);
        Self::by(mount, directory)
    }

    fn by(mut mount: Command, directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        run(mount.arg(directory))?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// Returns where it is mounted.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Takes it off, and says so where that fails.
    pub fn unmount(self) -> Result<()> {
        run(Command::new("umount").arg(&self.directory))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: whatever still has a file open there, the mount goes. It may be gone already.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg("--quiet")
            .arg(&self.directory)
            .stderr(Stdio::null())
            .status();
    }
}

/// Makes an empty ext4 file system in a file of `size` bytes.
pub(crate) fn make_ext4(file: &Path, size: u64) -> Result<()> {
    File::create(file)
        .and_then(|file| file.set_len(size))
        .with_context(|| format!("making {}", file.display()))?;
    run(Command::new("mkfs.ext4")
        // Nothing is kept for root, who could otherwise write to a full disk.
        .args(["-q", "-b", "4096", "-m", "0"])
        // All of it now: the kernel would go on in the background, for a recorder to see.
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0"])
        .arg(file))
}

/// Runs a command that must succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
