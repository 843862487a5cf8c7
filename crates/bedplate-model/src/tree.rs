//! The tree: a whole root file system as data.
//!
//! ```text
//! Tree ── nodes: [Node 0 = root, Node 1, Node 2, …]        an arena: a NodeId is an inode
//!            └─ Content::Directory { name → NodeId }       two names with one NodeId are a hard link
//! ```
//!
//! Invariants: node 0 is a directory; every directory but the root has exactly one name; directories
//! form no loop. Nodes that lost their last name stay in the arena and are reached by no walk.

use std::collections::BTreeMap;

use crate::digest::ObjectId;
use crate::metadata::Metadata;
use crate::name::{Name, TreePath};

/// The index of a node in its tree: what an inode number is to a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// Returns the position in the arena, for tables beside the tree.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The numbers of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rdev {
    /// The driver.
    pub major: u32,
    /// The device of that driver.
    pub minor: u32,
}

/// The bytes of a regular file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FileContent {
    /// 0 to [`INLINE_MAX`] bytes, which live in the image itself.
    Inline(Box<[u8]>),
    /// More bytes than that, which live in an object.
    Object {
        /// The object's name.
        id: ObjectId,
        /// Its length in bytes.
        size: u64,
    },
}

/// The most bytes that an image holds itself; longer contents become objects (composefs's limit).
pub const INLINE_MAX: usize = 64;

/// The longest symbolic link target in bytes, without its NUL (`PATH_MAX - 1`).
pub const SYMLINK_MAX: usize = 4095;

impl FileContent {
    /// Returns the length in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Object { size, .. } => *size,
        }
    }
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A directory and its entries, in the order of their bytes.
    Directory(BTreeMap<Name, NodeId>),
    /// A regular file.
    File(FileContent),
    /// A symbolic link: 1 to [`SYMLINK_MAX`] bytes, no NUL.
    Symlink(Box<[u8]>),
    /// A block device.
    BlockDevice(Rdev),
    /// A character device; 0:0 is overlayfs's whiteout.
    CharacterDevice(Rdev),
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
}

impl Content {
    /// Makes an empty directory.
    pub const fn empty_directory() -> Self {
        Self::Directory(BTreeMap::new())
    }

    /// Returns the file type bits of `st_mode`.
    pub const fn type_bits(&self) -> u16 {
        match self {
            Self::Directory(_) => 0o040_000,
            Self::File(_) => 0o100_000,
            Self::Symlink(_) => 0o120_000,
            Self::BlockDevice(_) => 0o060_000,
            Self::CharacterDevice(_) => 0o020_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
        }
    }

    /// Returns what people call this type.
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Directory(_) => "directory",
            Self::File(_) => "file",
            Self::Symlink(_) => "symbolic link",
            Self::BlockDevice(_) => "block device",
            Self::CharacterDevice(_) => "character device",
            Self::Fifo => "named pipe",
            Self::Socket => "socket",
        }
    }
}

/// One node: metadata and content, as an inode holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Owner, permissions, time, extended attributes.
    pub metadata: Metadata,
    /// Type and content.
    pub content: Content,
}

impl Node {
    /// Makes a node.
    pub const fn new(metadata: Metadata, content: Content) -> Self {
        Self { metadata, content }
    }

    /// Returns `st_mode`: type and permission bits.
    pub const fn st_mode(&self) -> u16 {
        self.content.type_bits() | (self.metadata.mode & 0o7777)
    }
}

