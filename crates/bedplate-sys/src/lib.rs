//! Every raw system call of Bedplate, and all of its `unsafe` blocks.
//!
//! Invariant: no other crate has an `unsafe` block, and every block here says why it is sound.

#![allow(unsafe_code)] // the one crate that may: see above

pub mod block;
pub mod direct;
pub mod durable;
pub mod files;
pub mod lock;
pub mod loopdev;
pub mod module;
pub mod mount;
pub mod namespace;
pub mod process;
pub mod reboot;
pub mod signals;
pub mod space;
pub mod stamp;
pub mod stdio;
pub mod verity;
pub mod xattr;
