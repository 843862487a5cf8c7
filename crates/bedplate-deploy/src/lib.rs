//! Machines: installing, staging, finalizing, proving and rolling back deployments.
//!
//! ```text
//! image ─ install ─→ disk ─ boot ─→ proven                                  install, grow
//! image ─ stage ─→ staged ─ finalize (shutdown) ─→ trial ─ boot ─┬─ prove ─→ proven
//!                                                                └─ settle ─→ bad; the base boots again
//!                                       rollback: proven ⇄ proven
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`record_file`] | the record on the disk: two slots, exchanged |
//! | [`host`], [`esp`] | what a verb takes from its machine: root, clock, boot partition |
//! | [`machine`] | the record, what was booted and the boot partition brought together |
//! | [`settle`] | the decision what to do next, as a pure function |
//! | [`stage`], [`finalize`], [`rollback`], [`pin`], [`undeploy`], [`status`] | the verbs |
//! | [`kargs`] | kernel arguments, and changing them |
//! | [`health`] | the gate between trial and proven, and healing |
//! | [`config`] | `machine.toml` |
//! | [`automatic`] | upgrades that nobody asks for, and what they wait for |
//! | [`events`] | the audit log |
//! | [`why`] | what keeps a machine from what it was asked for |
//! | [`etc`] | /etc, merged three ways |
//! | [`usr_overlay`] | a /usr that can be written until the reboot |
//! | [`bootable`] | what boots an image |
//! | [`install`], [`grow`] | a new disk |
//! | [`firmware`], [`loader`] | the firmware's boot options, and the loader's own update |
//!
//! Invariant: the record is the one truth about which deployments a machine has; boot entries are rendered
//! from it. Cut anywhere, a machine boots the old system or the new one.

pub mod automatic;
pub mod bootable;
pub mod config;
pub mod esp;
pub mod etc;
pub mod events;
pub mod finalize;
pub mod firmware;
pub mod grow;
pub mod health;
pub mod host;
pub mod install;
pub mod kargs;
pub mod loader;
pub mod machine;
pub mod pin;
pub mod record_file;
pub mod rollback;
#[cfg(test)]
mod sample;
pub mod settle;
pub mod stage;
pub mod status;
pub mod undeploy;
pub mod usr_overlay;
pub mod why;

pub use finalize::Finalized;
pub use host::Host;
pub use machine::Machine;
pub use stage::{Staged, Staging, UpgradePlan};
pub use status::Status;
