//! Reads an image back into the tree that it was made of. The image is a stranger's: nothing in it is
//! believed.
//!
//! Bounds: every inode is read once; directories have one name; there are no more entries than the
//! image has room for; attributes together take at most [`XATTR_GROWTH`] times the image's length.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};

use bedplate_model::format::Shown;
use bedplate_model::name::NameError;
use bedplate_model::tree::{INLINE_MAX, SYMLINK_MAX, TreeError};
use bedplate_model::{
    Content, FileContent, Metadata, Name, Node, NodeId, Rdev, Timestamp, Tree, TreePath, Xattrs,
};

use super::ondisk::{
    BLOCK, CHUNK_BASED, COMPACT_LEN, COMPOSEFS_HEADER_VERSION, COMPOSEFS_MAGIC, DIRENT_LEN,
    EROFS_MAGIC, EXTENDED_LEN, FLAT_INLINE, FLAT_PLAIN, SLOT, SUPERBLOCK, XATTR_ENTRY_LEN,
    XATTR_HEADER_LEN, XATTR_PREFIXES,
};
use super::overlay::{self, Attributes};

/// How much longer than the image all attributes together may be: shared ones are stored once and
/// referred to by four bytes, but no honest image has mostly long ones.
const XATTR_GROWTH: u64 = 64;
/// What any image may have besides.
const XATTR_FLOOR: u64 = 1 << 20;

/// Why bytes are no image, or none that holds a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It does not open as a composefs image does.
    #[error("this is no composefs image")]
    Magic,
    /// The header or the superblock has something that this program does not know.
    #[error("the image has the {what} {found}, which is not known here")]
    Unknown {
        /// What.
        what: &'static str,
        /// Its value.
        found: u64,
    },
    /// Something points outside the image.
    #[error("the image ends before its {0}")]
    Short(&'static str),
    /// Something contradicts itself.
    #[error("the image is damaged at {path}: {problem}")]
    Damaged {
        /// The path, as far as it is known.
        path: Shown,
        /// What is wrong.
        problem: &'static str,
    },
    /// A name is none.
    #[error("the image has a bad name in {path}")]
    Name {
        /// The directory.
        path: Shown,
        /// What is wrong with it.
        source: NameError,
    },
    /// It holds more than an image of its length can.
    #[error("the image holds more {0} than an image of its length can")]
    Excess(&'static str),
}

impl ReadError {
    /// Says where, if that is not said yet.
    fn at(self, path: impl FnOnce() -> String) -> Self {
        match self {
            Self::Damaged {
                path: Shown(old),
                problem,
            } if old.is_empty() => Self::Damaged {
                path: Shown(path()),
                problem,
            },
            Self::Name {
                path: Shown(old),
                source,
            } if old.is_empty() => Self::Name {
                path: Shown(path()),
                source,
            },
            other => other,
        }
    }
}

/// Reads an image.
pub fn read(image: &[u8]) -> Result<Tree, ReadError> {
    let mut reader = Reader::new(Image::open(image)?)?;
    while let Some((directory, inode)) = reader.pending.pop_front() {
        reader
            .directory(directory, &inode)
            .map_err(|error| error.at(|| reader.path(directory)))?;
    }
    Ok(reader.tree)
}

const DIRECTORY: u16 = 0o040_000;
const REGULAR: u16 = 0o100_000;

/// A tree that grows, directory by directory.
struct Reader<'a> {
    image: Image<'a>,
    budget: Budget,
    tree: Tree,
    /// The nodes that are in the tree, by their node id.
    known: HashMap<u64, NodeId>,
    /// Parent and name of each directory. Whole paths beside them would let an image of a few
    /// megabytes take gigabytes; they are put together when an error needs one.
    parents: HashMap<NodeId, (NodeId, Name)>,
    /// Directories whose entries are not read yet.
    pending: VecDeque<(NodeId, Inode)>,
}

