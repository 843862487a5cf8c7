//! The check of the physical root's file system.
//!
//! ```text
//! fsck.mode=  auto (the file system says that it has errors) · force · skip       as systemd-fsck has them
//! fsck.repair= preen · yes · no
//!
//! root read-only → image → the image's e2fsck, in the image → root writable
//!                                      └─ it mended something: restart
//! ```
//!
//! The journal of an ext4 is replayed by its mount, so a power cut alone asks for no check.
//!
//! Invariant: what checks is part of the image, and so was measured before. Nothing that a check finds keeps a
//! machine from booting: what is read is measured, and a machine that is up can be helped.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus};

use bedplate_boot::cmdline::{CheckMode, CheckRepair, FilesystemCheck};
use bedplate_model::layout;
use bedplate_sys::mount::{self, Unmount};

use crate::console::{self, Failure};

/// Where images have the program, below their root.
const PROGRAMS: [&str; 2] = ["/usr/sbin/e2fsck", "/sbin/e2fsck"];
/// Errors were corrected, and the machine should be restarted; e2fsck(8).
const RESTART: i32 = 2;
/// Errors were left, or the check itself failed: this and all above.
const LEFT: i32 = 4;

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    /// The file system is fine, or as fine as it gets.
    GoOn,
    /// What was mounted is not what is on the disk any more.
    Restart,
}

/// Returns whether the file system on a device is to be checked. One that was never sealed has not booted yet, and
/// has to be written before its image can be trusted.
pub(crate) fn is_wanted(device: &Path, check: FilesystemCheck) -> bool {
    match check.mode {
        CheckMode::Skip => false,
        CheckMode::Force => true,
        CheckMode::Auto => has_errors(device),
    }
}

/// Reads from a superblock whether the kernel found errors: `s_state`, a bit (ext4, "The Super Block").
fn has_errors(device: &Path) -> bool {
    let mut state = [0; 2];
    File::open(device)
        .and_then(|device| device.read_exact_at(&mut state, 1024 + 0x3a))
        .is_ok_and(|()| errors_in(state))
}

pub(crate) fn errors_in(state: [u8; 2]) -> bool {
    u16::from_le_bytes(state) & 2 != 0
}

/// Returns whether the image could be trusted without a write.
pub(crate) fn is_possible(physical: &Path, unsealed_allowed: bool) -> bool {
    unsealed_allowed || physical.join(layout::SEALED).exists()
}

/// Checks the file system on a device, which is mounted read-only, by the image's program.
pub(crate) fn run(device: &Path, image: &Path, repair: CheckRepair) -> Result<Checked, Failure> {
    let Some(program) = PROGRAMS
        .iter()
        .find(|program| image.join(&program[1..]).exists())
    else {
        console::note("the file system is not checked: the image has no e2fsck");
        return Ok(Checked::GoOn);
    };
    let mut shown = Vec::new();
    for name in ["dev", "proc"] {
        let at = image.join(name);
        mount::bind(&Path::new("/").join(name), &at)
            .map_err(|why| Failure::new(format!("show /{name} to the check"), why))?;
        shown.push(at);
    }
    console::note(&format!(
        "checking {} with the image's {program}",
        device.display()
    ));
    let mut command = Command::new(program);
    command.args(["-f", argument(repair)]).arg(device);
    let ended = run_in(image, &mut command);
    for at in shown {
        // What stays is moved with the rest.
        let _ = mount::unmount(&at, Unmount::Lazily);
    }
    match ended {
        Ok(status) => Ok(outcome(status)),
        Err(why) => {
            console::note(&format!("the file system is not checked: {why}"));
            Ok(Checked::GoOn)
        }
    }
}

const fn argument(repair: CheckRepair) -> &'static str {
    match repair {
        CheckRepair::Preen => "-p",
        CheckRepair::Yes => "-y",
        CheckRepair::No => "-n",
    }
}

/// Runs a program with another root, and comes back.
fn run_in(root: &Path, command: &mut Command) -> io::Result<ExitStatus> {
    let here = File::open("/")?;
    rustix::process::chroot(root)?;
    let ended = std::env::set_current_dir("/").and_then(|()| command.status());
    rustix::process::fchdir(&here)?;
    rustix::process::chroot(".")?;
    ended
}

/// Says what e2fsck's code means: a sum of bits, of which the larger are the worse.
fn outcome(status: ExitStatus) -> Checked {
    let code = status.code().unwrap_or(128 + status.signal().unwrap_or(0));
    if code >= LEFT {
        console::error(&format!(
            "the file system has errors that are left (e2fsck ended with {code}); going on"
        ));
        return Checked::GoOn;
    }
    if code & RESTART != 0 {
        return Checked::Restart;
    }
    Checked::GoOn
}
