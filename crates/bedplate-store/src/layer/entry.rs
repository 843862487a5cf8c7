//! One member of a tar, with every extension applied.

use bedplate_model::{FileContent, Metadata, Rdev, TreePath};

/// One member of a layer's tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it lies; whiteouts have their own names here.
    pub path: TreePath,
    /// Owner, permissions, time, extended attributes.
    pub metadata: Metadata,
    /// What it is.
    pub kind: EntryKind,
}

/// What a member of a tar is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file and its body.
    File(FileContent),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// One more name for what lies at the path.
    HardLink(TreePath),
    /// A block device.
    BlockDevice(Rdev),
    /// A character device.
    CharacterDevice(Rdev),
    /// A named pipe.
    Fifo,
}
