//! Flattening: layers, one above the other, become one tree.
//!
//! ```text
//! for each layer   1 whiteouts and opaque marks act on what lies below, wherever they stand in the tar
//!                  2 entries, in order: a directory merges, anything else replaces
//! after the last   bootc-1: whole seconds, few attributes, `/` from `/usr`, `/run` emptied
//! ```
//!
//! Invariants: a whiteout never takes away what its own layer brings; no member reaches through a
//! symbolic link; whoever flattens the same layers by the same rules gets the same tree.

use std::borrow::Borrow;

use bedplate_model::name::shown;
use bedplate_model::{Content, Metadata, Name, Node, NodeId, RuleSet, Tree, TreePath};

use super::entry::{Entry, EntryKind};
use super::error::FlattenError;
use super::{Layer, MAX_ENTRIES};

/// What a whiteout's name begins with.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// The mark that hides everything that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The one extended attribute that bootc-1 keeps.
const BOOTC_XATTR: &[u8] = b"security.capability";

/// How many directories may be made that no member is for: so many, and for each member some more. A name of
/// 2,000 parts is 2,000 directories.
const IMPLIED_MAX: usize = 1 << 16;
const IMPLIED_PER_MEMBER: usize = 8;

/// Makes one tree of layers, the lowest first. One layer may stand in several places.
pub fn flatten(layers: &[impl Borrow<Layer>], rules: RuleSet) -> Result<Tree, FlattenError> {
    let mut flattening = Flattening::new(true);
    for (layer, content) in layers.iter().enumerate() {
        flattening.layer = layer;
        for entry in content.borrow().entries() {
            flattening.whiteout(entry)?;
        }
        for entry in content.borrow().entries() {
            flattening.add(entry)?;
        }
    }
    let mut tree = flattening.tree;
    if rules == RuleSet::Bootc1 {
        refuse_selinux(&tree)?;
        apply_bootc(&mut tree);
    }
    Ok(tree)
}

/// Makes a tree of one tar that is no layer: no name in it means that another one is gone.
pub(super) fn unpack(tar: &Layer) -> Result<Tree, FlattenError> {
    let mut flattening = Flattening::new(false);
    for entry in tar.entries() {
        flattening.add(entry)?;
    }
    Ok(flattening.tree)
}

struct Flattening {
    tree: Tree,
    /// Whether names with `.wh.` in front are whiteouts, as in layers, and not files.
    whiteouts: bool,
    /// The layer that is being added, from 0.
    layer: usize,
    /// How many members there were.
    members: usize,
    /// How many directories were made that no member is for.
    implied: usize,
    /// The layer that made each node, by [`NodeId::index`].
    made_by: Vec<usize>,
}

impl Flattening {
    fn new(whiteouts: bool) -> Self {
        Self {
            tree: Tree::new(Metadata::root_owned(0o755)),
            whiteouts,
            layer: 0,
            members: 0,
            implied: 0,
            made_by: vec![0],
        }
    }

