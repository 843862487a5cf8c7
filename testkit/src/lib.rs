//! For tests and developer commands only: trees to try things on, and machines to boot.
//!
//! ```text
//! qemu     a virtual machine with a serial log, a shell over ssh, and one server in its network
//! ```
//!
//! Nothing that ships depends on this crate, so it may speak anyhow.

pub mod qemu;
pub mod trees;
