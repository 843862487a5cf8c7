//! Virtual machines: what QEMU must be told so that a guest of ours runs, wherever it is started.
//!
//! ```text
//! Accelerator::probe ─┐
//! Firmware::find     ─┼→ options ─→ a command line of QEMU, for `bedplate vm` and for the tests' machines
//! disks, ports       ─┘
//! serial log ─→ serial ─→ what a person should see of it, and whether the boot failed
//! ```
//!
//! Invariant: what is known about QEMU and its versions stands here once.

mod accelerator;
mod firmware;
pub mod options;
pub mod serial;

pub use accelerator::Accelerator;
pub use firmware::{Firmware, NoFirmware};

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";
