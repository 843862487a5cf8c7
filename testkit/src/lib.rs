//! For tests and developer commands only: trees to try things on, and machines to boot.
//!
//! ```text
//! trial    the real program on real file systems, and what must hold whatever goes wrong
//! powercut what a power cut at any write leaves of it
//! faults   death and errors at any system call, and a full disk
//! loader   what systemd-boot would start
//! sealed_ext4  files sealed with fs-verity, made readable where the kernel has none
//! qemu     a virtual machine with a serial log, a shell over ssh, and one server in its network
//! ```
//!
//! Nothing that ships depends on this crate, so it may speak anyhow.

pub mod faults;
pub mod loader;
pub mod powercut;
pub mod qemu;
pub mod sealed_ext4;
pub mod trees;
pub mod trial;
