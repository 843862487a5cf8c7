//! Where everything stands in an image: extended attributes shared, inodes in slots, data in blocks.
//!
//! ```text
//! 0        composefs header   1024 superblock   1152 inode [xattrs] [tail] │ inode … │ shared xattrs │ data blocks
//! ```
//!
//! Invariant: a tail never crosses the border of a block.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use bedplate_model::Timestamp;

use super::ondisk::{
    BLOCK, CHUNK_BITS, COMPACT_LEN, DIRENT_LEN, EXTENDED_LEN, FIRST_INODE, SHARED_MAX, SLOT,
    XATTR_ENTRY_LEN, XATTR_HEADER_LEN, split_xattr,
};
use super::overlay::Xattr;
use super::plan::{Body, Inode, Plan};

/// Tails that are longer than half a block become a block of their own.
const TAIL_MAX: u64 = BLOCK / 2;

/// Where one inode stands, and how it is written.
#[derive(Debug)]
pub(super) struct Place {
    /// The offset in the image, a multiple of [`SLOT`].
    pub(super) position: u64,
    pub(super) extended: bool,
    /// The length of content in bytes, as the inode says it.
    pub(super) size: u64,
    /// How many blocks of data it has.
    pub(super) blocks: u64,
    /// How many bytes stand behind the inode.
    pub(super) tail: u64,
    /// The address of its first block of data, or 0.
    pub(super) address: u64,
    /// Its shared xattrs, as positions in the table.
    pub(super) shared: Box<[usize]>,
    /// Its other xattrs, in the order of their names, as positions in its own map.
    pub(super) local: Box<[usize]>,
}

/// One xattr that several inodes share.
#[derive(Debug)]
pub(super) struct SharedXattr<'a> {
    pub(super) xattr: Xattr<'a>,
    /// The offset from the beginning of the table.
    pub(super) offset: u64,
}

/// Where everything stands.
#[derive(Debug)]
pub(super) struct Places<'a> {
    pub(super) inodes: Vec<Place>,
    pub(super) shared: Vec<SharedXattr<'a>>,
    /// Where the inodes end and the shared xattrs begin.
    pub(super) inodes_end: u64,
    /// Where the first block of data is; the whole image's length is `blocks` blocks.
    pub(super) data: u64,
    pub(super) blocks: u64,
    /// The earliest time of all inodes: it is the superblock's.
    pub(super) earliest: Timestamp,
}

impl<'a> Places<'a> {
    /// Finds a place for everything in the plan.
    pub(super) fn new(plan: &'a Plan<'a>) -> Self {
        let earliest = plan
            .inodes
            .iter()
            .map(|inode| inode.mtime)
            .min()
            .unwrap_or_default();
        let (shared, index) = share(&plan.inodes);
        let mut position = FIRST_INODE;
        let mut inodes = Vec::with_capacity(plan.inodes.len());
        for inode in &plan.inodes {
            let mut place = Place::unplaced(inode, earliest, &index);
            let head = place.head_len() + place.xattr_len(inode);
            place.position = place.settle(inode, position, head);
            position = (place.position + head + place.tail).next_multiple_of(SLOT);
            inodes.push(place);
        }
        let inodes_end = position;
        let shared_len = shared
            .last()
            .map_or(0, |last| last.offset + entry_len(&last.xattr));
        let data = (inodes_end + shared_len).next_multiple_of(BLOCK);
        let mut block = data / BLOCK;
        for place in &mut inodes {
            if place.blocks > 0 {
                place.address = block;
                block += place.blocks;
            }
        }
        Self {
            inodes,
            shared,
            inodes_end,
            data,
            blocks: block,
            earliest,
        }
    }
}

impl Place {
    fn unplaced(inode: &Inode<'_>, earliest: Timestamp, index: &HashMap<Xattr<'_>, usize>) -> Self {
        let (size, blocks, tail) = match &inode.body {
            Body::Directory(entries) => {
                let (blocks, tail) = measure(entries);
                (blocks * BLOCK + tail, blocks, tail)
            }
            // A link's target is one tail whatever its length, until `settle` sees that it does not fit.
            Body::Bytes(target) if inode.is_symlink() => {
                (target.len() as u64, 0, target.len() as u64)
            }
            Body::Bytes(bytes) => {
                let (blocks, tail) = split_tail(bytes.len() as u64);
                (bytes.len() as u64, blocks, tail)
            }
            Body::Elsewhere { size, .. } => (*size, 0, chunks(*size).1 * 4),
            Body::Device(_) => (0, 0, 0),
        };
        let (mut shared, mut local) = (Vec::new(), Vec::new());
        for (position, xattr) in inode.xattrs().enumerate() {
            match index.get(&xattr) {
                Some(entry) if shared.len() < SHARED_MAX => shared.push(*entry),
                _ => local.push(position),
            }
        }
        let is_small = |number: u32| u16::try_from(number).is_ok();
        let compact = inode.mtime == earliest
            && is_small(inode.links)
            && is_small(inode.uid)
            && is_small(inode.gid)
            && u32::try_from(size).is_ok();
        Self {
            position: 0,
            extended: !compact,
            size,
            blocks,
            tail,
            address: 0,
            shared: shared.into(),
            local: local.into(),
        }
    }

    pub(super) fn head_len(&self) -> u64 {
        if self.extended {
            EXTENDED_LEN
        } else {
            COMPACT_LEN
        }
    }

