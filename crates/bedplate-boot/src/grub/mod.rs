//! GRUB on a BIOS machine: what starts it, what it reads, and where it counts.
//!
//! ```text
//! MBR: boot.img ─→ BIOS boot partition: core.img ─→ bedplate/grub.cfg      never changed
//!                                                   bedplate/grubenv       one sector: what boots, and tries
//!                                                   bedplate/entries/…     a fragment for each deployment
//!                                                   bedplate/trials/…      one for what is on trial
//! ```
//!
//! Invariant: what is on trial has tries in the sector, or it does not boot; GRUB takes one away before it
//! loads a kernel, and boots the base where that cannot be written.

mod core;
mod environment;
mod fragment;

use bedplate_model::record::DeploymentId;

pub use core::{BootCode, BuildError, CORE_MAX, Place, boot_code};
pub use environment::{Environment, Trial};
pub(crate) use fragment::{fragment, plain_word};

use crate::entry::EntryName;

/// The directory of everything that GRUB reads, but kernels and initramfs images, on the boot partition.
pub const DIRECTORY: &str = "bedplate";
/// GRUB's configuration.
pub const CONFIG: &str = "bedplate/grub.cfg";
/// GRUB's environment block: what boots.
pub const ENVIRONMENT: &str = "bedplate/grubenv";
/// The directory of deployments that are not on trial.
pub(crate) const ENTRIES: &str = "bedplate/entries";
/// The directory of what is on trial.
pub(crate) const TRIALS: &str = "bedplate/trials";

/// What [`CONFIG`] holds, on every machine.
pub const CONFIG_TEXT: &str = include_str!("grub.cfg");

/// Returns the path of a fragment. Its tries stand elsewhere.
pub(crate) fn entry_path(name: &EntryName) -> String {
    match name.base {
        None => format!("{ENTRIES}/bedplate-{}.cfg", name.deployment),
        Some(base) => format!("{TRIALS}/bedplate-{base}-{}.cfg", name.deployment),
    }
}

/// Returns the deployment whose fragment has this name in [`ENTRIES`].
pub(crate) fn parse_entry(name: &str) -> Option<DeploymentId> {
    stem(name)?.parse().ok()
}

/// Returns base and deployment of the fragment that has this name in [`TRIALS`].
pub(crate) fn parse_trial(name: &str) -> Option<(DeploymentId, DeploymentId)> {
    let (base, deployment) = stem(name)?.split_once('-')?;
    Some((base.parse().ok()?, deployment.parse().ok()?))
}

fn stem(name: &str) -> Option<&str> {
    name.strip_prefix("bedplate-")?.strip_suffix(".cfg")
}
