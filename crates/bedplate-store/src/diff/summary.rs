//! What an administrator wants to know first: packages, kernels, units, privileges, sizes.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::Path;

use bedplate_model::{Content, FileContent, Name, Node, Tree, TreePath, layout};
use bedplate_sys::files;

use super::packages::{self as dpkg, Package, PackageChange, ParsePackagesError};
use super::{Aspect, Change, ChangeKind, parse_rpm_bdb, parse_rpm_ndb, parse_rpm_sqlite};
use crate::store::{ReadStoreError, Store};

/// Where dpkg's database lies, the first that is there counts: where `build` moves it, where Debian has it.
const DPKG: [&str; 2] = ["usr/lib/sysimage/dpkg", "var/lib/dpkg"];
/// Where apk's lies, with and without a merged /usr.
const APK: [&str; 2] = ["usr/lib/apk/db", "lib/apk/db"];
/// Where rpm's lies: Fedora and openSUSE, rpm-ostree, and those before them.
const RPM: [&str; 3] = ["usr/lib/sysimage/rpm", "usr/share/rpm", "var/lib/rpm"];
/// Which of these lie where a machine keeps its own state.
pub(crate) const MACHINE_DATABASES: [&str; 2] = [DPKG[1], RPM[2]];
/// Where systemd's units lie.
const UNITS: [&[&str]; 4] = [
    &["usr", "lib", "systemd", "system"],
    &["usr", "lib", "systemd", "user"],
    &["etc", "systemd", "system"],
    &["etc", "systemd", "user"],
];
/// The attribute that gives a program capabilities.
const CAPABILITY: &[u8] = b"security.capability";
/// More bytes than any database has (a full desktop's: dpkg 6 MB, rpm 200 MB).
const STATUS_MAX: u64 = 512 * 1024 * 1024;

/// The differences between two images, in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Changes of packages, where both have a database that we know.
    pub packages: Packages,
    /// Changes of kernels.
    pub kernels: KernelChanges,
    /// Changes of systemd's units: files and links in its directories.
    pub units: PathChanges,
    /// Changes of files that run as somebody else (setuid, setgid).
    pub setuid: PathChanges,
    /// Changes of files that run with capabilities.
    pub capabilities: PathChanges,
    /// The bytes of all files of each, hard links counted once.
    pub bytes: (u64, u64),
    /// The bytes of contents that the second has and the first has not: what an upgrade has to fetch
    /// at most.
    pub new_bytes: u64,
    /// How many paths were added, removed and changed.
    pub paths: PathCounts,
}

/// What became of the packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packages {
    /// Both have a database: these changed.
    Compared(Vec<PackageChange>),
    /// The first has no database that we know.
    UnknownBefore,
    /// The second has no database that we know.
    UnknownAfter,
    /// Neither has.
    Unknown,
    /// One has a database that cannot be read.
    Unreadable,
}

impl Packages {
    /// Returns the changes, where both have a database.
    pub fn changes(&self) -> Option<&[PackageChange]> {
        match self {
            Self::Compared(changes) => Some(changes),
            Self::UnknownBefore | Self::UnknownAfter | Self::Unknown | Self::Unreadable => None,
        }
    }
}

/// Kernel releases that came and went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelChanges {
    /// In the second alone.
    pub added: Vec<String>,
    /// In the first alone.
    pub removed: Vec<String>,
    /// In both, with another kernel (`vmlinuz`) under the same release.
    pub changed: Vec<String>,
    /// In both.
    pub kept: Vec<String>,
}

impl KernelChanges {
    fn between(from: &Tree, to: &Tree) -> Self {
        let (olds, news) = (kernels(from), kernels(to));
        let list = |set: BTreeSet<&String>| -> Vec<String> { set.into_iter().cloned().collect() };
        let kept = list(olds.intersection(&news).collect());
        let differs = |release: &&String| {
            let [old, new] = [from, to].map(|tree| {
                let kernel = tree.lookup(&path(&[layout::MODULES, release, layout::VMLINUZ]));
                kernel.map(|id| &tree.node(id).content)
            });
            match (old, new) {
                (Some(Content::File(old)), Some(Content::File(new))) => old != new,
                _ => false, // as any other path
            }
        };
        Self {
            added: list(news.difference(&olds).collect()),
            removed: list(olds.difference(&news).collect()),
            changed: kept.iter().filter(differs).cloned().collect(),
            kept,
        }
    }

