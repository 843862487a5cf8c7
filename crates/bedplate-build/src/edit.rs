//! Small changes of a tree by path, all with one time.
//!
//! Invariant: what is added has the time of the [`Editor`], and no directory's own time changes: the
//! same tree and the same changes give the same root digest, whenever they are made.

use bedplate_model::name::{NameError, shown};
use bedplate_model::tree::TreeError;
use bedplate_model::{
    Content, FileContent, Metadata, Name, Node, NodeId, Timestamp, Tree, TreePath,
};

/// How many symbolic links one lookup follows, as in Linux.
const MAX_LINKS: usize = 40;

/// Stores the bytes of a new file, or says why it could not.
pub type Put<'a> =
    dyn Fn(&[u8]) -> Result<FileContent, Box<dyn std::error::Error + Send + Sync>> + 'a;

/// Changes a tree.
pub struct Editor<'a> {
    tree: &'a mut Tree,
    time: Timestamp,
    put: &'a Put<'a>,
}

impl std::fmt::Debug for Editor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Editor")
            .field("time", &self.time)
            .finish_non_exhaustive()
    }
}

impl<'a> Editor<'a> {
    /// Makes an editor whose additions have the modification time `time`, and whose new files' bytes
    /// are stored by `put`.
    pub fn new(tree: &'a mut Tree, time: Timestamp, put: &'a Put<'a>) -> Self {
        Self { tree, time, put }
    }

    /// Returns the tree as it is now.
    pub fn tree(&self) -> &Tree {
        self.tree
    }

    /// Returns the metadata of a node, to be changed.
    pub fn metadata_mut(&mut self, id: NodeId) -> &mut Metadata {
        self.tree.metadata_mut(id)
    }

    /// Finds a path without following symbolic links.
    pub fn find(&self, path: &str) -> Option<NodeId> {
        self.tree.lookup(&TreePath::try_from(path).ok()?)
    }

    /// Returns the directory at `path`, made with `mode` where it is missing, as are its parents
    /// (`0755`). Symbolic links on the way are followed; a last one that leads nowhere is an error.
    pub fn directory(&mut self, path: &str, mode: u16) -> Result<NodeId, EditError> {
        let parsed = parse(path)?;
        let mut trail = vec![Tree::ROOT];
        for (position, name) in parsed.components().iter().enumerate() {
            let last = position + 1 == parsed.components().len();
            let at = *trail
                .last()
                .expect("the trail starts at the root and only grows");
            if self.tree.child(at, name.as_bytes()).is_none() {
                let metadata = self.metadata(if last { mode } else { 0o755 });
                let node = Node::new(metadata, Content::empty_directory());
                self.tree
                    .insert(at, name.clone(), node)
                    .map_err(|error| EditError::new(path, error))?;
            }
            go(self.tree, &mut trail, name.as_bytes())
                .and_then(|()| self.tree.entries(*trail.last()?))
                .ok_or_else(|| EditError::new(path, TreeError::NotDirectory))?;
        }
        Ok(*trail.last().expect("the trail starts at the root"))
    }

    /// Puts a regular file at `path`, in place of whatever other than a directory was there.
    pub fn file(&mut self, path: &str, mode: u16, bytes: &[u8]) -> Result<NodeId, EditError> {
        let content = (self.put)(bytes).map_err(|source| EditError {
            path: shown(path.as_bytes()),
            problem: Problem::Put(source),
        })?;
        let node = Node::new(self.metadata(mode), Content::File(content));
        self.put(path, node)
    }

