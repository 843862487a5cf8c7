//! Small trees for the tests of this crate.

use bedplate_model::{Content, FileContent, Metadata, Node, Tree, TreePath};

/// One path of a small tree, and what is there.
pub(crate) type Entry = (&'static str, Node);

pub(crate) fn directory(path: &'static str) -> Entry {
    (
        path,
        Node::new(Metadata::root_owned(0o755), Content::empty_directory()),
    )
}

pub(crate) fn file(path: &'static str, text: &str) -> Entry {
    let content = FileContent::Inline(text.as_bytes().into());
    (
        path,
        Node::new(Metadata::root_owned(0o644), Content::File(content)),
    )
}

pub(crate) fn symlink(path: &'static str, target: &str) -> Entry {
    let content = Content::Symlink(target.as_bytes().into());
    (path, Node::new(Metadata::root_owned(0o777), content))
}

/// Makes a tree of these entries, and of the directories that they lie in.
pub(crate) fn tree(entries: &[Entry]) -> Tree {
    let mut tree = Tree::new(Metadata::root_owned(0o755));
    for (path, node) in entries {
        let path = TreePath::try_from(*path).unwrap();
        let (parents, name) = path.split_last().unwrap();
        let mut at = Tree::ROOT;
        for parent in parents {
            at = match tree.child(at, parent.as_bytes()) {
                Some(id) => id,
                None => tree.insert(at, parent.clone(), directory("").1).unwrap(),
            };
        }
        tree.insert(at, name.clone(), node.clone()).unwrap();
    }
    tree
}

/// Lists the paths of a tree.
pub(crate) fn paths(tree: &Tree) -> Vec<String> {
    tree.walk().map(|(path, _)| path.to_string()).collect()
}

/// Returns the target of a symbolic link, or `None` for anything else.
pub(crate) fn target(tree: &Tree, path: &str) -> Option<String> {
    match &tree
        .node(tree.lookup(&TreePath::try_from(path).unwrap())?)
        .content
    {
        Content::Symlink(target) => Some(String::from_utf8_lossy(target).into_owned()),
        _ => None,
    }
}

/// Returns the text of a small file.
pub(crate) fn text(tree: &Tree, path: &str) -> Option<String> {
    match &tree
        .node(tree.lookup(&TreePath::try_from(path).unwrap())?)
        .content
    {
        Content::File(FileContent::Inline(bytes)) => {
            Some(String::from_utf8_lossy(bytes).into_owned())
        }
        _ => None,
    }
}

/// Keeps the bytes of a new file in the tree itself, however many they are.
#[expect(clippy::unnecessary_wraps, reason = "the signature of Put")]
pub(crate) fn inline(
    bytes: &[u8],
) -> Result<FileContent, Box<dyn std::error::Error + Send + Sync>> {
    Ok(FileContent::Inline(bytes.into()))
}

/// The files of small trees, which hold their bytes themselves.
pub(crate) struct Texts;

impl crate::files::Files for Texts {
    fn read(&self, path: &TreePath, content: &FileContent, _max: u64) -> std::io::Result<Vec<u8>> {
        match content {
            FileContent::Inline(bytes) => Ok(bytes.to_vec()),
            FileContent::Object { .. } => Err(std::io::Error::other(path.to_string())),
        }
    }
}
