//! Records an operation: the disk before, every write and flush during, and which refs there were.
//!
//! The disk is served by qemu-storage-daemon as a file in FUSE, which a loop device takes. That loop device
//! is not opened with direct I/O, and nothing is read ahead: the daemon (of QEMU 7.2) has one buffer for
//! all requests, and two at a time spoil each other.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::log::{self, Entry};
use crate::trial::Operation;
use crate::trial::check::{Refs, refs};
use crate::trial::mount::{Mounted, make_ext4};
use crate::trial::program::Program;

/// The size of the disk: room for the small trees, twice.
const DISK_SIZE: u64 = 48 << 20;
/// The largest log that is expected; the file is empty where nothing was written.
const LOG_SIZE: u64 = 1 << 30;
/// How long the daemon may take until it serves.
const SERVING: Duration = Duration::from_secs(10);

/// What was recorded of one operation.
#[derive(Debug)]
pub(super) struct Recording {
    /// The disk before.
    pub(super) before: Vec<u8>,
    /// Every write and flush.
    pub(super) log: Vec<Entry>,
    /// The entry at which the program was started: what comes before belongs to the mount.
    pub(super) begin: usize,
    /// The entry at which the program had ended.
    pub(super) end: usize,
    /// The refs before.
    pub(super) old: Refs,
    /// The refs after.
    pub(super) new: Refs,
}

impl Recording {
    pub(super) fn make(operation: &Operation, program: &Program, place: &Path) -> Result<Self> {
        let place = place.join("record");
        // What is left of the operation before.
        if place.exists() {
            fs::remove_dir_all(&place).context("removing the disk before this one")?;
        }
        fs::create_dir(&place).context("making a directory for the disk")?;
        let disk = place.join("disk.raw");
        let directory = place.join("mnt");
        make_ext4(&disk, DISK_SIZE)?;
        let mounted = Mounted::disk(&disk, &directory, false)?;
        operation.begin(program, mounted.path())?;
        let old = refs(program, mounted.path())?;
        mounted.unmount()?;
        let before = fs::read(&disk).context("reading the disk")?;

        let recorder = Recorder::start(&place, &disk)?;
        let mounted = Mounted::disk(&recorder.export, &directory, true)?;
        let begin = log::read(&recorder.log)?.len();
        program.run(mounted.path(), operation.command)?;
        let end = log::read(&recorder.log)?.len();
        let new = refs(program, mounted.path())?;
        mounted.unmount()?;
        let log = log::read(&recorder.log)?;
        drop(recorder);
        Ok(Self {
            before,
            log,
            begin,
            end,
            old,
            new,
        })
    }
}

/// The daemon that serves a disk, and writes down what is written to it.
#[derive(Debug)]
struct Recorder {
    daemon: Child,
    /// The file that stands for the disk.
    export: PathBuf,
    log: PathBuf,
}

impl Recorder {
    fn start(place: &Path, disk: &Path) -> Result<Self> {
        let (export, log) = (place.join("export.raw"), place.join("log.raw"));
        File::create(&export).context("making a file to mount on")?;
        let file = File::create(&log).context("making the log")?;
        file.set_len(LOG_SIZE).context("making the log")?;
        let said = File::create(place.join("daemon.log")).context("making the daemon's log")?;
        let daemon = Command::new("qemu-storage-daemon")
            .args([
                "--blockdev",
                &format!("driver=file,node-name=disk,filename={}", disk.display()),
            ])
            .args([
                "--blockdev",
                &format!("driver=file,node-name=log,filename={}", log.display()),
            ])
            .args([
                "--blockdev",
                "driver=blklogwrites,node-name=recorder,file=disk,log=log,log-sector-size=512",
            ])
            .args([
                "--export",
                &format!(
                    "type=fuse,id=export,node-name=recorder,writable=on,mountpoint={}",
                    export.display()
                ),
            ])
            .stdin(Stdio::null())
            .stdout(said.try_clone().context("sharing the daemon's log")?)
            .stderr(said)
            .spawn()
            .context("starting qemu-storage-daemon")?;
        // From here on, dropping it ends the process.
        let mut recorder = Self {
            daemon,
            export,
            log,
        };
        let started = Instant::now();
        while fs::metadata(&recorder.export).map_or(0, |export| export.len()) != DISK_SIZE {
            let ended = recorder
                .daemon
                .try_wait()
                .context("asking after the daemon")?;
            ensure!(
                ended.is_none() && started.elapsed() < SERVING,
                "qemu-storage-daemon does not serve the disk: {}",
                fs::read_to_string(place.join("daemon.log")).unwrap_or_default()
            );
            thread::sleep(Duration::from_millis(10));
        }
        recorder.switch_off_read_ahead()?;
        Ok(recorder)
    }

    fn switch_off_read_ahead(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
        let device = mounts
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ').skip(2);
                let device = words.next()?;
                (words.nth(1)? == self.export.to_str()?).then_some(device)
            })
            .next_back()
            .with_context(|| format!("{} is not mounted", self.export.display()))?;
        let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
        fs::write(&setting, "0").with_context(|| format!("writing {setting}"))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Either fails only where the process is gone already; what it mounted goes with it.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = Command::new("umount")
            .args(["--lazy", "--quiet"])
            .arg(&self.export)
            .stderr(Stdio::null())
            .status();
    }
}
