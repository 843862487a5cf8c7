//! A virtual machine that a test can watch, talk to and reboot.
//!
//! ```text
//!             ┌──────────────── guest ────────────────┐
//! log file ←──┤ ttyS0 (boot log)                      │
//! ssh      ──→┤ :22   commands and their results      │  through one forwarded port
//! registry ←──┤ 10.0.2.100:5000                       │  the only server that the guest can reach
//! disk.img ───┤ nvme                                  │
//!             └───────────────────────────────────────┘
//! ```
//!
//! Invariant: a `Machine` owns its QEMU process; dropping it ends that process and no other.
//! Time limits count from the last sign of life on the serial line, so that slow is not taken for stuck.

mod ssh;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

pub use bedplate_vm::Accelerator;
use bedplate_vm::{Firmware, QEMU, options as pieces, serial};
use ssh::Shell;
pub use ssh::{KeyPair, Ran};

/// Where the guest finds the one server that it may talk to.
pub const REGISTRY: &str = "10.0.2.100:5000";

/// How long the serial line may stay silent while something is awaited. A quiet boot under software
/// emulation says nothing for half a minute, and several times that where others load the host.
const SILENCE: Duration = Duration::from_secs(180);

/// How long anything may be awaited in all, however much the guest talks.
const CEILING: Duration = Duration::from_secs(10 * 60);

/// The largest log of writes that is expected; the file is empty where nothing was written.
const LOG_SIZE: u64 = 16 << 30;

/// How often the serial log and the shell are looked at.
const POLL: Duration = Duration::from_millis(250);

/// What a machine starts from.
#[derive(Clone, Debug)]
pub enum Boot {
    /// UEFI firmware, which finds its loader on the disk; its variables are kept in this file.
    Uefi {
        /// Made from the firmware's template where it does not exist.
        variables: PathBuf,
    },
    /// A BIOS, which starts the code in the disk's first sector.
    Bios,
    /// A kernel handed over by QEMU itself.
    Kernel {
        /// The kernel.
        kernel: PathBuf,
        /// Its first root, if it needs one.
        initramfs: Option<PathBuf>,
        /// Its command line.
        arguments: String,
    },
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// What it starts from.
    pub boot: Boot,
    /// Its disk: a raw image, written to.
    pub disk: PathBuf,
    /// A second disk, such as somebody carries from one place to another: a raw image, only read.
    pub carried: Option<PathBuf>,
    /// Whether it has a watchdog (an i6300esb) that resets it.
    pub watchdog: bool,
    /// Where its serial line is logged; begun anew at the start.
    pub serial_log: PathBuf,
    /// Its memory in MiB.
    pub memory: u32,
    /// Its processors.
    pub processors: u32,
    /// The port on the host's loopback that the guest sees as [`REGISTRY`].
    pub registry_port: Option<u16>,
    /// The key that opens a shell as root.
    pub key: KeyPair,
}

/// A running virtual machine.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    serial_log: PathBuf,
    shell: Shell,
    /// The boot that the last command ran in, by the kernel's own random id.
    boot_id: Option<String>,
}

impl Machine {
    /// Starts a machine. It is not up yet: see [`Machine::wait_until_up`].
    pub fn start(options: &MachineOptions) -> Result<Self> {
        Self::launch(options, None)
    }

    /// Starts a machine, and has every write and flush of its disk written down in `log`, which
    /// [`crate::powercut::log`] reads.
    pub fn start_recorded(options: &MachineOptions, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        file.set_len(LOG_SIZE).context("making the log of writes")?;
        Self::launch(options, Some(log))
    }

