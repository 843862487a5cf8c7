//! Writes an image, front to back, and computes its digest on the way.

use std::io::{self, Write};

use bedplate_model::name::shown;
use bedplate_model::{ErofsVersion, ObjectId, Rdev, Tree};
use xxhash_rust::xxh32::xxh32;

use super::Options;
use super::ondisk::{
    BLOCK, CHUNK_BASED, COMPOSEFS_HAS_ACL, COMPOSEFS_HEADER_VERSION, COMPOSEFS_MAGIC, DIRENT_LEN,
    ELSEWHERE_MAX, EROFS_MAGIC, FEATURE_COMPAT, FIRST_INODE, FLAT_INLINE, FLAT_PLAIN, NO_CHUNK,
    SLOT, SUPERBLOCK, XATTR_FILTER_SEED, XATTR_HEADER_LEN, XATTRS_MAX, dirent_type, split_xattr,
};
use super::overlay::Xattr;
use super::place::{Place, Places, chunks, entry_len, groups};
use super::plan::{Body, Inode, Plan, encode};
use crate::verity::Hasher;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The version that the image has.
    pub version: ErofsVersion,
    /// The fs-verity digest of the image.
    pub id: ObjectId,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The bytes could not be written.
    #[error("cannot write the image")]
    Write(#[from] io::Error),
    /// The image would need more inodes or blocks than the format counts, or a file is larger than 4 PiB.
    #[error("the tree is too large for an EROFS image")]
    TooLarge,
    /// The extended attribute with this name has a name or a value that is too long.
    #[error("the extended attribute `{0}` is too long for an EROFS image")]
    Xattr(String),
    /// One node has too many of them.
    #[error("the extended attributes of a node are too long together for an EROFS image")]
    Xattrs,
    /// Linux has no device with these numbers.
    #[error("there can be no device {}:{}", .0.major, .0.minor)]
    Device(Rdev),
}

/// Writes the image of a tree.
///
/// The digest has the algorithm of the tree's objects, or SHA-256 where it has none.
pub fn write(tree: &Tree, options: &Options, out: &mut dyn Write) -> Result<Written, WriteError> {
    let plan = Plan::new(tree, options);
    let places = Places::new(&plan);
    if u32::try_from(places.blocks).is_err() {
        return Err(WriteError::TooLarge);
    }
    for (inode, place) in plan.inodes.iter().zip(&places.inodes) {
        check(inode, place)?;
    }
    let mut out = Output {
        out,
        buffer: Vec::with_capacity(BUFFER + BLOCK as usize),
        hasher: Hasher::new(plan.algorithm),
        flushed: 0,
    };
    write_head(&plan, &places, &mut out);
    for ((number, inode), place) in (0..).zip(&plan.inodes).zip(&places.inodes) {
        out.pad_to(place.position);
        write_inode((number, inode), place, &plan, &places, &mut out);
        out.flush_some()?;
    }
    out.pad_to(places.inodes_end);
    for shared in &places.shared {
        write_xattr(&shared.xattr, &mut out);
        out.flush_some()?;
    }
    out.pad_to(places.data);
    for (inode, place) in plan.inodes.iter().zip(&places.inodes) {
        if place.blocks > 0 {
            out.pad_to(place.address * BLOCK);
            write_blocks(inode, place, &plan, &places, &mut out);
            out.flush_some()?;
        }
    }
    out.pad_to(places.blocks * BLOCK);
    let (id, bytes) = out.finish()?;
    Ok(Written {
        version: plan.version,
        id,
        bytes,
    })
}

/// How many bytes are collected before they go out.
const BUFFER: usize = 256 * 1024;

/// The image as far as it is written: bytes are collected, hashed, and passed on.
struct Output<'a> {
    out: &'a mut dyn Write,
    buffer: Vec<u8>,
    hasher: Hasher,
    flushed: u64,
}

