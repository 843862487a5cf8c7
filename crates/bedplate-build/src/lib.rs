//! Makes bootable images from root directories.
//!
//! ```text
//! build     directory ─→ image: the verb, in its order
//!   lint        what would boot badly
//!   kernel      the one kernel, beside its modules
//!   livable     writable places lead into /var, the package database into /usr
//!   identity    nothing that belongs to one machine
//!   program     Bedplate itself, its units, the initramfs
//! edit      small changes of a tree, all with one time
//! files     the bytes behind a tree: a directory's or a store's
//! ```
//!
//! Invariant: every change is a pure function of the tree that was scanned and of the options, so the
//! same directory gives the same manifest digest. Nothing of an image is ever run.

pub mod build;
pub mod edit;
pub mod files;
pub mod identity;
pub mod kernel;
pub mod lint;
pub mod livable;
pub mod program;
#[cfg(test)]
mod sample;

pub use build::{BuildError, BuildEvent, BuildObserver, BuildOptions, Built, build};
pub use lint::{Finding, LINTS, Lint, Severity, Subject, lint};