impl<'a> Reader<'a> {
    fn new(image: Image<'a>) -> Result<Self, ReadError> {
        let length = image.bytes.len() as u64;
        let mut budget = Budget {
            entries: length / DIRENT_LEN,
            xattrs: length * XATTR_GROWTH + XATTR_FLOOR,
        };
        let root = image.inode(image.root)?;
        if root.kind() != DIRECTORY {
            return Err(damaged("the root is no directory").at(|| "/".into()));
        }
        let xattrs = image.xattrs(&root, &mut budget)?;
        Ok(Self {
            budget,
            tree: Tree::new(root.metadata(overlay::unescape_root(xattrs.all()))),
            known: HashMap::from([(image.root, Tree::ROOT)]),
            parents: HashMap::new(),
            pending: VecDeque::from([(Tree::ROOT, root)]),
            image,
        })
    }

    fn directory(&mut self, directory: NodeId, inode: &Inode) -> Result<(), ReadError> {
        let data = self.image.content(inode)?;
        let mut whiteouts = false;
        for block in data.chunks(BLOCK as usize) {
            for entry in entries(block)? {
                let (name, nid) = entry?;
                self.budget.entries = self
                    .budget
                    .entries
                    .checked_sub(1)
                    .ok_or(ReadError::Excess("entries"))?;
                if matches!(name, b"." | b"..") {
                    continue;
                }
                let name = Name::new(name).map_err(|source| ReadError::Name {
                    path: Shown(String::new()),
                    source,
                })?;
                let read = self.entry(directory, &name, nid);
                let read = read.map_err(|error| {
                    error.at(|| format!("{}/{name}", self.path(directory).trim_end_matches('/')))
                });
                if let Some(id) = read? {
                    whiteouts |= overlay::is_whiteout(self.tree.node(id));
                }
            }
        }
        if whiteouts {
            overlay::unmark_whiteouts(&mut self.tree.metadata_mut(directory).xattrs);
        }
        Ok(())
    }

    /// Reads the node behind a name into the tree; returns `None` for what no tree has.
    fn entry(
        &mut self,
        directory: NodeId,
        name: &Name,
        nid: u64,
    ) -> Result<Option<NodeId>, ReadError> {
        let refuse = |error: TreeError| damaged(tree_problem(error));
        if let Some(id) = self.known.get(&nid) {
            let linked = self.tree.link(directory, name.clone(), *id);
            return linked.map(|()| Some(*id)).map_err(refuse);
        }
        let inode = self.image.inode(nid)?;
        let can_be_stub = directory == Tree::ROOT && overlay::is_stub_name(name.as_bytes());
        if can_be_stub && inode.is_stub() {
            return Ok(None);
        }
        let node = self.image.node(&inode, &mut self.budget)?;
        let id = self
            .tree
            .insert(directory, name.clone(), node)
            .map_err(refuse)?;
        self.known.insert(nid, id);
        if inode.kind() == DIRECTORY {
            self.parents.insert(id, (directory, name.clone()));
            self.pending.push_back((id, inode));
        }
        Ok(Some(id))
    }

    fn path(&self, directory: NodeId) -> String {
        let mut names = Vec::new();
        let mut at = directory;
        while let Some((parent, name)) = self.parents.get(&at) {
            names.push(name.clone());
            at = *parent;
        }
        names.into_iter().rev().collect::<TreePath>().to_string()
    }
}

/// What may still come before an image is refused.
struct Budget {
    entries: u64,
    xattrs: u64,
}

/// The bytes of an image behind its superblock's word.
struct Image<'a> {
    bytes: &'a [u8],
    root: u64,
    /// Where node ids count from.
    meta: u64,
    /// Where shared xattrs count from.
    xattrs: u64,
}

/// One inode as it stands in the image.
struct Inode {
    layout: u16,
    st_mode: u16,
    size: u64,
    union: u32,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    /// Where its xattrs begin, and how long they are.
    xattrs: (u64, u64),
}