impl Output<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn pad_to(&mut self, position: u64) {
        let length = position - self.flushed;
        debug_assert!(length >= self.buffer.len() as u64, "places never overlap");
        self.buffer.resize(length as usize, 0);
    }

    fn flush_some(&mut self) -> io::Result<()> {
        if self.buffer.len() >= BUFFER {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hasher.update(&self.buffer);
        self.out.write_all(&self.buffer)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<(ObjectId, u64)> {
        self.flush()?;
        Ok((self.hasher.finish(), self.flushed))
    }
}

/// Refuses what the widths of the format's numbers cannot hold: nothing is ever cut off.
fn check(inode: &Inode<'_>, place: &Place) -> Result<(), WriteError> {
    for xattr in inode.xattrs() {
        let suffix = split_xattr(xattr.name()).1;
        if u8::try_from(suffix.len()).is_err() || u16::try_from(xattr.value_len()).is_err() {
            return Err(WriteError::Xattr(shown(xattr.name())));
        }
    }
    if place.xattr_len(inode) > XATTRS_MAX {
        return Err(WriteError::Xattrs);
    }
    match inode.body {
        Body::Elsewhere { size, .. } if size > ELSEWHERE_MAX => Err(WriteError::TooLarge),
        Body::Device(device) if encode(device).is_none() => Err(WriteError::Device(device)),
        _ => Ok(()),
    }
}

fn write_head(plan: &Plan<'_>, places: &Places<'_>, out: &mut Output<'_>) {
    let has_acl = plan.inodes.iter().any(|inode| {
        let mut xattrs = inode.xattrs();
        xattrs.any(|xattr| matches!(split_xattr(xattr.name()).0, 2 | 3))
    });
    out.put(&COMPOSEFS_MAGIC.to_le_bytes());
    out.put(&COMPOSEFS_HEADER_VERSION.to_le_bytes());
    out.put(&if has_acl { COMPOSEFS_HAS_ACL } else { 0 }.to_le_bytes());
    out.put(&plan.version.number().to_le_bytes());
    out.pad_to(SUPERBLOCK);
    out.put(&EROFS_MAGIC.to_le_bytes());
    out.put(&[0; 4]); // no checksum
    out.put(&FEATURE_COMPAT.to_le_bytes());
    out.put(&[BLOCK.trailing_zeros() as u8, 0]);
    out.put(&((places.inodes[0].position / SLOT) as u16).to_le_bytes());
    out.put(&(plan.inodes.len() as u64).to_le_bytes());
    out.put(&places.earliest.seconds.to_le_bytes());
    out.put(&places.earliest.nanoseconds.to_le_bytes());
    out.put(&(places.blocks as u32).to_le_bytes());
    out.put(&[0; 4]); // node ids count from the image's beginning
    out.put(&((places.inodes_end / BLOCK) as u32).to_le_bytes());
    out.pad_to(FIRST_INODE); // no UUID, no name, no features
}

fn write_inode(
    (number, inode): (u32, &Inode<'_>),
    place: &Place,
    plan: &Plan<'_>,
    places: &Places<'_>,
    out: &mut Output<'_>,
) {
    let layout = match &inode.body {
        Body::Elsewhere { .. } => CHUNK_BASED,
        _ if place.tail > 0 => FLAT_INLINE,
        _ => FLAT_PLAIN,
    };
    let xattr_len = place.xattr_len(inode);
    let xattr_count = if xattr_len == 0 {
        0
    } else {
        (xattr_len - XATTR_HEADER_LEN) / 4 + 1
    };
    let union = match &inode.body {
        Body::Elsewhere { size, .. } => chunks(*size).0 - BLOCK.trailing_zeros(),
        Body::Device(device) => encode(*device).unwrap_or(0), // `check` refused any that has none
        Body::Directory(_) | Body::Bytes(_) => place.address as u32,
    };
    out.put(&((layout << 1) | u16::from(place.extended)).to_le_bytes());
    out.put(&(xattr_count as u16).to_le_bytes());
    out.put(&inode.st_mode.to_le_bytes());
    if place.extended {
        out.put(&[0; 2]);
        out.put(&place.size.to_le_bytes());
        out.put(&union.to_le_bytes());
        out.put(&number.to_le_bytes());
        out.put(&inode.uid.to_le_bytes());
        out.put(&inode.gid.to_le_bytes());
        out.put(&inode.mtime.seconds.to_le_bytes());
        out.put(&inode.mtime.nanoseconds.to_le_bytes());
        out.put(&inode.links.to_le_bytes());
        out.put(&[0; 16]);
    } else {
        out.put(&(inode.links as u16).to_le_bytes());
        out.put(&(place.size as u32).to_le_bytes());
        out.put(&[0; 4]);
        out.put(&union.to_le_bytes());
        out.put(&number.to_le_bytes());
        out.put(&(inode.uid as u16).to_le_bytes());
        out.put(&(inode.gid as u16).to_le_bytes());
        out.put(&[0; 4]);
    }
    if xattr_len > 0 {
        write_xattrs(inode, place, places, out);
    }
    match &inode.body {
        Body::Directory(entries) if place.tail > 0 => {
            if let Some(last) = groups(entries).last() {
                write_entries(last, plan, places, out);
            }
        }
        Body::Bytes(bytes) => out.put(&bytes[bytes.len() - place.tail as usize..]),
        Body::Elsewhere { .. } => {
            for _ in 0..place.tail / 4 {
                out.put(&NO_CHUNK.to_le_bytes());
            }
        }
        Body::Directory(_) | Body::Device(_) => {}
    }
}

fn write_xattrs(inode: &Inode<'_>, place: &Place, places: &Places<'_>, out: &mut Output<'_>) {
    let mut present = 0_u32;
    for xattr in inode.xattrs() {
        let (index, suffix) = split_xattr(xattr.name());
        let hash = xxh32(suffix, XATTR_FILTER_SEED + u32::from(index));
        present |= 1 << (hash & 31);
    }
    out.put(&(!present).to_le_bytes());
    out.put(&[place.shared.len() as u8, 0, 0, 0, 0, 0, 0, 0]);
    for shared in &place.shared {
        let offset = places.inodes_end % BLOCK + places.shared[*shared].offset;
        out.put(&((offset / 4) as u32).to_le_bytes());
    }
    let mut local = place.local.iter().peekable();
    for (position, xattr) in inode.xattrs().enumerate() {
        if local.next_if_eq(&&position).is_some() {
            write_xattr(&xattr, out);
        }
    }
}

fn write_xattr(xattr: &Xattr<'_>, out: &mut Output<'_>) {
    let (index, suffix) = split_xattr(xattr.name());
    let value = xattr.value();
    out.put(&[suffix.len() as u8, index]);
    out.put(&(value.len() as u16).to_le_bytes());
    out.put(suffix);
    out.put(&value);
    let padding = entry_len(xattr) - (4 + suffix.len() + value.len()) as u64;
    out.put(&[0; 4][..padding as usize]);
}

/// Writes one block of a directory: its entries, then their names.
fn write_entries(
    entries: &[(&[u8], usize)],
    plan: &Plan<'_>,
    places: &Places<'_>,
    out: &mut Output<'_>,
) {
    let mut offset = entries.len() as u64 * DIRENT_LEN;
    for (name, position) in entries {
        out.put(&(places.inodes[*position].position / SLOT).to_le_bytes());
        out.put(&(offset as u16).to_le_bytes());
        out.put(&[dirent_type(plan.inodes[*position].st_mode), 0]);
        offset += name.len() as u64;
    }
    for (name, _) in entries {
        out.put(name);
    }
}

fn write_blocks(
    inode: &Inode<'_>,
    place: &Place,
    plan: &Plan<'_>,
    places: &Places<'_>,
    out: &mut Output<'_>,
) {
    match &inode.body {
        Body::Directory(entries) => {
            for (block, entries) in (0..place.blocks).zip(groups(entries)) {
                out.pad_to((place.address + block) * BLOCK);
                write_entries(entries, plan, places, out);
            }
        }
        Body::Bytes(bytes) => out.put(&bytes[..bytes.len() - place.tail as usize]),
        Body::Elsewhere { .. } | Body::Device(_) => {}
    }
}
