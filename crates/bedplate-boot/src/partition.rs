//! The boot partition as its users see it: few files, names that matter, and no journal.
//!
//! ```text
//! write      NAME.new → fsync → rename over NAME → fsync the directory → fsync the file
//! overwrite  one sector of a file that is there, in place → fdatasync
//! ```
//!
//! Invariant: when a method returns `Ok`, what it did is on the disk. A power cut in `write` leaves the
//! file as it was or as it should be or, since FAT renames by several writes, not at all or empty: whoever
//! writes must not overwrite the only entry that boots, and whoever reads must not take a name for a file.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::loader_conf::SECTOR;

/// The longest file that is read: an initramfs with all its modules.
pub const FILE_MAX: u64 = 1 << 30;

/// A boot partition. Paths have `/` between their parts and none before.
pub trait BootPartition {
    /// Reads a whole file, or returns `None` where there is none.
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>>;
    /// Lists the names in a directory, sorted; one that is not there is empty.
    fn list(&self, directory: &str) -> io::Result<Vec<String>>;
    /// Writes a file durably, with the directories above it.
    fn write(&mut self, path: &str, contents: &[u8]) -> io::Result<()>;
    /// Overwrites a file of one sector in place, durably; makes it where there is none.
    fn overwrite_sector(&mut self, path: &str, contents: &[u8; SECTOR]) -> io::Result<()>;
    /// Removes a file durably; one that is not there is fine.
    fn remove(&mut self, path: &str) -> io::Result<()>;
}

/// A boot partition that is mounted at a directory.
#[derive(Debug)]
pub struct DirectoryPartition {
    root: PathBuf,
}

impl DirectoryPartition {
    /// Uses the file system that is mounted at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl BootPartition for DirectoryPartition {
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.root.join(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut bytes = Vec::new();
        file.take(FILE_MAX).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.root.join(directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // Names that are no text are nobody's that we know.
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn write(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        let target = self.root.join(path);
        if let Some(parent) = target.parent() {
            create_directories(parent)?;
        }
        // The loader ignores names that end like this, and a crash leaves nothing else behind.
        let mut temporary = target.clone().into_os_string();
        temporary.push(".new");
        let mut file = File::create(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?; // 1. the bytes are on the disk …
        bedplate_sys::durable::rename(Path::new(&temporary), &target)?; // 2. … before the name is there …
        // 3. … which on FAT is the name of an empty file until the inode is written once more. Not before the
        // directory: a cut could leave both names leading to the same clusters, and removing one frees them.
        file.sync_all()
    }

    fn overwrite_sector(&mut self, path: &str, contents: &[u8; SECTOR]) -> io::Result<()> {
        let target = self.root.join(path);
        match File::options().write(true).open(&target) {
            Ok(file) if file.metadata()?.len() == SECTOR as u64 => {
                file.write_all_at(contents, 0)?;
                file.sync_data()
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            // An install makes it, or somebody else's file of another length is replaced, once.
            _ => self.write(path, contents),
        }
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        bedplate_sys::durable::remove(&self.root.join(path))
    }
}

/// Makes a directory durably, with those above it.
fn create_directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_directories(parent)?;
    }
    fs::create_dir(path)?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => bedplate_sys::durable::sync_directory(parent),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn files_are_written_listed_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let mut partition = DirectoryPartition::new(directory.path());
        assert_eq!(partition.read("a/b").unwrap(), None);
        assert!(partition.list("a").unwrap().is_empty());
        partition.write("a/b", b"1").unwrap();
        partition.write("a/b", b"22").unwrap();
        partition.write("a/a", b"").unwrap();
        assert_eq!(partition.list("a").unwrap(), ["a", "b"]);
        assert_eq!(partition.read("a/b").unwrap().unwrap(), b"22");
        partition.remove("a/b").unwrap();
        partition.remove("a/b").unwrap();
        assert_eq!(partition.list("a").unwrap(), ["a"]);
    }

    #[test]
    fn a_sector_is_overwritten_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let mut partition = DirectoryPartition::new(directory.path());
        let path = directory.path().join("loader/loader.conf");
        partition.write("loader/loader.conf", b"short").unwrap();
        partition
            .overwrite_sector("loader/loader.conf", &[b'1'; SECTOR])
            .unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        partition
            .overwrite_sector("loader/loader.conf", &[b'2'; SECTOR])
            .unwrap();
        assert_eq!(fs::read(&path).unwrap(), [b'2'; SECTOR]);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    }
}
