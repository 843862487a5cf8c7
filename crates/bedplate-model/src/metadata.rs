//! What a file system keeps about a node besides its content.

use std::collections::BTreeMap;

/// A point in time: seconds since 1970, and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds since the Unix epoch; negative before it.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// Makes a timestamp of whole seconds.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self {
            seconds,
            nanoseconds: 0,
        }
    }
}

/// Extended attributes by their full name, such as `security.capability`.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Owner, permissions, time and extended attributes of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The permission bits with setuid, setgid and sticky: `0o7777` at most. The file type is the content's.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The time of the last change of content.
    pub mtime: Timestamp,
    /// Every extended attribute.
    pub xattrs: Xattrs,
}

impl Metadata {
    /// Makes the metadata of something that root owns, at time 0, without extended attributes.
    pub fn root_owned(mode: u16) -> Self {
        Self {
            mode: mode & 0o7777,
            ..Self::default()
        }
    }
}