    fn launch(options: &MachineOptions, write_log: Option<&Path>) -> Result<Self> {
        let ssh_port = free_port().context("finding a free port for ssh")?;
        // QEMU appends; a log of an earlier run would answer for this one.
        File::create(&options.serial_log)
            .with_context(|| format!("creating {}", options.serial_log.display()))?;
        let stderr_log = options.serial_log.with_extension("qemu");
        let stderr = File::create(&stderr_log)
            .with_context(|| format!("creating {}", stderr_log.display()))?;
        let qemu = command_line(options, write_log, ssh_port)?
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("starting {QEMU}"))?;
        Ok(Self {
            qemu,
            serial_log: options.serial_log.clone(),
            shell: Shell::new(options.key.clone(), ssh_port)?,
            boot_id: None,
        })
    }

    /// Waits until a shell answers from a boot that was not seen before, and tells how long it took.
    pub fn wait_until_up(&mut self) -> Result<Duration> {
        let started = Instant::now();
        let before = self.boot_id.clone();
        let mut patience = Patience::new();
        loop {
            self.check_life(&mut patience, "a shell in the guest")?;
            if let Some(now) = self.shell.boot_id()? {
                if before.as_deref() != Some(now.as_str()) {
                    self.boot_id = Some(now);
                    return Ok(started.elapsed());
                }
                // Still the boot that is shutting down; its connection must not be reused.
                self.shell.hang_up();
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until `script` succeeds in a boot that was not seen before, however many boots come before that
    /// one, and tells how long it took.
    pub fn wait_for_boot(&mut self, script: &str) -> Result<Duration> {
        let started = Instant::now();
        let before = self.boot_id.clone();
        let mut patience = Patience::new();
        loop {
            self.check_life(
                &mut patience,
                &format!("`{script}` to succeed in the guest"),
            )?;
            let boot = self.shell.boot_id()?;
            if boot.is_some() && boot != before && self.run(script)?.code == 0 {
                self.boot_id = boot;
                return Ok(started.elapsed());
            }
            // Its machine may be restarting; the connection must not be reused.
            self.shell.hang_up();
            thread::sleep(POLL);
        }
    }

    /// Waits until `pattern` stands on the serial line, from `position` (a value of
    /// [`Machine::serial_position`]) on.
    pub fn wait_for_serial(&mut self, pattern: &str, position: usize) -> Result<()> {
        let mut patience = Patience::new();
        loop {
            let log = self.serial()?;
            if log
                .get(position..)
                .is_some_and(|new| contains(new, pattern))
            {
                return Ok(());
            }
            self.check_life(&mut patience, &format!("`{pattern}` on the serial line"))?;
            thread::sleep(POLL);
        }
    }

    /// How much has been said on the serial line.
    pub fn serial_position(&self) -> Result<usize> {
        Ok(self.serial()?.len())
    }

    /// Runs `script` in the guest's shell, as root; a failing script is a result, not an error.
    pub fn run(&mut self, script: &str) -> Result<Ran> {
        self.shell.run(script, CEILING)
    }

    /// Runs `script` in the guest's shell and returns what it printed; a failing script is an error.
    pub fn check(&mut self, script: &str) -> Result<String> {
        let ran = self.run(script)?;
        ensure!(
            ran.code == 0,
            "`{script}` in the guest ended with {}:\n{}{}",
            ran.code,
            ran.stdout,
            ran.stderr
        );
        Ok(ran.stdout)
    }

    /// Has the guest reboot in good order and waits until it is up again.
    pub fn reboot(&mut self) -> Result<Duration> {
        let started = Instant::now();
        // The answer may be lost with the connection; what counts is that another boot comes up.
        let asked = self.run("systemctl reboot");
        self.shell.hang_up();
        if let Ok(Ran { code, stderr, .. }) = asked
            && code != 0
            && code != ssh::CONNECTION_LOST
        {
            bail!("the guest refused to reboot: {stderr}");
        }
        self.wait_until_up()?;
        Ok(started.elapsed())
    }

    /// Waits until the guest has powered itself off, or QEMU left for another reason.
    pub fn wait_for_exit(&mut self) -> Result<()> {
        let mut patience = Patience::new();
        while self.qemu.try_wait()?.is_none() {
            patience.look(&self.serial_log, "the machine to switch itself off")?;
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// The end of the serial log, for people who look for what went wrong.
    pub fn serial_tail(&self, lines: usize) -> String {
        let log = self.serial().unwrap_or_default();
        serial::tail(&log, lines)
    }

    fn serial(&self) -> Result<Vec<u8>> {
        fs::read(&self.serial_log).with_context(|| format!("reading {}", self.serial_log.display()))
    }

    fn check_life(&mut self, patience: &mut Patience, awaited: &str) -> Result<()> {
        if let Some(status) = self.qemu.try_wait().context("asking after QEMU")? {
            let said =
                fs::read_to_string(self.serial_log.with_extension("qemu")).unwrap_or_default();
            bail!("QEMU ended ({status}) before {awaited} was there: {said}");
        }
        patience.look(&self.serial_log, awaited)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.shell.hang_up();
        // Either fails only where the process is gone already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if thread::panicking() {
            #[expect(
                clippy::print_stderr,
                reason = "the test is failing; this is what it needs to say"
            )]
            {
                eprintln!("the end of the serial log:\n{}", self.serial_tail(60));
            }
        }
    }
}

/// A time limit that starts again whenever the guest says something.
struct Patience {
    begun: Instant,
    heard: Instant,
    length: u64,
}

impl Patience {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            heard: now,
            length: 0,
        }
    }

    fn look(&mut self, log: &Path, awaited: &str) -> Result<()> {
        let length = fs::metadata(log).map_or(0, |metadata| metadata.len());
        if length != self.length {
            self.length = length;
            self.heard = Instant::now();
        }
        let (silent, all) = (self.heard.elapsed(), self.begun.elapsed());
        if silent < SILENCE && all < CEILING {
            return Ok(());
        }
        Err(anyhow!(
            "waited {} s for {awaited}; the serial line was silent for the last {} s",
            all.as_secs(),
            silent.as_secs()
        ))
    }
}

