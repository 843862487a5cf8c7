//! The numbers of the EROFS format that composefs images use.
//!
//! Linux, `fs/erofs/erofs_fs.h` and "EROFS: core on-disk format"; all numbers are little-endian.

/// The size of a block in bytes.
pub(super) const BLOCK: u64 = 4096;
/// The size of a slot: a node id counts these.
pub(super) const SLOT: u64 = 32;
/// Where the superblock stands.
pub(super) const SUPERBLOCK: u64 = 1024;
/// The length of the superblock.
pub(super) const SUPERBLOCK_LEN: u64 = 128;
/// Where the first inode stands: right behind the superblock.
pub(super) const FIRST_INODE: u64 = SUPERBLOCK + SUPERBLOCK_LEN;

/// Opens a composefs image.
pub(super) const COMPOSEFS_MAGIC: u32 = 0xd078_629a;
/// The version of the composefs header.
pub(super) const COMPOSEFS_HEADER_VERSION: u32 = 1;
/// Some inode has a POSIX access control list.
pub(super) const COMPOSEFS_HAS_ACL: u32 = 1;

/// Opens the superblock.
pub(super) const EROFS_MAGIC: u32 = 0xe0f5_e1e2;
/// Inodes have times (bit 1), and xattrs have filters (bit 2).
pub(super) const FEATURE_COMPAT: u32 = 0x6;

/// The length of an inode without 32-bit owners and a time.
pub(super) const COMPACT_LEN: u64 = 32;
/// The length of an inode with everything.
pub(super) const EXTENDED_LEN: u64 = 64;

/// Content in whole blocks.
pub(super) const FLAT_PLAIN: u16 = 0;
/// Content in whole blocks, its tail behind the inode.
pub(super) const FLAT_INLINE: u16 = 2;
/// Content elsewhere: chunk addresses behind the inode.
pub(super) const CHUNK_BASED: u16 = 4;

/// The address of a chunk that is nowhere in this image.
pub(super) const NO_CHUNK: u32 = 0xffff_ffff;
/// The binary logarithms of the smallest and the largest chunk.
pub(super) const CHUNK_BITS: std::ops::RangeInclusive<u32> = 12..=43;

/// The largest file whose chunk addresses take at most half a block, so that they always find room.
pub(super) const ELSEWHERE_MAX: u64 = 512 << 43;

/// The length of a directory entry without its name.
pub(super) const DIRENT_LEN: u64 = 12;
/// The length of an inode's xattr header.
pub(super) const XATTR_HEADER_LEN: u64 = 12;
/// The most that all about one inode's xattrs can take: its count of 4-byte units has 16 bits.
pub(super) const XATTRS_MAX: u64 = XATTR_HEADER_LEN + (u16::MAX as u64 - 1) * 4;
/// The length of an xattr entry without name and value.
pub(super) const XATTR_ENTRY_LEN: u64 = 4;
/// How many shared xattrs one inode may refer to.
pub(super) const SHARED_MAX: usize = 128;
/// The seed of the hash that an xattr filter takes, to which the prefix's index is added.
pub(super) const XATTR_FILTER_SEED: u32 = 0x25bb_e08f;

/// Prefixes of xattr names, by the index that stands for each.
pub(super) const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Returns the file type of a directory entry for a file type of `st_mode`.
pub(super) const fn dirent_type(st_mode: u16) -> u8 {
    match st_mode & 0o170_000 {
        0o100_000 => 1,
        0o040_000 => 2,
        0o020_000 => 3,
        0o060_000 => 4,
        0o010_000 => 5,
        0o140_000 => 6,
        0o120_000 => 7,
        _ => 0,
    }
}

/// Splits the name of an xattr into the index of its prefix and the rest.
pub(super) fn split_xattr(name: &[u8]) -> (u8, &[u8]) {
    XATTR_PREFIXES
        .iter()
        .find_map(|(index, prefix)| Some((*index, name.strip_prefix(*prefix)?)))
        .unwrap_or((0, name))
}
