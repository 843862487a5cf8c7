//! The three-way merge of /etc, as a pure function of three trees.
//!
//! ```text
//! here = base                 the image's new version, told where it renumbers users or groups
//! image = base                the local version
//! here = image                that
//! both directories            entry by entry
//! users and groups            line by line                    (accounts.rs)
//! same type, both changed     attribute by attribute: what one side alone changed is taken from it
//! otherwise                   the local version, and a Conflict
//! ```
//!
//! Times are not compared: installers and editors change them without a meaning. Hard links within
//! /etc become files of their own.
//!
//! Invariants (laws, tested): nothing changed here gives the image's; nothing changed in the image gives
//! what is here; merging the result again changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bedplate_model::{Content, FileContent, Metadata, Name, Node, NodeId, Tree, TreePath, Xattrs};

use super::accounts::{self, LeftOut};
use super::conflict::{Conflict, Kind};

/// Which of the three trees something is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The /etc that the running deployment's image came with.
    Base,
    /// The /etc that the running deployment has by now.
    Here,
    /// The /etc that the new deployment's image comes with.
    Image,
}

/// Where the bytes of a merged file come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file of this path, here.
    Here,
    /// The image's content.
    Image(FileContent),
    /// These bytes, which neither side has.
    Bytes(Box<[u8]>),
}

/// A merged /etc: a tree, where its contents come from, and what gave way.
#[derive(Clone, Debug)]
pub struct Merged {
    /// Names, metadata and everything but the contents of files.
    pub tree: Tree,
    /// The source of each file's bytes, by its node.
    pub sources: BTreeMap<NodeId, Source>,
    /// What the image changed in vain.
    pub conflicts: Vec<Conflict>,
}

/// Reads a whole small file of one side: the path is relative to /etc.
pub type ReadFile<'a> = dyn FnMut(Side, &TreePath, &FileContent) -> io::Result<Vec<u8>> + 'a;

/// A directory in a tree: where an /etc begins.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    tree: &'a Tree,
    id: NodeId,
}

impl<'a> Place<'a> {
    /// Makes the place of a node.
    pub const fn new(tree: &'a Tree, id: NodeId) -> Self {
        Self { tree, id }
    }

    pub(super) fn node(self) -> &'a Node {
        self.tree.node(self.id)
    }

    pub(super) fn entries(self) -> Option<&'a BTreeMap<Name, NodeId>> {
        self.tree.entries(self.id)
    }

    pub(super) fn child(self, name: &Name) -> Option<Self> {
        let id = self.tree.child(self.id, name.as_bytes())?;
        Some(Self { id, ..self })
    }
}

/// Why two changed /etc could not be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A file whose lines are merged could not be read.
    #[error("cannot read /etc{path} to merge it")]
    Read {
        /// The file, below /etc.
        path: TreePath,
        /// What the system or the store said.
        source: io::Error,
    },
    /// More nodes than a tree holds.
    #[error("/etc has too many files")]
    Full,
}

/// Files that only programs write, from other files: the image's version wins without a word, because
/// it fits the image's libraries.
const DERIVED: [&[u8]; 1] = [b"ld.so.cache"];

/// What `useradd` and others leave behind: the local version wins without a word.
const BACKUPS: [&[u8]; 6] = [
    b"passwd-",
    b"group-",
    b"shadow-",
    b"gshadow-",
    b"subuid-",
    b"subgid-",
];

/// Merges three /etc.
pub fn merge(
    base: Place<'_>,
    here: Place<'_>,
    image: Place<'_>,
    read: &mut ReadFile<'_>,
) -> Result<Merged, MergeError> {
    let mut merger = Merger {
        tree: Tree::new(Metadata::default()),
        sources: BTreeMap::new(),
        conflicts: Vec::new(),
        left_out: LeftOut::default(),
        path: TreePath::root(),
        read,
    };
    *merger.tree.metadata_mut(Tree::ROOT) = merger.metadata(
        Some(&base.node().metadata),
        &here.node().metadata,
        &image.node().metadata,
    );
    merger.children(Tree::ROOT, Some(base), Some(here), Some(image))?;
    Ok(Merged {
        tree: merger.tree,
        sources: merger.sources,
        conflicts: merger.conflicts,
    })
}