    /// Applies an entry to lower layers, if it is a whiteout.
    fn whiteout(&mut self, entry: &Entry) -> Result<(), FlattenError> {
        let Some((parent, name)) = entry.path.split_last() else {
            return Ok(());
        };
        let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) else {
            return Ok(());
        };
        let directory = parent
            .iter()
            .try_fold(Tree::ROOT, |id, name| self.tree.child(id, name.as_bytes()));
        if name.as_bytes() == OPAQUE {
            if let Some(directory) = directory {
                // What is no directory has nothing below it to hide.
                let _ = self.tree.clear(directory);
            }
            return Ok(());
        }
        if Name::new(hidden).is_err() {
            return Err(FlattenError::Whiteout {
                layer: self.layer,
                path: entry.path.clone(),
            });
        }
        if let Some(directory) = directory {
            self.tree.remove(directory, hidden);
        }
        Ok(())
    }

    /// Adds an entry that is no whiteout.
    fn add(&mut self, entry: &Entry) -> Result<(), FlattenError> {
        self.members += 1;
        let Some((_, name)) = entry.path.split_last() else {
            if entry.kind != EntryKind::Directory {
                return Err(FlattenError::Root { layer: self.layer });
            }
            *self.tree.metadata_mut(Tree::ROOT) = entry.metadata.clone();
            return Ok(());
        };
        if self.whiteouts && name.as_bytes().starts_with(WHITEOUT) {
            return Ok(());
        }
        let content = match &entry.kind {
            EntryKind::HardLink(target) => return self.link(entry, name, target),
            EntryKind::Directory => Content::empty_directory(),
            EntryKind::File(content) => Content::File(content.clone()),
            EntryKind::Symlink(target) => Content::Symlink(target.clone()),
            EntryKind::BlockDevice(rdev) => Content::BlockDevice(*rdev),
            EntryKind::CharacterDevice(rdev) => Content::CharacterDevice(*rdev),
            EntryKind::Fifo => Content::Fifo,
        };
        let parent = self.parent_of(&entry.path)?;
        if let Some(existing) = self.tree.child(parent, name.as_bytes()) {
            if entry.kind == EntryKind::Directory && self.tree.entries(existing).is_some() {
                *self.tree.metadata_mut(existing) = entry.metadata.clone();
                self.made_by[existing.index()] = self.layer;
                return Ok(());
            }
            self.tree.remove(parent, name.as_bytes());
        }
        let node = Node::new(entry.metadata.clone(), content);
        self.insert(parent, name.clone(), node).map(drop)
    }

    /// Gives a node one more name. Its metadata stay: both names are one inode, and say the same.
    fn link(&mut self, entry: &Entry, name: &Name, target: &TreePath) -> Result<(), FlattenError> {
        let node = self
            .tree
            .lookup(target)
            .ok_or_else(|| FlattenError::MissingTarget {
                layer: self.layer,
                path: entry.path.clone(),
                target: target.clone(),
            })?;
        let layer = self.layer;
        let to_directory = || FlattenError::DirectoryTarget {
            layer,
            path: entry.path.clone(),
            target: target.clone(),
        };
        if self.tree.entries(node).is_some() {
            return Err(to_directory());
        }
        let parent = self.parent_of(&entry.path)?;
        if self.tree.child(parent, name.as_bytes()) == Some(node) {
            return Ok(()); // the name is one of this node's already
        }
        self.tree.remove(parent, name.as_bytes());
        self.tree
            .link(parent, name.clone(), node)
            .map_err(|_| to_directory())
    }

    /// Finds the directory that a path lies in; what is missing is made.
    fn parent_of(&mut self, path: &TreePath) -> Result<NodeId, FlattenError> {
        let Some((parents, _)) = path.split_last() else {
            return Ok(Tree::ROOT);
        };
        let mut directory = Tree::ROOT;
        for (depth, name) in parents.iter().enumerate() {
            directory = match self.tree.child(directory, name.as_bytes()) {
                Some(id) if self.tree.entries(id).is_some() => id,
                Some(id) if self.made_by[id.index()] == self.layer => {
                    return Err(FlattenError::ThroughFile {
                        layer: self.layer,
                        path: path.clone(),
                        parent: parents[..=depth].iter().cloned().collect(),
                        kind: self.tree.node(id).content.type_name(),
                    });
                }
                found => {
                    // As when layers are mounted: a directory above hides what is none below.
                    if found.is_some() {
                        self.tree.remove(directory, name.as_bytes());
                    }
                    self.implied += 1;
                    let limit = IMPLIED_MAX + IMPLIED_PER_MEMBER * self.members;
                    if self.implied > limit {
                        return Err(FlattenError::Implied { limit });
                    }
                    let node = Node::new(Metadata::root_owned(0o755), Content::empty_directory());
                    self.insert(directory, name.clone(), node)?
                }
            };
        }
        Ok(directory)
    }

    fn insert(&mut self, parent: NodeId, name: Name, node: Node) -> Result<NodeId, FlattenError> {
        let too_large = FlattenError::TooLarge { limit: MAX_ENTRIES };
        if self.tree.node_count() >= MAX_ENTRIES {
            return Err(too_large);
        }
        let id = self
            .tree
            .insert(parent, name, node)
            .map_err(|_| too_large)?;
        self.made_by.push(self.layer);
        Ok(id)
    }
}

/// Refuses an image whose labels would have to be computed.
///
/// Which of several policies the configuration names does not matter: any of them needs labels.
fn refuse_selinux(tree: &Tree) -> Result<(), FlattenError> {
    for etc in ["etc", "usr/etc"] {
        let find = |below: &str| {
            TreePath::try_from(format!("{etc}/{below}").as_str())
                .ok()
                .and_then(|path| tree.lookup(&path))
        };
        if find("selinux/config").is_none() {
            continue;
        }
        let policies = find("selinux")
            .and_then(|id| tree.entries(id))
            .into_iter()
            .flatten();
        for (name, id) in policies {
            let contexts = [&b"contexts"[..], b"files", b"file_contexts"]
                .iter()
                .try_fold(*id, |id, name| tree.child(id, name));
            if contexts.is_some() {
                return Err(FlattenError::SelinuxPolicy {
                    policy: shown(name.as_bytes()),
                });
            }
        }
    }
    Ok(())
}

fn apply_bootc(tree: &mut Tree) {
    let nodes: Vec<NodeId> = std::iter::once(Tree::ROOT)
        .chain(tree.walk().map(|(_, id)| id))
        .collect();
    for id in nodes {
        let metadata = tree.metadata_mut(id);
        metadata.mtime.nanoseconds = 0;
        metadata.xattrs.retain(|name, _| &**name == BOOTC_XATTR);
    }
    let Some(usr) = tree
        .child(Tree::ROOT, b"usr")
        .filter(|id| tree.entries(*id).is_some())
    else {
        return;
    };
    let metadata = tree.node(usr).metadata.clone();
    if let Some(run) = tree.child(Tree::ROOT, b"run")
        && tree.clear(run).is_ok()
    {
        tree.metadata_mut(run).mtime = metadata.mtime;
    }
    *tree.metadata_mut(Tree::ROOT) = metadata;
}