/// A whole root file system as data.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);

    /// Makes a tree of one empty root directory.
    pub fn new(root: Metadata) -> Self {
        Self {
            nodes: vec![Node::new(root, Content::empty_directory())],
        }
    }

    /// Returns a node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Returns the metadata of a node, to be changed.
    pub fn metadata_mut(&mut self, id: NodeId) -> &mut Metadata {
        &mut self.nodes[id.index()].metadata
    }

    /// Replaces the content of a node that is no directory by other such content.
    pub fn set_content(&mut self, id: NodeId, content: Content) -> Result<(), TreeError> {
        let place = &mut self.nodes[id.index()].content;
        if matches!(place, Content::Directory(_)) || matches!(content, Content::Directory(_)) {
            return Err(TreeError::IsDirectory);
        }
        *place = content;
        Ok(())
    }

    /// Returns how many nodes the arena has; every [`NodeId`] is below it.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the entries of a directory, or `None` for anything else.
    pub fn entries(&self, id: NodeId) -> Option<&BTreeMap<Name, NodeId>> {
        match &self.node(id).content {
            Content::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// Returns the entry `name` of the directory `parent`.
    pub fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.entries(parent)?.get(name).copied()
    }

    /// Finds a path without following symbolic links.
    pub fn lookup(&self, path: &TreePath) -> Option<NodeId> {
        path.components()
            .iter()
            .try_fold(Self::ROOT, |id, name| self.child(id, name.as_bytes()))
    }

    /// Adds a node under a name that is free.
    ///
    /// A directory comes in empty; its entries are added one by one.
    pub fn insert(&mut self, parent: NodeId, name: Name, node: Node) -> Result<NodeId, TreeError> {
        if matches!(&node.content, Content::Directory(entries) if !entries.is_empty()) {
            return Err(TreeError::NotEmpty);
        }
        let id = NodeId(u32::try_from(self.nodes.len()).map_err(|_| TreeError::Full)?);
        self.add_entry(parent, name, id)?;
        self.nodes.push(node);
        Ok(id)
    }

    /// Gives a node that is no directory one more name: a hard link.
    pub fn link(&mut self, parent: NodeId, name: Name, target: NodeId) -> Result<(), TreeError> {
        if self.entries(target).is_some() {
            return Err(TreeError::IsDirectory);
        }
        self.add_entry(parent, name, target)
    }

    /// Removes a name, with everything below it, and returns the node that had it.
    pub fn remove(&mut self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        match &mut self.nodes[parent.index()].content {
            Content::Directory(entries) => entries.remove(name),
            _ => None,
        }
    }

    /// Removes every entry of a directory.
    pub fn clear(&mut self, directory: NodeId) -> Result<(), TreeError> {
        match &mut self.nodes[directory.index()].content {
            Content::Directory(entries) => {
                entries.clear();
                Ok(())
            }
            _ => Err(TreeError::NotDirectory),
        }
    }

    /// Moves an entry to another free name; a directory cannot move below itself.
    pub fn rename(
        &mut self,
        (parent, name): (NodeId, &[u8]),
        (new_parent, new_name): (NodeId, Name),
    ) -> Result<(), TreeError> {
        let id = self.child(parent, name).ok_or(TreeError::Missing)?;
        if self.reaches(id, new_parent) {
            return Err(TreeError::Loop);
        }
        self.add_entry(new_parent, new_name, id)?;
        self.remove(parent, name);
        Ok(())
    }

    /// Walks every name below the root, parents before children, siblings in the order of their
    /// bytes; a node with several names is met once for each. The root itself is not visited.
    pub fn walk(&self) -> Walk<'_> {
        Walk::new(self, Self::ROOT)
    }

    /// Walks what lies below one directory, as [`Tree::walk`] does; paths are relative to it.
    pub fn walk_from(&self, directory: NodeId) -> Walk<'_> {
        Walk::new(self, directory)
    }

    /// Counts the names of each node, by [`NodeId::index`]; the root counts 1, unreachable nodes 0.
    pub fn name_counts(&self) -> Vec<u32> {
        let mut counts = vec![0_u32; self.nodes.len()];
        counts[Self::ROOT.index()] = 1;
        let mut pending = vec![Self::ROOT];
        while let Some(directory) = pending.pop() {
            for id in self
                .entries(directory)
                .into_iter()
                .flat_map(BTreeMap::values)
            {
                counts[id.index()] += 1;
                if self.entries(*id).is_some() {
                    pending.push(*id);
                }
            }
        }
        counts
    }

    /// Visits every node that has a name, and the root, each once, in no order that means anything.
    pub fn named_nodes(&self) -> impl Iterator<Item = &Node> {
        let counts = self.name_counts().into_iter().zip(&self.nodes);
        counts.filter_map(|(names, node)| (names > 0).then_some(node))
    }

    /// Adds up the bytes of all files, each hard-linked one once.
    ///
    /// A stranger's sizes may add up to more than fits; then it is the most that does.
    pub fn file_bytes(&self) -> u64 {
        self.named_nodes()
            .fold(0, |sum: u64, node| match &node.content {
                Content::File(content) => sum.saturating_add(content.size()),
                _ => sum,
            })
    }

    fn add_entry(&mut self, parent: NodeId, name: Name, id: NodeId) -> Result<(), TreeError> {
        match &mut self.nodes[parent.index()].content {
            Content::Directory(entries) => match entries.entry(name) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(id);
                    Ok(())
                }
                std::collections::btree_map::Entry::Occupied(_) => Err(TreeError::Exists),
            },
            _ => Err(TreeError::NotDirectory),
        }
    }

    /// Returns whether `wanted` is `from` or lies below it.
    fn reaches(&self, from: NodeId, wanted: NodeId) -> bool {
        let mut pending = vec![from];
        while let Some(id) = pending.pop() {
            if id == wanted {
                return true;
            }
            pending.extend(self.entries(id).into_iter().flat_map(BTreeMap::values));
        }
        false
    }
}

/// Two trees are equal when a file system could not tell them apart: same names, same metadata and
/// content behind each, same names linked to one another. Positions in the arena do not count.
impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        let mut counterpart = BTreeMap::new();
        let mut used = std::collections::BTreeSet::new();
        let same_node = |(left, right): (NodeId, NodeId)| {
            let (a, b) = (self.node(left), other.node(right));
            a.metadata == b.metadata
                && match (&a.content, &b.content) {
                    (Content::Directory(_), Content::Directory(_)) => true,
                    (a, b) => a == b,
                }
        };
        if !same_node((Self::ROOT, Self::ROOT)) {
            return false;
        }
        let (mut ours, mut theirs) = (self.walk(), other.walk());
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some((path, left)), Some((other_path, right)))
                    if path == other_path && same_node((left, right)) =>
                {
                    match counterpart.get(&left) {
                        Some(known) if *known == right => {}
                        None if used.insert(right) => {
                            counterpart.insert(left, right);
                        }
                        _ => return false,
                    }
                }
                _ => return false,
            }
        }
    }
}

