//! Reading the files of a tree that is still a directory, or already an image.
//!
//! Invariant: no more bytes are read than the caller allows, whatever the tree says about sizes.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bedplate_model::os_release::{self, OsRelease};
use bedplate_model::{Content, FileContent, Tree, TreePath};
use bedplate_store::Store;

/// Gives the bytes of a tree's regular files.
pub trait Files {
    /// Reads a whole file of at most `max` bytes.
    ///
    /// `path` leads to the file without a symbolic link on the way; `content` is what the tree has there.
    fn read(&self, path: &TreePath, content: &FileContent, max: u64) -> io::Result<Vec<u8>>;
}

/// The files of a directory that was scanned.
#[derive(Clone, Debug)]
pub struct DirectoryFiles {
    root: PathBuf,
}

impl DirectoryFiles {
    /// Makes the files below `root`.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }
}

impl Files for DirectoryFiles {
    fn read(&self, path: &TreePath, content: &FileContent, max: u64) -> io::Result<Vec<u8>> {
        if let FileContent::Inline(bytes) = content {
            return Ok(bytes.to_vec());
        }
        let mut full = self.root.clone();
        full.extend(path.components().iter().map(|name| name.as_os_str()));
        let mut bytes = Vec::new();
        File::open(full)?
            .take(max.saturating_add(1))
            .read_to_end(&mut bytes)?;
        check_size(bytes.len() as u64, max)?;
        Ok(bytes)
    }
}

/// The files of an image in a store.
#[derive(Debug)]
pub struct StoreFiles<'a> {
    store: &'a Store,
}

impl<'a> StoreFiles<'a> {
    /// Makes the files of images in `store`.
    pub fn new(store: &'a Store) -> Self {
        Self { store }
    }
}

impl Files for StoreFiles<'_> {
    fn read(&self, _path: &TreePath, content: &FileContent, max: u64) -> io::Result<Vec<u8>> {
        check_size(content.size(), max)?;
        let mut bytes = Vec::new();
        self.store
            .read_content(content)
            .map_err(io::Error::other)?
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Reads what a tree says about itself, where it says something.
///
/// Of /etc and /usr, the first that can be read counts; /etc's is most often a link to the other.
pub fn os_release(tree: &Tree, files: &dyn Files) -> Option<OsRelease> {
    os_release::PATHS.iter().find_map(|path| {
        let path = TreePath::try_from(*path).ok()?;
        let Content::File(content) = &tree.node(tree.lookup(&path)?).content else {
            return None;
        };
        let bytes = files.read(&path, content, os_release::SIZE_MAX).ok()?;
        Some(OsRelease::parse(&bytes))
    })
}

fn check_size(size: u64, max: u64) -> io::Result<()> {
    if size > max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("the file has more than {max} bytes"),
        ));
    }
    Ok(())
}
