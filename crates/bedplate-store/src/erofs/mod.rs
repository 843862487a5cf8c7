//! EROFS images as composefs has them: a tree's metadata in a file that the kernel mounts.
//!
//! ```text
//! tree ─ plan (which inodes, in which order) ─ place (where) ─ write ─→ image, and its fs-verity digest
//! image ─ read ─→ tree
//! ```
//!
//! Contents of up to 64 bytes lie in the image; longer ones are named by their digest, and overlayfs
//! finds them below the objects' directory.
//!
//! Invariants: an image equals what `mkcomposefs` makes of the same tree, byte for byte; reading trusts
//! nothing, and gives the tree that was written.

mod ondisk;
mod overlay;
mod place;
mod plan;
mod read;
mod write;

pub use read::{ReadError, read};
pub use write::{WriteError, Written, write};

use bedplate_model::ErofsVersion;

/// How an image is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The version, exactly, as `mkcomposefs --min-version` has it. (Without that option the tool makes
    /// version 0, and version 1 where there are whiteouts.)
    pub version: ErofsVersion,
    /// What becomes of hard links.
    pub hard_links: HardLinks,
}

/// What becomes of hard links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HardLinks {
    /// They stay: one inode with several names.
    Keep,
    /// Every name gets an inode of its own, as `mkcomposefs` does when it reads a directory.
    Break,
}