struct Merger<'r, 'f> {
    tree: Tree,
    sources: BTreeMap<NodeId, Source>,
    conflicts: Vec<Conflict>,
    left_out: LeftOut,
    path: TreePath,
    read: &'r mut ReadFile<'f>,
}

impl Merger<'_, '_> {
    /// Merges the entries of a directory into `parent`. Names come in the order of their bytes, so that
    /// `group` is done before `gshadow`, and `passwd` before `shadow`.
    fn children(
        &mut self,
        parent: NodeId,
        base: Option<Place<'_>>,
        here: Option<Place<'_>>,
        image: Option<Place<'_>>,
    ) -> Result<(), MergeError> {
        let names: BTreeSet<&Name> = [base, here, image]
            .into_iter()
            .flatten()
            .filter_map(Place::entries)
            .flat_map(BTreeMap::keys)
            .collect();
        for name in names {
            let [base, here, image] =
                [base, here, image].map(|place| place.and_then(|place| place.child(name)));
            self.path.push(name.clone());
            let outcome = self.entry(parent, name, base, here, image);
            self.path.pop();
            outcome?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        parent: NodeId,
        name: &Name,
        base: Option<Place<'_>>,
        here: Option<Place<'_>>,
        image: Option<Place<'_>>,
    ) -> Result<(), MergeError> {
        if same(here, base) {
            self.tell_of_moved_ids(name, here, image)?;
            return self.take(parent, name, Side::Image, image);
        }
        if same(image, base) || same(here, image) {
            return self.take(parent, name, Side::Here, here);
        }
        let directory = |place: Option<Place<'_>>| place.is_some_and(|p| p.entries().is_some());
        match (here, image) {
            // Both absent would have been the same.
            (None, None) => Ok(()),
            (Some(here), Some(image)) if directory(Some(here)) && directory(Some(image)) => {
                let base = base.filter(|base| base.entries().is_some());
                let metadata = self.metadata(
                    base.map(|base| &base.node().metadata),
                    &here.node().metadata,
                    &image.node().metadata,
                );
                let id = self.insert(parent, name, metadata, Content::empty_directory())?;
                self.children(id, base, Some(here), Some(image))
            }
            // The image removed a directory: what was made or changed in it here stays, and so does it.
            (Some(here), None) if directory(Some(here)) && directory(base) => {
                let node = here.node();
                let id = self.insert(
                    parent,
                    name,
                    node.metadata.clone(),
                    Content::empty_directory(),
                )?;
                self.children(id, base, Some(here), None)?;
                let unchanged =
                    base.is_some_and(|base| same_metadata(&base.node().metadata, &node.metadata));
                if unchanged && self.tree.entries(id).is_some_and(BTreeMap::is_empty) {
                    self.tree.remove(parent, name.as_bytes());
                }
                Ok(())
            }
            (Some(here), None) => {
                self.conflict(Kind::RemovedByImage);
                self.take(parent, name, Side::Here, Some(here))
            }
            (None, Some(_)) => {
                self.conflict(Kind::RemovedHere);
                Ok(())
            }
            (Some(here), Some(image)) => self.both(parent, name, base, here, image),
        }
    }

    /// Tells which users and groups the image renumbers in a file that nobody changed here.
    ///
    /// The image's file is taken whole, but files outside /etc keep the old numbers all the same.
    fn tell_of_moved_ids(
        &mut self,
        name: &Name,
        here: Option<Place<'_>>,
        image: Option<Place<'_>>,
    ) -> Result<(), MergeError> {
        let top = self.path.components().len() == 1;
        let (true, Some(kind), Some(here), Some(image)) =
            (top, accounts::kind(name.as_bytes()), here, image)
        else {
            return Ok(());
        };
        let (Content::File(ours), Content::File(theirs)) =
            (&here.node().content, &image.node().content)
        else {
            return Ok(());
        };
        if ours != theirs {
            let before = self.read(Side::Here, ours)?;
            let after = self.read(Side::Image, theirs)?;
            // Nothing is left out where nobody has an entry of his own.
            let merged = accounts::merge(kind, &before, &before, &after, &mut LeftOut::default());
            for kind in merged.conflicts {
                self.conflict(kind);
            }
        }
        Ok(())
    }

    /// Merges two versions that both differ from the base, and are not both directories.
    fn both(
        &mut self,
        parent: NodeId,
        name: &Name,
        base: Option<Place<'_>>,
        here: Place<'_>,
        image: Place<'_>,
    ) -> Result<(), MergeError> {
        let top = self.path.components().len() == 1;
        if top && DERIVED.contains(&name.as_bytes()) {
            return self.take(parent, name, Side::Image, Some(image));
        }
        if top && BACKUPS.contains(&name.as_bytes()) {
            return self.take(parent, name, Side::Here, Some(here));
        }
        let (local, new) = (here.node(), image.node());
        if local.content.type_bits() != new.content.type_bits() {
            self.conflict(Kind::Types {
                here: local.content.type_name().to_owned(),
                image: new.content.type_name().to_owned(),
            });
            return self.take(parent, name, Side::Here, Some(here));
        }
        let old = base
            .map(Place::node)
            .filter(|old| old.content.type_bits() == local.content.type_bits());
        if let (true, Some(kind), Content::File(ours), Content::File(theirs)) = (
            top,
            accounts::kind(name.as_bytes()),
            &local.content,
            &new.content,
        ) && ours != theirs
        {
            let before = match old.map(|old| &old.content) {
                Some(Content::File(content)) => self.read(Side::Base, content)?,
                _ => Vec::new(),
            };
            let merged = accounts::merge(
                kind,
                &before,
                &self.read(Side::Here, ours)?,
                &self.read(Side::Image, theirs)?,
                &mut self.left_out,
            );
            for kind in merged.conflicts {
                self.conflict(kind);
            }
            let metadata =
                self.metadata(old.map(|old| &old.metadata), &local.metadata, &new.metadata);
            let content = Content::File(FileContent::Inline(Box::default()));
            let id = self.insert(parent, name, metadata, content)?;
            self.sources.insert(id, Source::Bytes(merged.bytes.into()));
            return Ok(());
        }
        let Some(old) = old else {
            self.conflict(Kind::BothAdded);
            return self.take(parent, name, Side::Here, Some(here));
        };
        let side = if local.content == old.content {
            Side::Image
        } else {
            if new.content != old.content && new.content != local.content {
                self.conflict_in(match local.content {
                    Content::File(_) => "content",
                    Content::Symlink(_) => "target",
                    Content::BlockDevice(_)
                    | Content::CharacterDevice(_)
                    | Content::Directory(_)
                    | Content::Fifo
                    | Content::Socket => "device",
                });
            }
            Side::Here
        };
        let mut metadata = self.metadata(Some(&old.metadata), &local.metadata, &new.metadata);
        let taken = match side {
            Side::Image => new,
            Side::Base | Side::Here => local,
        };
        metadata.mtime = taken.metadata.mtime;
        let id = self.insert(parent, name, metadata, taken.content.clone())?;
        self.note_source(id, side, &taken.content);
        Ok(())
    }

    /// Takes a whole entry from one side.
    fn take(
        &mut self,
        parent: NodeId,
        name: &Name,
        side: Side,
        place: Option<Place<'_>>,
    ) -> Result<(), MergeError> {
        let Some(place) = place else { return Ok(()) };
        let node = place.node();
        let content = match &node.content {
            Content::Directory(_) => Content::empty_directory(),
            other => other.clone(),
        };
        let id = self.insert(parent, name, node.metadata.clone(), content)?;
        self.note_source(id, side, &node.content);
        for (name, child) in place.entries().into_iter().flatten() {
            self.take(id, name, side, Some(Place::new(place.tree, *child)))?;
        }
        Ok(())
    }

    fn insert(
        &mut self,
        parent: NodeId,
        name: &Name,
        metadata: Metadata,
        content: Content,
    ) -> Result<NodeId, MergeError> {
        self.tree
            .insert(parent, name.clone(), Node::new(metadata, content))
            // Names come from sets and parents are directories: only the number of nodes is left.
            .map_err(|_| MergeError::Full)
    }

    fn note_source(&mut self, id: NodeId, side: Side, content: &Content) {
        if let Content::File(content) = content {
            let source = match side {
                Side::Here | Side::Base => Source::Here,
                Side::Image => Source::Image(content.clone()),
            };
            self.sources.insert(id, source);
        }
    }

    /// Merges metadata, attribute by attribute; the time is the later one.
    fn metadata(&mut self, base: Option<&Metadata>, here: &Metadata, image: &Metadata) -> Metadata {
        let mut pick = |what, old: Option<u32>, here: u32, image: u32| {
            if old == Some(here) {
                return image;
            }
            if old != Some(image) && here != image {
                self.conflict_in(what);
            }
            here
        };
        let bits = |metadata: &Metadata| u32::from(metadata.mode);
        let mode = pick("mode", base.map(bits), bits(here), bits(image)) as u16;
        let uid = pick("owner", base.map(|m| m.uid), here.uid, image.uid);
        let gid = pick("group", base.map(|m| m.gid), here.gid, image.gid);
        Metadata {
            mode,
            uid,
            gid,
            mtime: here.mtime.max(image.mtime),
            xattrs: self.xattrs(base.map(|m| &m.xattrs), &here.xattrs, &image.xattrs),
        }
    }

    fn xattrs(&mut self, base: Option<&Xattrs>, here: &Xattrs, image: &Xattrs) -> Xattrs {
        let names: BTreeSet<_> = here.keys().chain(image.keys()).collect();
        let mut merged = Xattrs::new();
        for name in names {
            let old = base.map(|base| base.get(name));
            let (local, new) = (here.get(name), image.get(name));
            let taken = if old == Some(local) {
                new
            } else {
                if old != Some(new) && local != new && (old.is_some() || new.is_some()) {
                    self.conflict_in("attributes");
                }
                local
            };
            if let Some(value) = taken {
                merged.insert(name.clone(), value.clone());
            }
        }
        merged
    }

    fn read(&mut self, side: Side, content: &FileContent) -> Result<Vec<u8>, MergeError> {
        (self.read)(side, &self.path, content).map_err(|source| MergeError::Read {
            path: self.path.clone(),
            source,
        })
    }

    fn conflict_in(&mut self, what: &str) {
        self.conflict(Kind::BothChanged {
            what: what.to_owned(),
        });
    }

    fn conflict(&mut self, kind: Kind) {
        self.conflicts.push(Conflict {
            path: bedplate_model::name::shown(&self.path.to_bytes()),
            kind,
        });
    }
}

/// Returns whether two places hold the same, all the way down, times aside.
fn same(one: Option<Place<'_>>, other: Option<Place<'_>>) -> bool {
    let (one, other) = match (one, other) {
        (None, None) => return true,
        (Some(one), Some(other)) => (one, other),
        (None, Some(_)) | (Some(_), None) => return false,
    };
    let (a, b) = (one.node(), other.node());
    if !same_metadata(&a.metadata, &b.metadata) {
        return false;
    }
    match (&a.content, &b.content) {
        (Content::Directory(left), Content::Directory(right)) => {
            left.len() == right.len()
                && left.keys().eq(right.keys())
                && left
                    .keys()
                    .all(|name| same(one.child(name), other.child(name)))
        }
        (a, b) => a == b,
    }
}

/// Returns whether metadata are the same but for the time.
pub(super) fn same_metadata(one: &Metadata, other: &Metadata) -> bool {
    let Metadata {
        mode,
        uid,
        gid,
        mtime: _,
        xattrs,
    } = one;
    (mode, uid, gid, xattrs) == (&other.mode, &other.uid, &other.gid, &other.xattrs)
}

#[cfg(test)]
mod tests;
