//! For tests and developer commands only: trees to try things on, and machines to boot.
//!
//! ```text
//! powercut the real program on a recorded disk, and what a power cut at any write leaves of it
//! qemu     a virtual machine with a serial log, a shell over ssh, and one server in its network
//! ```
//!
//! Nothing that ships depends on this crate, so it may speak anyhow.

pub mod powercut;
pub mod qemu;
pub mod trees;
