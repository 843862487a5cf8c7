//! Which inodes an image has, in which order, and with which attributes.
//!
//! Breadth first from the root, the entries of a directory in the order of their bytes; a hard-linked
//! node stands where the first of its names stands in a walk depth first.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bedplate_model::{
    Algorithm, Content, ErofsVersion, FileContent, Metadata, Node, NodeId, ObjectId, Rdev,
    Timestamp, Tree, Xattrs,
};

use super::overlay::{self, Xattr};
use super::{HardLinks, Options};

/// Name and value.
type OwnXattr = (Box<[u8]>, Box<[u8]>);

/// One inode of the image.
#[derive(Debug)]
pub(super) struct Inode<'a> {
    pub(super) st_mode: u16,
    pub(super) links: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    /// Its attributes but those that name an object, in the order of their names. No map: a million small
    /// maps are most of the memory of a large image.
    own_xattrs: Box<[OwnXattr]>,
    pub(super) body: Body<'a>,
}

/// What an inode holds.
#[derive(Debug)]
pub(super) enum Body<'a> {
    /// Entries in the order of their bytes, `.` and `..` among them, as positions in the plan.
    Directory(Vec<(&'a [u8], usize)>),
    /// Bytes that lie in the image.
    Bytes(&'a [u8]),
    /// A file whose bytes lie in an object.
    Elsewhere { id: &'a ObjectId, size: u64 },
    /// A device, or nothing at all.
    Device(Rdev),
}

/// All inodes of an image, the root first.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) inodes: Vec<Inode<'a>>,
    pub(super) version: ErofsVersion,
    /// The digest algorithm of the tree's objects; SHA-256 where it has none.
    pub(super) algorithm: Algorithm,
}

/// Where a directory entry leads while the plan grows.
#[derive(Clone, Copy)]
enum Target {
    Inode(usize),
    /// A node that stands elsewhere: another of its names comes first.
    Linked(NodeId),
}

impl<'a> Plan<'a> {
    /// Plans the image of a tree.
    pub(super) fn new(tree: &'a Tree, options: &Options) -> Self {
        let (homes, counts) = match options.hard_links {
            HardLinks::Keep => (first_names(tree), Some(tree.name_counts())),
            HardLinks::Break => (HashMap::new(), None),
        };
        let version = options.version;
        let mut inodes = vec![Inode::directory(tree, Tree::ROOT, version)];
        let mut algorithm = None;
        let mut positions: HashMap<NodeId, usize> = HashMap::new();
        let mut directories = Vec::new();
        // Directories whose entries are not planned yet: node, position, position of the parent.
        let mut pending = VecDeque::from([(Tree::ROOT, 0, 0)]);
        while let Some((directory, position, parent)) = pending.pop_front() {
            let mut entries: Vec<(&'a [u8], Target)> = vec![
                (b".", Target::Inode(position)),
                (b"..", Target::Inode(parent)),
            ];
            for (name, child) in children(tree, directory) {
                let target = match child {
                    Some(id)
                        if homes
                            .get(&id)
                            .is_some_and(|home| *home != (directory, name)) =>
                    {
                        Target::Linked(id)
                    }
                    _ => Target::Inode(inodes.len()),
                };
                entries.push((name, target));
                let Target::Inode(here) = target else {
                    continue;
                };
                let inode = match child {
                    None => Inode::stub(tree),
                    Some(id) if tree.entries(id).is_some() => {
                        pending.push_back((id, here, position));
                        Inode::directory(tree, id, version)
                    }
                    Some(id) => {
                        if homes.contains_key(&id) {
                            positions.insert(id, here);
                        }
                        if let Content::File(FileContent::Object { id, .. }) =
                            &tree.node(id).content
                        {
                            algorithm.get_or_insert(id.algorithm());
                        }
                        let links = counts.as_ref().map_or(1, |counts| counts[id.index()]);
                        Inode::leaf(tree.node(id), links)
                    }
                };
                inodes.push(inode);
            }
            directories.push((position, entries));
        }
        for (position, mut entries) in directories {
            entries.sort_unstable_by_key(|(name, _)| *name);
            let resolve = |(name, target)| match target {
                Target::Inode(position) => (name, position),
                Target::Linked(id) => (name, positions[&id]),
            };
            inodes[position].body = Body::Directory(entries.into_iter().map(resolve).collect());
        }
        Self {
            inodes,
            version,
            algorithm: algorithm.unwrap_or(Algorithm::Sha256),
        }
    }
}

impl<'a> Inode<'a> {
    fn directory(tree: &Tree, id: NodeId, version: ErofsVersion) -> Self {
        let node = tree.node(id);
        let mut whiteouts = false;
        let mut links = 2;
        for child in tree.entries(id).into_iter().flat_map(BTreeMap::values) {
            links += u32::from(tree.entries(*child).is_some());
            whiteouts |= is_whiteout(tree.node(*child));
        }
        let mut xattrs = overlay::escape(&node.metadata.xattrs);
        if whiteouts {
            overlay::mark_whiteouts(&mut xattrs, version >= ErofsVersion::V1);
        }
        if id == Tree::ROOT {
            overlay::mark_root(&mut xattrs);
        }
        let mut inode = Self::new(node.st_mode(), &node.metadata, xattrs, Body::Bytes(&[]));
        inode.links = links;
        inode
    }

    fn leaf(node: &'a Node, links: u32) -> Self {
        let mut xattrs = overlay::escape(&node.metadata.xattrs);
        let mut st_mode = node.st_mode();
        let body = match &node.content {
            Content::File(FileContent::Inline(bytes)) | Content::Symlink(bytes) => {
                Body::Bytes(bytes)
            }
            Content::File(FileContent::Object { id, size }) => Body::Elsewhere { id, size: *size },
            Content::CharacterDevice(overlay::WHITEOUT_DEVICE) => {
                overlay::mark_whiteout(&mut xattrs);
                st_mode = 0o100_000 | (st_mode & 0o7777);
                Body::Bytes(&[])
            }
            Content::CharacterDevice(device) | Content::BlockDevice(device) => {
                Body::Device(*device)
            }
            Content::Fifo | Content::Socket | Content::Directory(_) => Body::Device(NONE),
        };
        let mut inode = Self::new(st_mode, &node.metadata, xattrs, body);
        inode.links = links;
        inode
    }

    /// Returns every attribute, in the order of their names.
    pub(super) fn xattrs(&self) -> impl Iterator<Item = Xattr<'_>> {
        let own = self
            .own_xattrs
            .iter()
            .map(|(name, value)| Xattr::Own(name, value));
        let marks = match &self.body {
            Body::Elsewhere { id, .. } => Some(Xattr::of_object(id)),
            Body::Directory(_) | Body::Bytes(_) | Body::Device(_) => None,
        };
        merge(own, marks.into_iter().flatten())
    }

    pub(super) fn is_symlink(&self) -> bool {
        self.st_mode & 0o170_000 == 0o120_000
    }

    /// Makes one of the whiteouts that hide the directories of objects.
    fn stub(tree: &Tree) -> Self {
        let root = &tree.node(Tree::ROOT).metadata;
        let mut xattrs = overlay::escape(&root.xattrs);
        xattrs.retain(|name, _| **name == *b"security.selinux");
        Self::new(0o020_644, root, xattrs, Body::Device(NONE))
    }

    fn new(st_mode: u16, metadata: &Metadata, xattrs: Xattrs, body: Body<'a>) -> Self {
        Self {
            st_mode,
            links: 1,
            uid: metadata.uid,
            gid: metadata.gid,
            mtime: metadata.mtime,
            own_xattrs: xattrs.into_iter().collect(),
            body,
        }
    }
}

/// Merges two lists that are in the order of their names.
fn merge<'x>(
    one: impl Iterator<Item = Xattr<'x>>,
    other: impl Iterator<Item = Xattr<'x>>,
) -> impl Iterator<Item = Xattr<'x>> {
    let (mut one, mut other) = (one.peekable(), other.peekable());
    std::iter::from_fn(move || {
        let first = match (one.peek(), other.peek()) {
            (Some(one), Some(other)) => one.name() < other.name(),
            (one, _) => one.is_some(),
        };
        if first { one.next() } else { other.next() }
    })
}

