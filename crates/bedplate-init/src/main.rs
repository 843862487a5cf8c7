//! Early boot: the first program of the initramfs. It mounts the deployment that the command line
//! names, and starts its init.
//!
//! ```text
//! device filesystems → modules → root device → /sysroot
//!   → seal (once) → image → /newroot → /etc, /var → switch
//! ```
//!
//! Invariant: nothing of an image runs, and nothing of it is shown, before its digest was found to be
//! the one on the command line. Whatever fails, the machine restarts, so that the loader's counting
//! goes on.

mod agent;
mod check;
mod console;
mod copy;
mod devices;
mod guest;
mod root;
mod seal;
mod state;
mod switch;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use bedplate_boot::cmdline::{BootArguments, Cmdline};

use bedplate_sys::mount::{self, Access, Unmount};

use crate::check::Checked;
use crate::console::Failure;
use crate::guest::Guest;

/// How long a message stays readable before the machine restarts.
const READABLE: Duration = Duration::from_secs(10);
/// Where the physical root is mounted until the switch.
const SYSROOT: &str = "/sysroot";
/// Where the image is mounted until the switch.
const NEW_ROOT: &str = "/newroot";

fn main() -> ExitCode {
    if std::process::id() != 1 {
        // The copy of it that a virtual machine's units start.
        if let Some(order) = std::env::args().nth(1) {
            return agent::run(&order);
        }
        console::error("cannot run: this is the first program of an initramfs");
        return ExitCode::FAILURE;
    }
    let mut guest = None;
    let Err(failure) = boot(&mut guest);
    console::error(&failure.to_string());
    if let Some(guest) = &guest {
        guest.failed(&failure);
    }
    if wants_shell() {
        // Returns only when there is no shell.
        let error = Command::new("/bin/sh").exec();
        console::error(&format!("cannot start /bin/sh: {error}"));
    }
    std::thread::sleep(READABLE);
    if let Err(error) = bedplate_sys::reboot::now() {
        console::error(&format!("cannot restart: {error}"));
    }
    // The kernel panics when its first program ends, and restarts after `panic=` seconds.
    ExitCode::FAILURE
}

/// Boots, from first to last; `guest` is whoever runs this virtual machine, once they are found.
fn boot(guest: &mut Option<Guest>) -> Result<Infallible, Failure> {
    devices::mount_kernel_filesystems()?;
    let cmdline = std::fs::read_to_string("/proc/cmdline")
        .map_err(|why| Failure::new("read the kernel command line", why))?;
    let cmdline = Cmdline::parse(&cmdline);
    let modules = devices::Modules::listed()?;
    *guest = Guest::found(&cmdline, &modules);
    let told =
        BootArguments::of(&cmdline).map_err(|why| Failure::new("find out what to boot", why))?;

    modules.load_needed();
    let device = devices::wait_for(&told.root, &modules)?;
    let physical = Path::new(SYSROOT);
    let new_root = Path::new(NEW_ROOT);
    if check::is_wanted(&device, told.check) {
        check_filesystem(&device, physical, new_root, &told)?;
    }
    root::mount_physical(&device, physical, Access::ReadWrite)?;

    if !told.image.unsealed_allowed {
        seal::seal_once(physical)?;
    }
    let image = root::open_image(physical, &told.image)?;
    let mounted = root::mount_image(physical, &image, &told.image, new_root)?;

    let etc = state::Etc {
        deployment: told.deployment,
        mode: told.etc,
        image: &image,
        wanted: &told.image,
    };
    state::provide_etc(physical, &etc, new_root)?;
    state::provide_var(physical, new_root)?;
    root::move_physical(physical, new_root)?;
    switch::tell(&device, &told, mounted)?;
    switch::switch(new_root, &told.init)
}

/// Checks the physical root's file system, with nothing of it mounted writable.
fn check_filesystem(
    device: &Path,
    physical: &Path,
    new_root: &Path,
    told: &BootArguments,
) -> Result<(), Failure> {
    root::mount_physical(device, physical, Access::ReadOnly)?;
    let mut checked = Checked::GoOn;
    if check::is_possible(physical, told.image.unsealed_allowed) {
        let image = root::open_image(physical, &told.image)?;
        root::mount_image(physical, &image, &told.image, new_root)?;
        checked = check::run(device, new_root, told.check.repair)?;
        mount::unmount(new_root, Unmount::Now)
            .map_err(|why| Failure::new("take the image off after the check", why))?;
    } else {
        console::note("the file system is not checked: its first boot has not sealed it yet");
    }
    mount::unmount(physical, Unmount::Now)
        .map_err(|why| Failure::new("take the root off after the check", why))?;
    if checked == Checked::Restart {
        console::note("the file system was mended; restarting");
        bedplate_sys::reboot::now().map_err(|why| Failure::new("restart after the check", why))?;
    }
    Ok(())
}

/// Returns whether the command line, as far as it can be read, asks for a shell.
fn wants_shell() -> bool {
    std::fs::read_to_string("/proc/cmdline")
        .is_ok_and(|text| Cmdline::parse(&text).flag(bedplate_boot::cmdline::DEBUG))
}