/// The iterator of [`Tree::walk`].
#[derive(Debug)]
pub struct Walk<'a> {
    tree: &'a Tree,
    path: TreePath,
    open: Vec<std::collections::btree_map::Iter<'a, Name, NodeId>>,
}

impl<'a> Walk<'a> {
    fn new(tree: &'a Tree, directory: NodeId) -> Self {
        Self {
            tree,
            path: TreePath::root(),
            open: tree
                .entries(directory)
                .map(BTreeMap::iter)
                .into_iter()
                .collect(),
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = (TreePath, NodeId);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((name, id)) = self.open.last_mut()?.next() else {
                self.open.pop();
                self.path.pop();
                continue;
            };
            let path = self.path.join(name);
            if let Some(entries) = self.tree.entries(*id) {
                self.open.push(entries.iter());
                self.path.push(name.clone());
            }
            return Some((path, *id));
        }
    }
}

/// Why a change of a tree was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The parent is not a directory.
    #[error("the parent is not a directory")]
    NotDirectory,
    /// A directory cannot have a second name or other content.
    #[error("this is a directory")]
    IsDirectory,
    /// The directory comes with entries.
    #[error("the new directory is not empty")]
    NotEmpty,
    /// The name is taken.
    #[error("the name is taken")]
    Exists,
    /// There is no such name.
    #[error("there is no such name")]
    Missing,
    /// A directory would lie below itself.
    #[error("a directory cannot lie below itself")]
    Loop,
    /// More than 4,294,967,295 nodes.
    #[error("the tree has too many nodes")]
    Full,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::try_from(text).unwrap()
    }

    fn directory() -> Node {
        Node::new(Metadata::root_owned(0o755), Content::empty_directory())
    }

    fn file(text: &str) -> Node {
        Node::new(
            Metadata::root_owned(0o644),
            Content::File(FileContent::Inline(text.as_bytes().into())),
        )
    }

    fn sample() -> (Tree, NodeId, NodeId) {
        let mut tree = Tree::new(Metadata::root_owned(0o755));
        let usr = tree.insert(Tree::ROOT, name("usr"), directory()).unwrap();
        let tool = tree.insert(usr, name("tool"), file("x")).unwrap();
        tree.link(Tree::ROOT, name("alias"), tool).unwrap();
        (tree, usr, tool)
    }

    #[test]
    fn a_hard_link_is_one_node_with_two_names() {
        let (tree, _, tool) = sample();
        assert_eq!(tree.name_counts()[tool.index()], 2);
        let paths: Vec<String> = tree.walk().map(|(path, _)| path.to_string()).collect();
        assert_eq!(paths, ["/alias", "/usr", "/usr/tool"]);
    }

    #[test]
    fn bytes_count_once_for_each_node_and_never_overflow() {
        let (mut tree, usr, _) = sample();
        assert_eq!(tree.file_bytes(), 1, "two names, one file");
        for text in ["huge", "huger"] {
            let content = FileContent::Object {
                id: ObjectId::Sha256([0; 32]),
                size: u64::MAX,
            };
            let node = Node::new(Metadata::root_owned(0o644), Content::File(content));
            tree.insert(usr, name(text), node).unwrap();
        }
        assert_eq!(tree.file_bytes(), u64::MAX);
    }

    #[test]
    fn equal_trees_may_have_different_arenas() {
        let (tree, ..) = sample();
        let mut other = Tree::new(Metadata::root_owned(0o755));
        let alias = other.insert(Tree::ROOT, name("alias"), file("x")).unwrap();
        let usr = other.insert(Tree::ROOT, name("usr"), directory()).unwrap();
        other.link(usr, name("tool"), alias).unwrap();
        assert_eq!(tree, other);

        other.remove(usr, b"tool");
        other.insert(usr, name("tool"), file("x")).unwrap();
        assert_ne!(tree, other, "the link is broken");
        assert_ne!(other, tree, "and that is seen from both sides");
    }

    #[test]
    fn a_directory_has_one_name_and_never_lies_below_itself() {
        let (mut tree, usr, _) = sample();
        assert_eq!(
            tree.link(Tree::ROOT, name("again"), usr),
            Err(TreeError::IsDirectory)
        );
        let lib = tree.insert(usr, name("lib"), directory()).unwrap();
        assert_eq!(
            tree.rename((Tree::ROOT, b"usr"), (lib, name("usr"))),
            Err(TreeError::Loop)
        );
        assert_eq!(
            tree.rename((usr, b"lib"), (Tree::ROOT, name("lib"))),
            Ok(())
        );
        assert_eq!(tree.child(Tree::ROOT, b"lib"), Some(lib));
    }
}