    /// Returns whether both have the same kernels.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// Paths of one kind that came, went and changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathChanges {
    /// Of the kind in the second alone.
    pub added: Vec<String>,
    /// Of the kind in the first alone.
    pub removed: Vec<String>,
    /// Of the kind in both, and different.
    pub changed: Vec<String>,
}

impl PathChanges {
    fn note(&mut self, path: &TreePath, before: bool, after: bool) {
        let list = match (before, after) {
            (false, false) => return,
            (false, true) => &mut self.added,
            (true, false) => &mut self.removed,
            (true, true) => &mut self.changed,
        };
        list.push(path.to_string());
    }

    /// Returns whether nothing of the kind changed.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// Numbers of paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathCounts {
    /// Paths that are new.
    pub added: u64,
    /// Paths that are gone.
    pub removed: u64,
    /// Paths that differ.
    pub changed: u64,
}

/// Why images could not be summed up.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// The database of packages in a directory could not be read.
    #[error("cannot read {path}")]
    ReadFile {
        /// Its path in the directory.
        path: TreePath,
        /// What the system said.
        source: io::Error,
    },
    /// The database of packages could not be read.
    #[error("cannot read {path}")]
    Read {
        /// Its path in the image.
        path: TreePath,
        /// Why not.
        source: Box<ReadStoreError>,
    },
    /// The database of packages is not what it should be.
    #[error("{path} is no database of packages")]
    Parse {
        /// Its path in the image.
        path: TreePath,
        /// What is wrong with it.
        source: ParsePackagesError,
    },
}

/// Sums up what differs between two trees whose contents are in the store.
pub fn summary(store: &Store, from: &Tree, to: &Tree) -> Result<Summary, SummaryError> {
    Ok(summarize(
        &super::diff(from, to),
        (from, packages(store, from)?),
        (to, packages(store, to)?),
    ))
}

/// Sums up the changes between two trees whose packages are known, as far as they can be.
pub fn summarize(
    changes: &[Change],
    (from, from_packages): (&Tree, Option<Vec<Package>>),
    (to, to_packages): (&Tree, Option<Vec<Package>>),
) -> Summary {
    let packages = match (from_packages, to_packages) {
        (Some(from), Some(to)) => Packages::Compared(dpkg::changes(&from, &to)),
        (None, Some(_)) => Packages::UnknownBefore,
        (Some(_), None) => Packages::UnknownAfter,
        (None, None) => Packages::Unknown,
    };
    let mut paths = PathCounts::default();
    let mut units = PathChanges::default();
    let mut setuid = PathChanges::default();
    let mut capabilities = PathChanges::default();
    for change in changes {
        match &change.kind {
            ChangeKind::Added => paths.added += 1,
            ChangeKind::Removed => paths.removed += 1,
            ChangeKind::Changed(_) => paths.changed += 1,
        }
        // What was touched and is the same is no news of a unit or a privilege.
        if matches!(&change.kind, ChangeKind::Changed(aspects) if aspects.iter().all(|it| *it == Aspect::Time))
        {
            continue;
        }
        let [before, after] = [from, to].map(|tree| {
            let node = tree.lookup(&change.path).map(|id| tree.node(id));
            node.filter(|node| matches!(node.content, Content::File(_) | Content::Symlink(_)))
        });
        if before.is_none() && after.is_none() {
            continue;
        }
        let path = &change.path;
        if UNITS.iter().any(|directory| is_below(path, directory)) {
            units.note(path, before.is_some(), after.is_some());
        }
        let is_setuid = |node: Option<&Node>| {
            node.is_some_and(|node| {
                matches!(node.content, Content::File(_)) && node.metadata.mode & 0o6000 != 0
            })
        };
        setuid.note(path, is_setuid(before), is_setuid(after));
        let is_capable = |node: Option<&Node>| {
            node.is_some_and(|node| node.metadata.xattrs.contains_key(CAPABILITY))
        };
        capabilities.note(path, is_capable(before), is_capable(after));
    }
    Summary {
        packages,
        kernels: KernelChanges::between(from, to),
        units,
        setuid,
        capabilities,
        bytes: (from.file_bytes(), to.file_bytes()),
        new_bytes: new_bytes(from, to),
        paths,
    }
}

