//! From the initramfs to the image: the last steps.
//!
//! Invariant: after the switch nothing of the initramfs is left in memory but this program, and that
//! only until init takes its place.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use bedplate_boot::cmdline::{BootArguments, BootRoot};
use bedplate_model::layout;
use bedplate_sys::mount;

use crate::console::{self, Failure};
use crate::root::Mounted;

/// Tells the running system what was booted and how, and where its root lies: systemd cannot see
/// through an overlay.
pub(crate) fn tell(device: &Path, told: &BootArguments, mounted: Mounted) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        fs::create_dir_all("/run/systemd")?;
        let number = fs::metadata(device)?.rdev();
        std::os::unix::fs::symlink(by_number(number), "/run/systemd/volatile-root")?;
        let booted = Path::new(layout::BOOTED);
        if let Some(directory) = booted.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(booted, booted_text(told, mounted))
    };
    write().map_err(|why| Failure::new("write down what was booted", why))
}

/// Returns a device's name by its number: the form that systemd's gpt-auto generator takes apart.
fn by_number(device: u64) -> String {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    format!("/dev/block/{major}:{minor}")
}

/// The document that the running system reads. Its values are digits and words: nothing to escape.
pub(crate) fn booted_text(told: &BootArguments, mounted: Mounted) -> String {
    let root = BootRoot {
        unsealed_allowed: false,
        ..told.image
    };
    let features = &mounted.features;
    format!(
        "{{\"deployment\":\"{}\",\"root\":\"{root}\",\"verity\":\"{}\",\"kernel-features\":\
         {{\"erofs_file\":{},\"data_only\":{},\"overlay_verity\":{}}}}}\n",
        told.deployment,
        mounted.checked.name(),
        features.erofs_file,
        features.data_only,
        features.overlay_verity,
    )
}

/// Makes the new root the only one, and becomes its init.
pub(crate) fn switch(new_root: &Path, init: &str) -> Result<Infallible, Failure> {
    // Said here: from the next step on there is no log to write to.
    console::note(&format!("starting {init}"));
    for name in ["dev", "proc", "sys", "run"] {
        let from = Path::new("/").join(name);
        mount::move_to(&from, &new_root.join(name))
            .map_err(|why| Failure::new(format!("move /{name} into the image"), why))?;
    }
    let failed = |why| Failure::new("make the image the root", why);
    // The memory of the initramfs: what cannot be freed is only wasted.
    let _ = fs::symlink_metadata("/").and_then(|root| free(Path::new("/"), root.dev()));
    std::env::set_current_dir(new_root).map_err(failed)?;
    mount::move_to(Path::new("."), Path::new("/")).map_err(failed)?;
    rustix::process::chroot(".").map_err(|why| failed(why.into()))?;
    std::env::set_current_dir("/").map_err(failed)?;
    let why = Command::new(init).exec();
    Err(Failure::new(format!("start {init}"), why))
}

/// Removes what lies in a directory on the device `device`; other file systems are left alone.
fn free(directory: &Path, device: u64) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            free(&path, device)?;
            // Not empty where another file system is mounted below.
            let _ = fs::remove_dir(&path);
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