    /// Puts a symbolic link at `path`, in place of whatever other than a directory was there.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<NodeId, EditError> {
        let node = Node::new(
            self.metadata(0o777),
            Content::Symlink(target.as_bytes().into()),
        );
        self.put(path, node)
    }

    /// Removes what is at `path`, with everything below it, and returns whether there was something.
    pub fn remove(&mut self, path: &str) -> bool {
        let Ok(parsed) = TreePath::try_from(path) else {
            return false;
        };
        let Some((parents, name)) = parsed.split_last() else {
            return false;
        };
        self.tree
            .lookup(&parents.iter().cloned().collect())
            .and_then(|parent| self.tree.remove(parent, name.as_bytes()))
            .is_some()
    }

    /// Removes the entries of a directory, where there is one.
    pub fn clear(&mut self, path: &str) {
        if let Some(id) = self.find(path) {
            // What is no directory has no entries to lose.
            let _ = self.tree.clear(id);
        }
    }

    /// Gives a node a second name, in place of whatever other than a directory was there.
    pub fn link(&mut self, path: &str, target: NodeId) -> Result<(), EditError> {
        let (parent, name) = self.place(path)?;
        self.tree
            .link(parent, name, target)
            .map_err(|error| EditError::new(path, error))
    }

    /// Moves the directory `from` to the free place `to`, or, where a directory is there, its entries
    /// into that one.
    ///
    /// Directories that both have are merged; any other name that both have is an error.
    pub fn merge_directory(&mut self, from: &str, to: &str) -> Result<(), EditError> {
        let source = self
            .find(from)
            .filter(|id| self.tree.entries(*id).is_some())
            .ok_or_else(|| EditError::new(from, TreeError::Missing))?;
        let parsed = parse(to)?;
        let Some((parents, name)) = parsed.split_last() else {
            return Err(EditError::new(to, TreeError::Exists));
        };
        let parents: TreePath = parents.iter().cloned().collect();
        let parent = self.directory(&parents.to_string(), 0o755)?;
        if let Some(target) = self.tree.child(parent, name.as_bytes()) {
            self.merge(source, target, to)?;
            self.remove(from);
            return Ok(());
        }
        let from_path = parse(from)?;
        let Some((from_parents, from_name)) = from_path.split_last() else {
            return Err(EditError::new(from, TreeError::Loop));
        };
        let from_parent = self
            .tree
            .lookup(&from_parents.iter().cloned().collect())
            .ok_or_else(|| EditError::new(from, TreeError::Missing))?;
        self.tree
            .rename((from_parent, from_name.as_bytes()), (parent, name.clone()))
            .map_err(|error| EditError::new(to, error))
    }

    fn merge(&mut self, source: NodeId, target: NodeId, path: &str) -> Result<(), EditError> {
        let names: Vec<Name> = self
            .tree
            .entries(source)
            .into_iter()
            .flat_map(|entries| entries.keys().cloned())
            .collect();
        for name in names {
            let below = format!("{path}/{name}");
            let moved = self.tree.child(source, name.as_bytes());
            let there = self.tree.child(target, name.as_bytes());
            let (Some(moved), Some(there)) = (moved, there) else {
                self.tree
                    .rename((source, name.as_bytes()), (target, name.clone()))
                    .map_err(|error| EditError::new(&below, error))?;
                continue;
            };
            if self.tree.entries(moved).is_none() || self.tree.entries(there).is_none() {
                return Err(EditError::new(&below, TreeError::Exists));
            }
            self.merge(moved, there, &below)?;
        }
        Ok(())
    }

    fn put(&mut self, path: &str, node: Node) -> Result<NodeId, EditError> {
        let (parent, name) = self.place(path)?;
        self.tree
            .insert(parent, name, node)
            .map_err(|error| EditError::new(path, error))
    }

    /// Makes sure that `path` is free and its parent there.
    fn place(&mut self, path: &str) -> Result<(NodeId, Name), EditError> {
        let parsed = parse(path)?;
        let Some((parents, name)) = parsed.split_last() else {
            return Err(EditError::new(path, TreeError::Exists));
        };
        let parents: TreePath = parents.iter().cloned().collect();
        let parent = self.directory(&parents.to_string(), 0o755)?;
        if let Some(old) = self.tree.child(parent, name.as_bytes()) {
            if self.tree.entries(old).is_some() {
                return Err(EditError::new(path, TreeError::IsDirectory));
            }
            self.tree.remove(parent, name.as_bytes());
        }
        Ok((parent, name.clone()))
    }

    fn metadata(&self, mode: u16) -> Metadata {
        Metadata {
            mtime: self.time,
            ..Metadata::root_owned(mode)
        }
    }
}

/// Finds what a path leads to, following symbolic links inside the tree as if it were `/`.
pub fn resolve(tree: &Tree, path: &str) -> Option<NodeId> {
    let mut trail = vec![Tree::ROOT];
    go(tree, &mut trail, path.as_bytes())?;
    trail.last().copied()
}