/// Reads the packages of an image, or returns `None` where it has no database that we know.
pub fn packages(store: &Store, tree: &Tree) -> Result<Option<Vec<Package>>, SummaryError> {
    let read = |path, content: &FileContent, max| {
        store
            .read_small(content, max)
            .map_err(|source| SummaryError::Read {
                path,
                source: Box::new(source),
            })
    };
    Databases::new(tree, &read).packages()
}

/// Reads the packages of a directory that was scanned into `tree`.
pub fn packages_of_directory(
    directory: &Path,
    tree: &Tree,
) -> Result<Option<Vec<Package>>, SummaryError> {
    let read = |path: TreePath, _: &FileContent, max| {
        let read = || -> io::Result<Vec<u8>> {
            let Some((parents, name)) = path.split_last() else {
                return Ok(Vec::new()); // the root is no file
            };
            let root = files::open_root(directory)?;
            let parent = files::open_beneath(&root, parents.iter().map(Name::as_os_str))?;
            files::read_file(&parent, name.as_os_str(), max)
        };
        read().map_err(|source| SummaryError::ReadFile { path, source })
    };
    Databases::new(tree, &read).packages()
}

/// Reads a content of a tree that has at most so many bytes.
type Read<'a> = dyn Fn(TreePath, &FileContent, u64) -> Result<Vec<u8>, SummaryError> + 'a;

/// The databases of packages in a tree.
struct Databases<'a> {
    tree: &'a Tree,
    read: &'a Read<'a>,
    /// How many bytes may still be read: a stranger's tree may have any number of descriptions.
    left: u64,
}

impl<'a> Databases<'a> {
    fn new(tree: &'a Tree, read: &'a Read<'a>) -> Self {
        Self {
            tree,
            read,
            left: STATUS_MAX,
        }
    }

    /// Reads the first database of each kind: a system may have several.
    fn packages(mut self) -> Result<Option<Vec<Package>>, SummaryError> {
        let mut all: Option<Vec<Package>> = None;
        let mut add = |packages: Option<Vec<Package>>| {
            let is_there = packages.is_some();
            if let Some(packages) = packages {
                all.get_or_insert_default().extend(packages);
            }
            is_there
        };
        for directory in DPKG {
            if add(self.dpkg(directory)?) {
                break;
            }
        }
        for directory in APK {
            let installed = path(&[directory, "installed"]);
            if add(self.parsed(installed, dpkg::parse_apk_installed)?) {
                break;
            }
        }
        for directory in RPM {
            if add(self.rpm(directory)?) {
                break;
            }
        }
        Ok(all)
    }

    /// Reads dpkg's list, and the descriptions beside it that images without a dpkg of their own have.
    fn dpkg(&mut self, directory: &str) -> Result<Option<Vec<Package>>, SummaryError> {
        let status = path(&[directory, "status"]);
        let mut all = self.parsed(status, dpkg::parse_dpkg_status)?;
        let parts = path(&[directory, "status.d"]);
        let tree = self.tree;
        let entries = tree.lookup(&parts).and_then(|id| tree.entries(id));
        for name in entries.into_iter().flatten().map(|(name, _)| name) {
            if name.as_bytes().ends_with(b".md5sums") {
                continue; // the package's files, not the package
            }
            if let Some(packages) = self.parsed(parts.join(name), dpkg::parse_dpkg_control)? {
                all.get_or_insert_default().extend(packages);
            }
        }
        if let Some(all) = &mut all {
            all.sort();
            all.dedup();
        }
        Ok(all)
    }