fn command_line(
    options: &MachineOptions,
    write_log: Option<&Path>,
    ssh_port: u16,
) -> Result<Command> {
    let mut qemu = Command::new(QEMU);
    qemu.args(pieces::machine(
        Accelerator::probe(),
        options.memory,
        options.processors,
    ))
    .arg("-serial")
    .arg(format!("file:{}", plain(&options.serial_log)?));
    match &options.boot {
        Boot::Uefi { variables } => {
            let firmware = Firmware::find()?;
            if !variables.exists() {
                fs::copy(&firmware.template, variables).with_context(|| {
                    format!(
                        "copying {} to {}",
                        firmware.template.display(),
                        variables.display()
                    )
                })?;
            }
            qemu.args(firmware.options(variables));
        }
        // QEMU brings it.
        Boot::Bios => {}
        Boot::Kernel {
            kernel,
            initramfs,
            arguments,
        } => {
            qemu.arg("-kernel")
                .arg(kernel)
                .arg("-append")
                .arg(arguments);
            if let Some(initramfs) = initramfs {
                qemu.arg("-initrd").arg(initramfs);
            }
        }
    }
    // The host's cache may be lost with the host: nobody keeps these disks.
    match write_log {
        None => {
            qemu.arg("-drive").arg(format!(
                "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file={}",
                plain(&options.disk)?
            ));
        }
        // What is discarded is no write: the log has none.
        Some(log) => {
            for (path, name) in [(options.disk.as_path(), "disk-file"), (log, "log-file")] {
                qemu.arg("-blockdev").arg(format!(
                    "driver=raw,node-name={name},file.driver=file,file.cache.no-flush=on,\
                     file.filename={}",
                    plain(path)?
                ));
            }
            qemu.args([
                "-blockdev",
                "driver=blklogwrites,node-name=disk,file=disk-file,log=log-file,log-sector-size=512",
            ]);
        }
    }
    qemu.arg("-device").arg(match options.boot {
        // Otherwise the firmware tries the network, too.
        Boot::Uefi { .. } | Boot::Bios => "nvme,drive=disk,serial=bedplate,bootindex=0",
        Boot::Kernel { .. } => "nvme,drive=disk,serial=bedplate",
    });
    if let Some(carried) = &options.carried {
        qemu.arg("-drive")
            .arg(format!(
                "if=none,id=carried,format=raw,readonly=on,file={}",
                plain(carried)?
            ))
            .args(["-device", "nvme,drive=carried,serial=carried"]);
    }
    if options.watchdog {
        qemu.args(["-device", "i6300esb", "-action", "watchdog=reset"]);
    }
    let mut network = format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{ssh_port}-:22");
    if let Some(port) = options.registry_port {
        // A process per connection: the form without `cmd:` carries one connection only.
        let _ = write!(
            network,
            ",guestfwd=tcp:{REGISTRY}-cmd:socat - TCP4:127.0.0.1:{port}"
        );
    }
    // No option ROM: nobody boots from this card, and its file is in a package of its own.
    qemu.arg("-netdev").arg(network).args([
        "-device",
        "virtio-net-pci,netdev=net,romfile=",
        "-device",
        "virtio-rng-pci",
    ]);
    Ok(qemu)
}

/// A path as it can stand in one of QEMU's comma-separated options.
fn plain(path: &Path) -> Result<String> {
    pieces::plain(path)
        .into_string()
        .map_err(|path| anyhow!("{} is not UTF-8", path.display()))
}

/// Finds a port that nobody listens on. Another process may take it first; QEMU then refuses to start.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

fn contains(bytes: &[u8], pattern: &str) -> bool {
    bytes
        .windows(pattern.len())
        .any(|window| window == pattern.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_found_between_bytes_that_are_no_text() {
        assert!(contains(b"\xff\xfeready\xff", "ready"));
        assert!(!contains(b"read", "ready"));
    }
}
