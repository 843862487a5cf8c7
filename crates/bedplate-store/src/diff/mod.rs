//! What makes two trees different: paths, and what an administrator asks about first.
//!
//! ```text
//! diff(from, to)            every path that was added, removed or changed, and what of it changed
//! summary(store, from, to)  packages, kernels, units, privileges, sizes
//! ```
//!
//! Invariant: two trees without a change between them are equal, and the other way round.

mod packages;
mod rpm;
mod summary;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bedplate_model::{Content, Name, Node, NodeId, Tree, TreePath};

pub use packages::{
    Package, PackageChange, ParsePackagesError, parse_apk_installed, parse_dpkg_control,
    parse_dpkg_status,
};
pub use rpm::{parse_rpm_bdb, parse_rpm_ndb, parse_rpm_sqlite};
pub(crate) use summary::MACHINE_DATABASES;
pub use summary::{
    KernelChanges, Packages, PathChanges, PathCounts, Summary, SummaryError, kernels, new_bytes,
    packages, packages_of_directory, summarize, summary,
};

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The path.
    pub path: TreePath,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// What happened to a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new, with everything below it listed after it.
    Added,
    /// It is gone, with everything below it listed after it.
    Removed,
    /// It is there in both, and these aspects differ.
    Changed(BTreeSet<Aspect>),
}

/// What can differ about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// Another type: a file became a link, for example.
    Type,
    /// Other bytes, or another target of a link.
    Content,
    /// Other numbers of a device.
    Device,
    /// Other permissions.
    Mode,
    /// Another owner or group.
    Owner,
    /// Another time.
    Time,
    /// Other extended attributes.
    Xattrs,
    /// It shares its inode with other names than before.
    HardLinks,
}

impl Aspect {
    /// Returns the word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Content => "content",
            Self::Device => "device",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Time => "time",
            Self::Xattrs => "xattrs",
            Self::HardLinks => "links",
        }
    }
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Compares two trees; changes come in the order of their paths, the root's own first.
pub fn diff(from: &Tree, to: &Tree) -> Vec<Change> {
    let mut comparison = Comparison {
        from,
        to,
        from_links: Links::of(from),
        to_links: Links::of(to),
        trail: Vec::new(),
        changes: Vec::new(),
    };
    comparison.run();
    comparison.changes
}

/// Drops the paths of which nothing but the time differs.
pub fn ignore_times(changes: &mut Vec<Change>) {
    changes.retain(|change| match &change.kind {
        ChangeKind::Added | ChangeKind::Removed => true,
        ChangeKind::Changed(aspects) => aspects.iter().any(|aspect| *aspect != Aspect::Time),
    });
}

struct Comparison<'a> {
    from: &'a Tree,
    to: &'a Tree,
    from_links: Links,
    to_links: Links,
    /// The directories that were entered, each with its name and the one above it: most paths are the same
    /// in both trees, and are never put together.
    trail: Vec<(Place, &'a Name)>,
    changes: Vec<Change>,
}

/// A directory of the trail; `None` is the root.
type Place = Option<usize>;

/// What is still to be compared: a name in a directory, and its nodes.
type Pending<'a> = (Place, Option<&'a Name>, Option<NodeId>, Option<NodeId>);

impl<'a> Comparison<'a> {
    /// Compares the roots, and everything below them.
    fn run(&mut self) {
        // An own stack: a stranger's tree may be deeper than a thread's.
        let mut pending: Vec<Pending<'a>> = vec![(None, None, Some(Tree::ROOT), Some(Tree::ROOT))];
        while let Some((place, name, from, to)) = pending.pop() {
            match (from, to) {
                (Some(from), Some(to)) => self.node(place, name, from, to),
                (Some(_), None) => self.note(place, name, ChangeKind::Removed),
                (None, Some(_)) => self.note(place, name, ChangeKind::Added),
                (None, None) => {}
            }
            let olds = from.and_then(|id| self.from.entries(id));
            let news = to.and_then(|id| self.to.entries(id));
            if olds.is_none() && news.is_none() {
                continue;
            }
            let below = match name {
                None => None,
                Some(name) => {
                    self.trail.push((place, name));
                    Some(self.trail.len() - 1)
                }
            };
            let first = pending.len();
            merge(olds, news, |name, old, new| {
                pending.push((below, Some(name), old, new));
            });
            // The stack turns the order round.
            pending[first..].reverse();
        }
    }

