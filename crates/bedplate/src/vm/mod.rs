//! A virtual machine of one run: its place, its process, and what it says.
//!
//! ```text
//! Scratch ── a directory for disk, log, keys and socket, gone with its owner
//! Machine ── QEMU ─┬─ control   frames of bedplate_boot::guest, by a socket that only we have
//!                  ├─ shell     one ssh connection at a time: shell.sock in the scratch directory
//!                  └─ serial    a log that is watched, or the terminal
//! ```
//!
//! Invariant: QEMU never outlives this process, and what was made is removed unless this process is killed.

mod machine;
mod scratch;
mod shell;

pub(crate) use machine::{Machine, MachineOptions, Start, VmError};
pub(crate) use scratch::Scratch;
pub(crate) use shell::{Keys, no_ssh};