impl<'a> Image<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, ReadError> {
        let image = Self {
            bytes,
            root: 0,
            meta: 0,
            xattrs: 0,
        };
        if image.u32(0, "header")? != COMPOSEFS_MAGIC
            || image.u32(SUPERBLOCK, "superblock")? != EROFS_MAGIC
        {
            return Err(ReadError::Magic);
        }
        let known = |what, found: u64, good: bool| {
            if good {
                Ok(())
            } else {
                Err(ReadError::Unknown { what, found })
            }
        };
        let header = image.u32(4, "header")?;
        known(
            "header version",
            header.into(),
            header == COMPOSEFS_HEADER_VERSION,
        )?;
        let version = image.u32(12, "header")?;
        known("composefs version", version.into(), version <= 1)?;
        let block_bits = image.get(SUPERBLOCK + 12, 1, "superblock")?[0];
        known(
            "block size",
            block_bits.into(),
            u32::from(block_bits) == BLOCK.trailing_zeros(),
        )?;
        let incompatible = image.u32(SUPERBLOCK + 80, "superblock")?;
        known("required feature", incompatible.into(), incompatible == 0)?;
        Ok(Self {
            bytes,
            root: image.u16(SUPERBLOCK + 14, "superblock")?.into(),
            meta: u64::from(image.u32(SUPERBLOCK + 40, "superblock")?) * BLOCK,
            xattrs: u64::from(image.u32(SUPERBLOCK + 44, "superblock")?) * BLOCK,
        })
    }

    fn get(&self, position: u64, length: u64, what: &'static str) -> Result<&'a [u8], ReadError> {
        let range = usize::try_from(position).ok().zip(
            position
                .checked_add(length)
                .and_then(|end| usize::try_from(end).ok()),
        );
        range
            .and_then(|(start, end)| self.bytes.get(start..end))
            .ok_or(ReadError::Short(what))
    }

    fn u16(&self, position: u64, what: &'static str) -> Result<u16, ReadError> {
        let bytes = self.get(position, 2, what)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&self, position: u64, what: &'static str) -> Result<u32, ReadError> {
        let bytes = self.get(position, 4, what)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&self, position: u64, what: &'static str) -> Result<u64, ReadError> {
        Ok(u64::from(self.u32(position, what)?) | u64::from(self.u32(position + 4, what)?) << 32)
    }

    fn inode(&self, nid: u64) -> Result<Inode, ReadError> {
        const WHAT: &str = "inodes";
        let position = nid
            .checked_mul(SLOT)
            .and_then(|offset| offset.checked_add(self.meta))
            .filter(|position| *position < self.bytes.len() as u64)
            .ok_or(ReadError::Short(WHAT))?;
        let format = self.u16(position, WHAT)?;
        let extended = format & 1 != 0;
        let head = if extended { EXTENDED_LEN } else { COMPACT_LEN };
        self.get(position, head, WHAT)?;
        let xattr_count = u64::from(self.u16(position + 2, WHAT)?);
        let xattr_len = match xattr_count {
            0 => 0,
            count => XATTR_HEADER_LEN + (count - 1) * 4,
        };
        let mut inode = Inode {
            layout: (format >> 1) & 7,
            st_mode: self.u16(position + 4, WHAT)?,
            size: self.u32(position + 8, WHAT)?.into(),
            union: self.u32(position + 16, WHAT)?,
            uid: self.u16(position + 24, WHAT)?.into(),
            gid: self.u16(position + 26, WHAT)?.into(),
            mtime: Timestamp {
                seconds: self.u64(SUPERBLOCK + 24, WHAT)? as i64,
                nanoseconds: self.u32(SUPERBLOCK + 32, WHAT)?,
            },
            xattrs: (position + head, xattr_len),
        };
        if extended {
            inode.size = self.u64(position + 8, WHAT)?;
            inode.uid = self.u32(position + 24, WHAT)?;
            inode.gid = self.u32(position + 28, WHAT)?;
            inode.mtime = Timestamp {
                seconds: self.u64(position + 32, WHAT)? as i64,
                nanoseconds: self.u32(position + 40, WHAT)?,
            };
        }
        if inode.mtime.nanoseconds >= 1_000_000_000 {
            return Err(damaged("a time has too many nanoseconds"));
        }
        Ok(inode)
    }

    /// Returns the content of an inode that has it in the image.
    fn content(&self, inode: &Inode) -> Result<Cow<'a, [u8]>, ReadError> {
        const WHAT: &str = "data";
        let address = u64::from(inode.union) * BLOCK;
        match inode.layout {
            FLAT_PLAIN if inode.size == 0 => Ok((&[][..]).into()),
            FLAT_PLAIN => Ok(self.get(address, inode.size, WHAT)?.into()),
            FLAT_INLINE => {
                let tail = self.get(inode.xattrs.0 + inode.xattrs.1, inode.size % BLOCK, WHAT)?;
                let full = inode.size - inode.size % BLOCK;
                if full == 0 {
                    return Ok(tail.into());
                }
                Ok([self.get(address, full, WHAT)?, tail].concat().into())
            }
            _ => Err(damaged("its content has a layout that is not used here")),
        }
    }

    fn node(&self, inode: &Inode, budget: &mut Budget) -> Result<Node, ReadError> {
        let xattrs = self.xattrs(inode, budget)?;
        let device = || Rdev {
            major: (inode.union >> 8) & 0xfff,
            minor: (inode.union & 0xff) | ((inode.union >> 12) & 0xf_ff00),
        };
        let short = |max: usize| {
            if inode.size > max as u64 {
                return Err(damaged("its content is too long"));
            }
            self.content(inode)
        };
        if inode.kind() == REGULAR && inode.layout == CHUNK_BASED {
            let (id, xattrs) = overlay::take_object(xattrs)
                .ok_or_else(|| damaged("it does not say where its content lies"))?;
            let size = inode.size;
            let content = Content::File(FileContent::Object { id, size });
            return Ok(Node::new(inode.metadata(xattrs), content));
        }
        let xattrs = xattrs.all();
        let (content, xattrs) = match inode.kind() {
            DIRECTORY => (Content::empty_directory(), overlay::unescape(xattrs)),
            REGULAR => {
                let bytes = short(INLINE_MAX)?;
                let mut xattrs = overlay::unescape(xattrs);
                if bytes.is_empty() && overlay::take_whiteout(&mut xattrs) {
                    (Content::CharacterDevice(overlay::WHITEOUT_DEVICE), xattrs)
                } else {
                    (Content::File(FileContent::Inline(bytes.into())), xattrs)
                }
            }
            0o120_000 => {
                let target = short(SYMLINK_MAX)?;
                if target.is_empty() || target.contains(&0) {
                    return Err(damaged("a symbolic link leads nowhere"));
                }
                (Content::Symlink(target.into()), overlay::unescape(xattrs))
            }
            0o020_000 if inode.is_stub() => {
                return Err(damaged("a whiteout stands where none can"));
            }
            0o020_000 => (
                Content::CharacterDevice(device()),
                overlay::unescape(xattrs),
            ),
            0o060_000 => (Content::BlockDevice(device()), overlay::unescape(xattrs)),
            0o010_000 => (Content::Fifo, overlay::unescape(xattrs)),
            0o140_000 => (Content::Socket, overlay::unescape(xattrs)),
            _ => return Err(damaged("it has no type")),
        };
        Ok(Node::new(inode.metadata(xattrs), content))
    }

    fn xattrs(&self, inode: &Inode, budget: &mut Budget) -> Result<Attributes<'a>, ReadError> {
        const WHAT: &str = "extended attributes";
        let (position, length) = inode.xattrs;
        let mut xattrs = Attributes::default();
        if length == 0 {
            return Ok(xattrs);
        }
        let mut area = self.get(position, length, WHAT)?;
        let shared = usize::from(area[4]);
        area = &area[XATTR_HEADER_LEN as usize..];
        let references = area.get(..shared * 4).ok_or(ReadError::Short(WHAT))?;
        area = &area[shared * 4..];
        let mut add = |(name, value): Xattr<'a>| {
            let taken = (name.len() + value.len()) as u64;
            budget.xattrs = budget
                .xattrs
                .checked_sub(taken)
                .ok_or(ReadError::Excess(WHAT))?;
            if xattrs.add(name, value) {
                Ok(())
            } else {
                Err(damaged("an extended attribute stands there twice"))
            }
        };
        for reference in references.chunks_exact(4) {
            let offset =
                u32::from_le_bytes([reference[0], reference[1], reference[2], reference[3]]);
            let start = usize::try_from(self.xattrs + u64::from(offset) * 4).unwrap_or(usize::MAX);
            let (entry, _) = xattr(self.bytes.get(start..).unwrap_or(&[]))?;
            add(entry)?;
        }
        while !area.is_empty() {
            let (entry, rest) = xattr(area)?;
            add(entry)?;
            area = rest;
        }
        Ok(xattrs)
    }
}