    /// Reads rpm's database in whichever format it is.
    fn rpm(&mut self, directory: &str) -> Result<Option<Vec<Package>>, SummaryError> {
        let database = path(&[directory, "rpmdb.sqlite"]);
        if let Some(bytes) = self.file(&database)? {
            // What a change left beside it belongs to it.
            let log = self.file(&path(&[directory, "rpmdb.sqlite-wal"]))?;
            let journal = self.file(&path(&[directory, "rpmdb.sqlite-journal"]))?;
            let [log, journal] = [log, journal].map(Option::unwrap_or_default);
            return match parse_rpm_sqlite(&bytes, &log, &journal) {
                Ok(packages) => Ok(Some(packages)),
                Err(source) => Err(SummaryError::Parse {
                    path: database,
                    source,
                }),
            };
        }
        if let Some(packages) = self.parsed(path(&[directory, "Packages.db"]), parse_rpm_ndb)? {
            return Ok(Some(packages));
        }
        self.parsed(path(&[directory, "Packages"]), parse_rpm_bdb)
    }

    /// Reads a file with `parse`; `None` where it is not there.
    fn parsed(
        &mut self,
        path: TreePath,
        parse: fn(&[u8]) -> Result<Vec<Package>, ParsePackagesError>,
    ) -> Result<Option<Vec<Package>>, SummaryError> {
        match self.file(&path)?.map(|bytes| parse(&bytes)) {
            None => Ok(None),
            Some(Ok(packages)) => Ok(Some(packages)),
            Some(Err(source)) => Err(SummaryError::Parse { path, source }),
        }
    }

    /// Reads a file; `None` where it is not there, or is no file.
    fn file(&mut self, path: &TreePath) -> Result<Option<Vec<u8>>, SummaryError> {
        let node = self.tree.lookup(path).map(|id| self.tree.node(id));
        let Some(Content::File(content)) = node.map(|node| &node.content) else {
            return Ok(None);
        };
        let bytes = (self.read)(path.clone(), content, self.left)?;
        self.left = self.left.saturating_sub(bytes.len() as u64);
        Ok(Some(bytes))
    }
}

/// Puts one of the paths above together; they are all good ones.
fn path(parts: &[&str]) -> TreePath {
    let names = parts.iter().flat_map(|part| part.split('/'));
    names
        .filter_map(|name| Name::try_from(name).ok())
        .fold(TreePath::root(), |path, name| path.join(&name))
}

/// Lists the kernel releases of an image: the directories below `/usr/lib/modules` with a kernel or a
/// list of modules in them.
pub fn kernels(tree: &Tree) -> BTreeSet<String> {
    let modules = TreePath::try_from(layout::MODULES)
        .ok()
        .and_then(|path| tree.lookup(&path));
    let releases = modules
        .and_then(|id| tree.entries(id))
        .into_iter()
        .flatten();
    releases
        .filter(|(_, id)| {
            [layout::VMLINUZ.as_bytes(), b"modules.dep", b"kernel"]
                .into_iter()
                .any(|name| tree.child(**id, name).is_some())
        })
        .map(|(name, _)| name.to_string())
        .collect()
}

/// Returns whether a path lies below a directory.
fn is_below(path: &TreePath, directory: &[&str]) -> bool {
    let names = path.components();
    let same = |(name, wanted): (&Name, &&str)| name.as_bytes() == wanted.as_bytes();
    names.len() > directory.len() && names.iter().zip(directory).all(same)
}

/// Returns the bytes of contents that the second tree has and the first has not, each counted once: those
/// of objects, and those that images hold themselves.
pub fn new_bytes(from: &Tree, to: &Tree) -> u64 {
    let mut known: HashSet<&FileContent> = contents(from).collect();
    let new = contents(to).filter(|content| known.insert(content));
    new.fold(0, |sum: u64, content| sum.saturating_add(content.size()))
}

/// The contents of all files.
fn contents(tree: &Tree) -> impl Iterator<Item = &FileContent> {
    tree.named_nodes().filter_map(|node| match &node.content {
        Content::File(content) => Some(content),
        _ => None,
    })
}