/// Returns the entries of a directory in the order of their bytes; the root's with the stubs, which
/// are no nodes of the tree.
fn children(tree: &Tree, directory: NodeId) -> Vec<(&[u8], Option<NodeId>)> {
    let entries = tree.entries(directory).into_iter().flatten();
    let mut children: Vec<_> = entries
        .map(|(name, id)| (name.as_bytes(), Some(*id)))
        .collect();
    if directory == Tree::ROOT {
        let missing = STUBS
            .iter()
            .filter(|name| tree.child(directory, &name[..]).is_none());
        children.extend(missing.map(|name| (&name[..], None)));
        children.sort_unstable_by_key(|(name, _)| *name);
    }
    children
}

/// The names `00` to `ff`.
static STUBS: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut names = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        names[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
        byte += 1;
    }
    names
};

/// Returns directory and name of the first of each node's names, depth first, where it has several.
fn first_names(tree: &Tree) -> HashMap<NodeId, (NodeId, &[u8])> {
    let counts = tree.name_counts();
    let mut homes = HashMap::new();
    let iterate = |directory| (directory, tree.entries(directory).into_iter().flatten());
    let mut open = vec![iterate(Tree::ROOT)];
    while let Some((directory, entries)) = open.last_mut() {
        let Some((name, id)) = entries.next() else {
            open.pop();
            continue;
        };
        let directory = *directory;
        if tree.entries(*id).is_some() {
            open.push(iterate(*id));
        } else if counts[id.index()] > 1 {
            homes.entry(*id).or_insert((directory, name.as_bytes()));
        }
    }
    homes
}

fn is_whiteout(node: &Node) -> bool {
    matches!(
        node.content,
        Content::CharacterDevice(overlay::WHITEOUT_DEVICE)
    )
}

/// The device of what is none.
const NONE: Rdev = Rdev { major: 0, minor: 0 };

/// Encodes a device number as Linux does on disks: 12 bits of major, 20 of minor, and no more.
pub(super) fn encode(device: Rdev) -> Option<u32> {
    if device.major > 0xfff || device.minor > 0xf_ffff {
        return None;
    }
    Some((device.minor & 0xff) | (device.major << 8) | ((device.minor & 0xf_ff00) << 12))
}