impl Inode {
    fn kind(&self) -> u16 {
        self.st_mode & 0o170_000
    }

    /// Returns whether this is a character device 0:0, which no tree's node becomes.
    fn is_stub(&self) -> bool {
        self.kind() == 0o020_000 && self.union == 0
    }

    fn metadata(&self, xattrs: Xattrs) -> Metadata {
        Metadata {
            mode: self.st_mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            xattrs,
        }
    }
}

/// Name and value of an extended attribute.
type Xattr<'a> = (Cow<'static, [u8]>, &'a [u8]);

/// Parses one xattr entry, and returns what follows it.
fn xattr(bytes: &[u8]) -> Result<(Xattr<'_>, &[u8]), ReadError> {
    const SHORT: ReadError = ReadError::Short("extended attributes");
    let [name_len, index, low, high, rest @ ..] = bytes else {
        return Err(SHORT);
    };
    let name_len = usize::from(*name_len);
    let value_len = usize::from(u16::from_le_bytes([*low, *high]));
    let prefix = match index {
        0 => &b""[..],
        index => XATTR_PREFIXES
            .iter()
            .find_map(|(known, prefix)| (known == index).then_some(*prefix))
            .ok_or(ReadError::Unknown {
                what: "prefix of attributes",
                found: u64::from(*index),
            })?,
    };
    let suffix = rest.get(..name_len).ok_or(SHORT)?;
    let value = rest.get(name_len..name_len + value_len).ok_or(SHORT)?;
    let length = (XATTR_ENTRY_LEN as usize + name_len + value_len).next_multiple_of(4);
    let name = match overlay::usual_name(prefix, suffix) {
        Some(name) => Cow::Borrowed(name),
        None => Cow::Owned([prefix, suffix].concat()),
    };
    Ok(((name, value), bytes.get(length..).unwrap_or(&[])))
}