    /// Returns the length of everything about xattrs that stands behind the inode.
    pub(super) fn xattr_len(&self, inode: &Inode<'_>) -> u64 {
        if self.shared.is_empty() && self.local.is_empty() {
            return 0;
        }
        let mut local = self.local.iter().copied().peekable();
        let entries = inode
            .xattrs()
            .enumerate()
            .filter_map(|(position, xattr)| local.next_if_eq(&position).map(|_| entry_len(&xattr)));
        XATTR_HEADER_LEN + self.shared.len() as u64 * 4 + entries.sum::<u64>()
    }

    /// Finds the position of an inode whose head takes `head` bytes, at `position` or behind it, so
    /// that its tail stands in one block; a tail that cannot do so becomes a block.
    fn settle(&mut self, inode: &Inode<'_>, position: u64, head: u64) -> u64 {
        if self.tail == 0 {
            return position;
        }
        let next_block = position.next_multiple_of(BLOCK);
        if inode.is_symlink() {
            // A link moves as a whole, also when its target then becomes a block all the same.
            let crosses = position / BLOCK != (position + head + self.tail - 1) / BLOCK;
            if head + self.tail >= BLOCK {
                self.blocks = 1;
                self.tail = 0;
            }
            return if crosses { next_block } else { position };
        }
        let room = |position: u64| BLOCK - (position + head) % BLOCK;
        if room(position) >= self.tail {
            return position;
        }
        let padded = position + room(position).next_multiple_of(SLOT);
        if room(padded) >= self.tail {
            return padded;
        }
        self.blocks += 1;
        self.tail = 0;
        next_block
    }
}

/// Returns the blocks of a content and the length of its tail.
fn split_tail(size: u64) -> (u64, u64) {
    match size % BLOCK {
        tail if tail > TAIL_MAX => (size / BLOCK + 1, 0),
        tail => (size / BLOCK, tail),
    }
}

/// Returns the blocks of a directory and the length of its tail.
fn measure(entries: &[(&[u8], usize)]) -> (u64, u64) {
    let groups = groups(entries);
    let last: u64 = groups.last().map_or(0, |group| {
        group
            .iter()
            .map(|(name, _)| DIRENT_LEN + name.len() as u64)
            .sum()
    });
    let full = groups.len().saturating_sub(1) as u64;
    if last > TAIL_MAX {
        (full + 1, 0)
    } else {
        (full, last)
    }
}

/// Splits the entries of a directory into those of each block.
pub(super) fn groups<'e, 'a>(entries: &'e [(&'a [u8], usize)]) -> Vec<&'e [(&'a [u8], usize)]> {
    let mut groups = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (position, (name, _)) in entries.iter().enumerate() {
        let length = DIRENT_LEN + name.len() as u64;
        if used + length > BLOCK {
            groups.push(&entries[start..position]);
            (start, used) = (position, 0);
        }
        used += length;
    }
    groups.push(&entries[start..]);
    groups
}

/// Returns the binary logarithm of the chunk size for a file, and how many chunks it has.
pub(super) fn chunks(size: u64) -> (u32, u64) {
    let bits = size
        .saturating_sub(1)
        .checked_ilog2()
        .map_or(0, |log| log + 1);
    let bits = bits.clamp(*CHUNK_BITS.start(), *CHUNK_BITS.end());
    (bits, size.div_ceil(1 << bits))
}

/// Returns the length of an xattr entry, padded to 4 bytes.
pub(super) fn entry_len(xattr: &Xattr<'_>) -> u64 {
    let suffix = split_xattr(xattr.name()).1;
    (XATTR_ENTRY_LEN + suffix.len() as u64 + xattr.value_len() as u64).next_multiple_of(4)
}

/// Finds the xattrs that occur more than once, in the order of their table: descending by name, then by
/// the length of the value, then by the value.
fn share<'a>(inodes: &'a [Inode<'a>]) -> (Vec<SharedXattr<'a>>, HashMap<Xattr<'a>, usize>) {
    let all = || inodes.iter().flat_map(Inode::xattrs);
    // Nearly all occur once: their hashes tell, in a fraction of the memory of a map of all.
    let keyed = RandomState::new();
    let hash = |xattr: &Xattr<'_>| keyed.hash_one(xattr);
    let mut hashes: Vec<u64> = all().map(|xattr| hash(&xattr)).collect();
    hashes.sort_unstable();
    let suspects: HashSet<u64> = hashes
        .windows(2)
        .filter(|pair| pair[0] == pair[1])
        .map(|pair| pair[0])
        .collect();
    drop(hashes);
    let mut counts: HashMap<Xattr<'_>, usize> = HashMap::new();
    for xattr in all().filter(|xattr| suspects.contains(&hash(xattr))) {
        *counts.entry(xattr).or_default() += 1;
    }
    let mut repeated: Vec<_> = counts
        .into_iter()
        .filter(|(_, count)| *count > 1)
        .map(|(xattr, _)| xattr)
        .collect();
    repeated.sort_by_cached_key(|xattr| Reverse((xattr.name(), xattr.value_len(), xattr.value())));
    let mut offset = 0;
    let mut table = Vec::with_capacity(repeated.len());
    let mut index = HashMap::with_capacity(repeated.len());
    for xattr in repeated {
        index.insert(xattr, table.len());
        table.push(SharedXattr { xattr, offset });
        offset += entry_len(&xattr);
    }
    (table, index)
}
