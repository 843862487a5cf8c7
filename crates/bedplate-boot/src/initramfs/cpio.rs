//! A cpio archive in the "newc" form, which is what the kernel unpacks.
//!
//! ```text
//! 070701 ino mode uid gid nlink mtime size devmaj devmin rdevmaj rdevmin namesize check   8 hex each
//! name NUL, padded to 4 · content, padded to 4 · … · TRAILER!!!
//! ```
//!
//! Invariant: entries stand in the order of their names, each directory before what is in it, and
//! times are zero.

use std::collections::BTreeMap;

const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;

/// An archive that is being filled.
#[derive(Debug, Default)]
pub(super) struct Archive {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    content: Vec<u8>,
}

impl Archive {
    /// Adds a directory, with those above it.
    pub(super) fn directory(&mut self, path: &str) {
        self.parents(path);
        self.add(path, DIRECTORY | 0o755, (0, 0), Vec::new());
    }

    /// Adds a file, with the directories above it.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        self.parents(path);
        self.add(path, REGULAR | mode, (0, 0), content);
    }

    /// Adds a character device, with the directories above it.
    pub(super) fn character_device(&mut self, path: &str, mode: u32, device: (u32, u32)) {
        self.parents(path);
        self.add(path, CHARACTER_DEVICE | mode, device, Vec::new());
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.add(&path[..at], DIRECTORY | 0o755, (0, 0), Vec::new());
        }
    }

    fn add(&mut self, path: &str, mode: u32, device: (u32, u32), content: Vec<u8>) {
        self.entries.insert(
            path.to_owned(),
            Entry {
                mode,
                device,
                content,
            },
        );
    }

    /// Returns the bytes of the archive.
    pub(super) fn finish(self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            record(&mut out, number, path, entry);
        }
        let end = Entry {
            mode: 0,
            device: (0, 0),
            content: Vec::new(),
        };
        record(&mut out, 0, "TRAILER!!!", &end);
        out
    }
}

fn record(out: &mut Vec<u8>, inode: u32, path: &str, entry: &Entry) {
    let links = if entry.mode & DIRECTORY == 0 { 1 } else { 2 };
    let (major, minor) = entry.device;
    // Modules are at most 64 MiB long, and names a few hundred bytes: both fit.
    let (size, name_size) = (entry.content.len() as u32, path.len() as u32 + 1);
    out.extend_from_slice(b"070701");
    for field in [
        inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0,
    ] {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(&entry.content);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}