/// An entry of a directory: its name and its node.
type Entry<'a> = Result<(&'a [u8], u64), ReadError>;

/// Splits a block of a directory into its entries.
fn entries(block: &[u8]) -> Result<impl Iterator<Item = Entry<'_>>, ReadError> {
    let entry_len = DIRENT_LEN as usize;
    let name_offset = move |entry: &[u8]| usize::from(u16::from_le_bytes([entry[8], entry[9]]));
    let head = block
        .get(..entry_len)
        .ok_or_else(|| damaged("a directory is too short"))?;
    let heads = name_offset(head);
    if heads == 0 || heads % entry_len != 0 || heads > block.len() {
        return Err(damaged("a directory has no place for its names"));
    }
    let count = heads / entry_len;
    Ok((0..count).map(move |position| {
        let entry = &block[position * entry_len..][..entry_len];
        let start = name_offset(entry);
        let end = if position + 1 < count {
            name_offset(&block[(position + 1) * entry_len..])
        } else {
            block.len()
        };
        let name = block.get(start..end).filter(|_| start >= heads);
        let mut name = name.ok_or_else(|| damaged("a name lies outside its directory"))?;
        if position + 1 == count {
            // The last name of a block ends with the block, or with zeros before.
            let len = name
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(name.len());
            name = &name[..len];
        }
        let nid = entry[..8]
            .iter()
            .rev()
            .fold(0, |nid, byte| nid << 8 | u64::from(*byte));
        Ok((name, nid))
    }))
}

fn damaged(problem: &'static str) -> ReadError {
    ReadError::Damaged {
        path: Shown(String::new()),
        problem,
    }
}

fn tree_problem(error: TreeError) -> &'static str {
    match error {
        TreeError::IsDirectory => "a directory has two names",
        TreeError::Exists => "a name stands there twice",
        TreeError::NotDirectory
        | TreeError::NotEmpty
        | TreeError::Missing
        | TreeError::Loop
        | TreeError::Full => "its entries cannot be",
    }
}