/// Goes along `path` from the end of `trail`, which holds every directory from the root to here.
fn go(tree: &Tree, trail: &mut Vec<NodeId>, path: &[u8]) -> Option<()> {
    let parts = |path: &[u8]| -> Vec<Box<[u8]>> {
        path.split(|byte| *byte == b'/')
            .rev() // the next one is taken from the end
            .filter(|part| !part.is_empty() && *part != b".")
            .map(Into::into)
            .collect()
    };
    let mut pending = parts(path);
    let mut links = 0;
    while let Some(part) = pending.pop() {
        if &*part == b".." {
            // The parent of the root is the root.
            if trail.len() > 1 {
                trail.pop();
            }
            continue;
        }
        let child = tree.child(*trail.last()?, &part)?;
        let Content::Symlink(target) = &tree.node(child).content else {
            trail.push(child);
            continue;
        };
        links += 1;
        if links > MAX_LINKS {
            return None;
        }
        if target.starts_with(b"/") {
            trail.truncate(1);
        }
        pending.extend(parts(target));
    }
    Some(())
}

fn parse(path: &str) -> Result<TreePath, EditError> {
    TreePath::try_from(path).map_err(|source| EditError {
        path: shown(path.as_bytes()),
        problem: Problem::Name(source),
    })
}

/// Why a tree could not be changed at a path.
#[derive(Debug, thiserror::Error)]
#[error("cannot change {path} in the tree")]
pub struct EditError {
    path: String,
    #[source]
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Tree(TreeError),
    #[error(transparent)]
    Name(NameError),
    #[error("its bytes cannot be stored")]
    Put(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl EditError {
    fn new(path: &str, problem: TreeError) -> Self {
        Self {
            path: shown(path.as_bytes()),
            problem: Problem::Tree(problem),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{directory, file, inline, paths, tree};

    const THEN: Timestamp = Timestamp::from_seconds(1_700_000_000);

    #[test]
    fn what_is_added_has_the_editors_time_and_its_directory_keeps_its_own() {
        let mut tree = tree(&[directory("usr/lib")]);
        let lib = tree
            .lookup(&TreePath::try_from("usr/lib").unwrap())
            .unwrap();
        let before = tree.node(lib).clone().metadata;
        let id = Editor::new(&mut tree, THEN, &inline)
            .file("usr/lib/x", 0o644, b"x")
            .unwrap();
        assert_eq!(tree.node(id).metadata.mtime, THEN);
        assert_eq!(tree.node(lib).metadata, before);
    }

    #[test]
    fn links_inside_the_tree_are_followed_and_never_lead_out_of_it() {
        let mut tree = tree(&[
            directory("usr/lib/a"),
            crate::sample::symlink("lib", "usr/lib"),
            crate::sample::symlink("up", "../../../usr"),
            crate::sample::symlink("usr/abs", "/lib/a"),
            crate::sample::symlink("round", "circle"),
            crate::sample::symlink("circle", "round"),
        ]);
        let a = resolve(&tree, "usr/lib/a");
        assert!(a.is_some());
        for path in ["lib/a", "/up/lib/a", "usr/abs", "lib/../abs"] {
            let found = resolve(&tree, path);
            let wanted = if path == "lib/../abs" {
                resolve(&tree, "usr/lib/a")
            } else {
                a
            };
            assert_eq!(found, wanted, "{path}");
        }
        assert_eq!(resolve(&tree, "round"), None);
        assert_eq!(resolve(&tree, "lib/missing"), None);
        let mut editor = Editor::new(&mut tree, THEN, &inline);
        assert_eq!(Some(editor.directory("lib/a", 0o755).unwrap()), a);
        assert!(editor.directory("round/x", 0o755).is_err());
    }

    #[test]
    fn directories_merge_and_files_with_one_name_do_not() {
        let mut tree = tree(&[
            file("opt/a/x", "1"),
            file("var/opt/a/y", "2"),
            file("opt/b", "3"),
        ]);
        Editor::new(&mut tree, THEN, &inline)
            .merge_directory("opt", "var/opt")
            .unwrap();
        assert_eq!(
            paths(&tree),
            [
                "/var",
                "/var/opt",
                "/var/opt/a",
                "/var/opt/a/x",
                "/var/opt/a/y",
                "/var/opt/b"
            ]
        );
        let mut tree = crate::sample::tree(&[file("opt/x", "1"), file("var/opt/x", "2")]);
        let error = Editor::new(&mut tree, THEN, &inline)
            .merge_directory("opt", "var/opt")
            .unwrap_err();
        assert!(error.to_string().contains("var/opt/x"), "{error}");
    }
}
