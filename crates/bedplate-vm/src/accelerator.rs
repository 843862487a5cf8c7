//! Which of QEMU's engines runs a guest at a useful speed here.
//!
//! The presence of /dev/kvm proves nothing: inside some virtual machines it opens, answers, and then
//! emulates the guest one instruction at a time. So a guest of sixteen bytes is run against the clock.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;

/// How long the probe may take: working KVM needs a tenth of this, emulated KVM a hundred times as much.
const PROBE_LIMIT: Duration = Duration::from_secs(4);

/// What QEMU reports when the probe guest writes 0x10 to the exit device: `(0x10 << 1) | 1`.
const PROBE_EXIT: i32 = 33;

/// The probe guest: it fills the reset vector to the byte, counts a hundred million down, and leaves.
const PROBE_GUEST: [u8; 16] = [
    0x66, 0xb9, 0x00, 0xe1, 0xf5, 0x05, // mov ecx, 100_000_000
    0x66, 0x49, // dec ecx
    0x75, 0xfc, // jnz to the dec
    0xba, 0xf4, 0x00, // mov dx, 0xf4: the exit device
    0xb0, 0x10, // mov al, 0x10
    0xee, // out dx, al
];

/// The smallest firmware that QEMU's q35 takes.
const FIRMWARE_SIZE: usize = 64 << 10;

/// An engine of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// Emulation in software: ten to twenty times slower, and available everywhere.
    Tcg,
}

impl Accelerator {
    /// Finds the fastest engine that really works; asked once per process.
    pub fn probe() -> Self {
        static FOUND: OnceLock<Accelerator> = OnceLock::new();
        *FOUND.get_or_init(|| match kvm_works() {
            Ok(true) => Self::Kvm,
            // An error here (no QEMU) shows itself again, and better, at the real start.
            Ok(false) | Err(_) => Self::Tcg,
        })
    }

    /// What a Linux guest must be told to run on it.
    pub fn kernel_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Kvm => &[],
            // Linux waits for some interrupts of its timer at the start, and panics where they do not come in
            // time: on a busy host, emulated ones do not. Under KVM, it leaves that out by itself.
            Self::Tcg => &["no_timer_check"],
        }
    }

    /// The value of QEMU's `-accel`.
    pub fn argument(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg,thread=multi,tb-size=512",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG (software emulation)",
        })
    }
}

fn kvm_works() -> io::Result<bool> {
    if fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return Ok(false);
    }
    // In memory: QEMU finds it by the number that it has in this process.
    let mut firmware = fs::File::from(rustix::fs::memfd_create("probe", MemfdFlags::CLOEXEC)?);
    let mut image = vec![0; FIRMWARE_SIZE];
    image[FIRMWARE_SIZE - PROBE_GUEST.len()..].copy_from_slice(&PROBE_GUEST);
    firmware.write_all(&image)?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), firmware.as_raw_fd());

    let mut qemu = Command::new(super::QEMU);
    qemu.args(["-accel", "kvm", "-M", "q35", "-m", "16", "-nodefaults"])
        .args(["-display", "none", "-no-reboot"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-bios"])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    bedplate_sys::process::end_with_parent(&mut qemu);
    let mut qemu = qemu.spawn()?;
    let started = Instant::now();
    while started.elapsed() < PROBE_LIMIT {
        if let Some(status) = qemu.try_wait()? {
            return Ok(status.code() == Some(PROBE_EXIT));
        }
        thread::sleep(Duration::from_millis(20));
    }
    qemu.kill()?;
    qemu.wait()?;
    Ok(false)
}