    fn node(&mut self, place: Place, name: Option<&'a Name>, from: NodeId, to: NodeId) {
        let mut aspects = aspects(self.from.node(from), self.to.node(to));
        if self.from_links.of_node(from) != self.to_links.of_node(to) {
            aspects.insert(Aspect::HardLinks);
        }
        if !aspects.is_empty() {
            self.note(place, name, ChangeKind::Changed(aspects));
        }
    }

    fn note(&mut self, mut place: Place, name: Option<&'a Name>, kind: ChangeKind) {
        let mut names: Vec<&Name> = name.into_iter().collect();
        while let Some((above, name)) = place.and_then(|at| self.trail.get(at)) {
            names.push(name);
            place = *above;
        }
        let path = names.into_iter().rev().cloned().collect();
        self.changes.push(Change { path, kind });
    }
}

/// Gives every name of two directories, in order, with what each has under it.
fn merge<'a>(
    olds: Option<&'a BTreeMap<Name, NodeId>>,
    news: Option<&'a BTreeMap<Name, NodeId>>,
    mut give: impl FnMut(&'a Name, Option<NodeId>, Option<NodeId>),
) {
    let mut olds = olds.into_iter().flatten().peekable();
    let mut news = news.into_iter().flatten().peekable();
    loop {
        let order = match (olds.peek(), news.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let old = if order.is_le() { olds.next() } else { None };
        let new = if order.is_ge() { news.next() } else { None };
        if let Some((name, _)) = old.or(new) {
            give(name, old.map(|(_, id)| *id), new.map(|(_, id)| *id));
        }
    }
}

/// The names of each node that has several, in order, by [`NodeId::index`].
struct Links(BTreeMap<usize, Vec<TreePath>>);

impl Links {
    fn of(tree: &Tree) -> Self {
        let counts = tree.name_counts();
        let mut links: BTreeMap<usize, Vec<TreePath>> = BTreeMap::new();
        if counts.iter().all(|count| *count <= 1) {
            return Self(links);
        }
        // No walk of the tree: that makes the path of every name, and few are wanted.
        let mut pending = vec![(Tree::ROOT, TreePath::root())];
        while let Some((directory, path)) = pending.pop() {
            for (name, id) in tree.entries(directory).into_iter().flatten() {
                if tree.entries(*id).is_some() {
                    pending.push((*id, path.join(name)));
                } else if counts[id.index()] > 1 {
                    links.entry(id.index()).or_default().push(path.join(name));
                }
            }
        }
        for paths in links.values_mut() {
            paths.sort_unstable();
        }
        Self(links)
    }

    fn of_node(&self, id: NodeId) -> Option<&Vec<TreePath>> {
        self.0.get(&id.index())
    }
}

fn aspects(from: &Node, to: &Node) -> BTreeSet<Aspect> {
    let (old, new) = (&from.metadata, &to.metadata);
    let content = match (&from.content, &to.content) {
        (Content::Directory(_), Content::Directory(_)) => None,
        (Content::File(old), Content::File(new)) => (old != new).then_some(Aspect::Content),
        (Content::Symlink(old), Content::Symlink(new)) => (old != new).then_some(Aspect::Content),
        (Content::BlockDevice(old), Content::BlockDevice(new))
        | (Content::CharacterDevice(old), Content::CharacterDevice(new)) => {
            (old != new).then_some(Aspect::Device)
        }
        (old, new) => (old.type_bits() != new.type_bits()).then_some(Aspect::Type),
    };
    let found = [
        content,
        (old.mode != new.mode).then_some(Aspect::Mode),
        ((old.uid, old.gid) != (new.uid, new.gid)).then_some(Aspect::Owner),
        (old.mtime != new.mtime).then_some(Aspect::Time),
        (old.xattrs != new.xattrs).then_some(Aspect::Xattrs),
    ];
    let mut aspects = BTreeSet::new();
    aspects.extend(found.into_iter().flatten());
    aspects
}

#[cfg(test)]
mod tests {
    use super::*;
    use bedplate_model::{FileContent, Metadata, Timestamp};

    fn name(text: &str) -> Name {
        Name::try_from(text).unwrap()
    }

    fn file(text: &str) -> Node {
        let content = Content::File(FileContent::Inline(text.as_bytes().into()));
        Node::new(Metadata::root_owned(0o644), content)
    }

    fn directory() -> Node {
        Node::new(Metadata::root_owned(0o755), Content::empty_directory())
    }

    fn texts(from: &Tree, to: &Tree) -> Vec<String> {
        diff(from, to)
            .into_iter()
            .map(|change| match change.kind {
                ChangeKind::Added => format!("A {}", change.path),
                ChangeKind::Removed => format!("D {}", change.path),
                ChangeKind::Changed(aspects) => {
                    let aspects: Vec<_> = aspects.into_iter().map(Aspect::name).collect();
                    format!("C {} {}", change.path, aspects.join(","))
                }
            })
            .collect()
    }

    #[test]
    fn without_times_what_differs_in_nothing_else_is_no_change() {
        let mut old = Tree::new(Metadata::root_owned(0o755));
        let touched = old.insert(Tree::ROOT, name("touched"), file("1")).unwrap();
        let changed = old.insert(Tree::ROOT, name("changed"), file("1")).unwrap();
        let mut new = old.clone();
        for id in [Tree::ROOT, touched, changed] {
            new.metadata_mut(id).mtime = Timestamp::from_seconds(7);
        }
        new.metadata_mut(changed).mode = 0o600;
        new.insert(Tree::ROOT, name("new"), file("1")).unwrap();
        let mut changes = diff(&old, &new);
        assert_eq!(changes.len(), 4);
        ignore_times(&mut changes);
        let paths: Vec<_> = changes
            .iter()
            .map(|change| change.path.to_string())
            .collect();
        assert_eq!(paths, ["/changed", "/new"]);
    }

    #[test]
    fn changes_are_told_apart_and_come_in_the_order_of_paths() {
        let mut old = Tree::new(Metadata::root_owned(0o755));
        let etc = old.insert(Tree::ROOT, name("etc"), directory()).unwrap();
        let same = old.insert(etc, name("same"), file("1")).unwrap();
        old.insert(etc, name("changed"), file("1")).unwrap();
        old.insert(etc, name("typed"), file("1")).unwrap();
        old.insert(Tree::ROOT, name("gone"), file("1")).unwrap();

        let mut new = old.clone();
        new.link(Tree::ROOT, name("alias"), same).unwrap();
        new.remove(Tree::ROOT, b"gone");
        let changed = new.child(etc, b"changed").unwrap();
        let content = Content::File(FileContent::Inline(b"2"[..].into()));
        new.set_content(changed, content).unwrap();
        new.metadata_mut(changed).mode = 0o600;
        new.metadata_mut(changed).mtime = Timestamp::from_seconds(7);
        let typed = new.child(etc, b"typed").unwrap();
        new.set_content(typed, Content::Fifo).unwrap();
        let added = new.insert(Tree::ROOT, name("new"), directory()).unwrap();
        new.insert(added, name("below"), file("1")).unwrap();

        assert_eq!(
            texts(&old, &new),
            [
                "A /alias",
                "C /etc/changed content,mode,time",
                "C /etc/same links",
                "C /etc/typed type",
                "D /gone",
                "A /new",
                "A /new/below",
            ]
        );
        assert_eq!(texts(&new, &new), Vec::<String>::new());
    }
}
