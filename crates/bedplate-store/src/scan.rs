//! A directory becomes a tree: every attribute of everything below it, contents into a sink.
//!
//! ```text
//! directory job: list → sub-directories (jobs) · files (jobs, in batches) · links, devices (at once)
//! file job:      open → fstat → xattrs → ContentSink
//!                all of them on all cores; the tree is put together at the end, in the order of names
//! ```
//!
//! Invariants: no link is followed, no name is resolved twice; two names of one inode are one node;
//! everything below is taken, other mounted file systems too (a look may leave some out); memory grows with the number of files,
//! never with their size.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bedplate_model::name::NameError;
use bedplate_model::tree::TreeError;
use bedplate_model::{
    Algorithm, Content, FileContent, Metadata, Name, Node, NodeId, Rdev, Timestamp, Tree,
};
use bedplate_sys::{files, xattr};
use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;

use crate::extents;
use crate::look::{Unsteady, Verdict, Watch};
use crate::transaction::PutError;
use crate::work::{self, Queue};

/// How many files one job takes: enough that the queue costs nothing, few enough to share the work.
const BATCH: usize = 32;

/// Where the contents of scanned files go. Called from many threads at once.
pub trait ContentSink: Sync {
    /// Takes the content of a file that is open at its beginning, and has `size` bytes.
    fn put_file(&self, file: &File, size: u64) -> Result<FileContent, PutError>;
}

/// Who wants to know how far a scan is. Called from many threads at once.
pub trait ScanObserver: Sync {
    /// One more entry was taken; for a file, with its length.
    fn taken(&self, bytes: u64);
}

/// Nobody who wants to know.
impl ScanObserver for () {
    fn taken(&self, _: u64) {}
}

/// Computes digests, and stores nothing.
#[derive(Clone, Copy, Debug)]
pub struct DigestOnly(pub Algorithm);

impl ContentSink for DigestOnly {
    fn put_file(&self, file: &File, size: u64) -> Result<FileContent, PutError> {
        let wrong = |found| PutError::WrongSize {
            wanted: size,
            found,
        };
        if size <= bedplate_model::tree::INLINE_MAX as u64 {
            let mut bytes = Vec::new();
            let mut limited = io::Read::take(file, size + 1);
            io::Read::read_to_end(&mut limited, &mut bytes).map_err(PutError::Read)?;
            if bytes.len() as u64 != size {
                return Err(wrong(bytes.len() as u64));
            }
            return Ok(FileContent::Inline(bytes.into()));
        }
        let (id, found) = extents::digest(self.0, file).map_err(PutError::Read)?;
        if found != size {
            return Err(wrong(found));
        }
        Ok(FileContent::Object { id, size })
    }
}

/// Why a directory could not be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// Something could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it was when its directory was listed, or its length changed while it was read.
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    /// The content could not be stored.
    #[error("cannot store {}", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: PutError,
    },
    /// A name that no tree can hold.
    #[error("cannot take the name of {}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: NameError,
    },
    /// The tree refused an entry.
    #[error("cannot take {}", path.display())]
    Tree {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TreeError,
    },
}

impl ScanError {
    /// Returns what did not hold still while it was read, where that is all that is wrong.
    pub(crate) fn unsteady(&self) -> Option<(&Path, Unsteady)> {
        match self {
            Self::Changed(path) => Some((path, Unsteady::Changed)),
            Self::Read { path, source } => match Errno::from_io_error(source)? {
                Errno::NOENT | Errno::STALE => Some((path, Unsteady::Vanished)),
                // A link, or no directory any more.
                Errno::LOOP | Errno::NOTDIR => Some((path, Unsteady::Changed)),
                _ => None,
            },
            Self::Store { .. } | Self::Name { .. } | Self::Tree { .. } => None,
        }
    }
}

/// Scans a directory into a tree; contents of files go to `contents`.
pub fn scan(
    path: &Path,
    contents: &dyn ContentSink,
    observer: &dyn ScanObserver,
) -> Result<Tree, ScanError> {
    scan_watched(path, contents, observer, None)
}

/// As [`scan`]; a watch decides what is taken, and lets pass what does not hold still.
pub(crate) fn scan_watched(
    path: &Path,
    contents: &dyn ContentSink,
    observer: &dyn ScanObserver,
    watch: Option<&Watch>,
) -> Result<Tree, ScanError> {
    let read = |source| ScanError::Read {
        path: path.to_owned(),
        source,
    };
    let root = files::open_root(path).map_err(read)?;
    let metadata = metadata_of_file(
        &root,
        &rustix::fs::fstat(&root).map_err(|e| read(e.into()))?,
    )
    .map_err(read)?;
    let scan = Scan {
        contents,
        observer,
        watch,
        found: Mutex::new(Found {
            directories: vec![Vec::new()],
            ..Found::default()
        }),
    };
    let first = Place {
        path: path.to_owned(),
        handle: root,
        number: 0,
    };
    // The root's own entries first; everything else are jobs that this one adds.
    work::run(vec![Job::Root(first)], |job, queue| match job {
        Job::Root(place) => scan.directory(place, queue),
        Job::Directory(parent, name) => match scan.steady(scan.enter(&parent, &name))? {
            Some(place) => scan.directory(place, queue),
            None => Ok(()),
        },
        Job::Files(place, names) => scan.files(&place, names),
    })?;
    let found = scan
        .found
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Assembly::new(found, watch).tree(metadata, path)
}

/// A directory that is being scanned.
struct Place {
    /// For messages.
    path: PathBuf,
    handle: OwnedFd,
    /// Its position in [`Found::directories`].
    number: usize,
}

/// Jobs hold their directory open; a directory is opened when its turn comes, so that few are open
/// at once however many wait.
enum Job {
    Root(Place),
    /// A directory in another one.
    Directory(Arc<Place>, OsString),
    /// Files of one directory.
    Files(Arc<Place>, Vec<OsString>),
}

struct Scan<'a> {
    contents: &'a dyn ContentSink,
    observer: &'a dyn ScanObserver,
    watch: Option<&'a Watch>,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    /// The entries of each directory, in the order they were met.
    directories: Vec<Vec<(Name, Entry)>>,
    /// Nodes with several names, by where their first name puts them here.
    linked: Vec<Option<Node>>,
    /// Device and inode of those.
    inodes: HashMap<(u64, u64), usize>,
}

enum Entry {
    /// A node with one name.
    Node(Node),
    /// A directory, and its position in [`Found::directories`].
    Directory(Metadata, usize),
    /// One of several names: the position in [`Found::linked`].
    Linked(usize),
}

impl Scan<'_> {
    /// Takes the entries of a directory; its files and directories become jobs.
    fn directory(&self, place: Place, queue: &Queue<Job, ScanError>) -> Result<(), ScanError> {
        let entries = files::list(&place.handle).map_err(|source| ScanError::Read {
            path: place.path.clone(),
            source,
        });
        let Some(entries) = self.steady(entries)? else {
            return Ok(());
        };
        let mut directories = Vec::new();
        let mut regular = Vec::new();
        for entry in entries {
            let judged = self.judge(&place, &entry.name, entry.kind);
            let Some((kind, verdict)) = self.steady(judged)? else {
                continue;
            };
            match (kind, verdict) {
                (FileType::Directory, Verdict::LeaveOut) => {
                    self.steady(self.emptied(&place, &entry.name))?;
                }
                (_, Verdict::LeaveOut) => {}
                (FileType::RegularFile, Verdict::Take) => regular.push(entry.name),
                (FileType::Directory, Verdict::Take) => directories.push(entry.name),
                (_, Verdict::Take) => {
                    self.steady(self.special(&place, &entry.name))?;
                }
            }
        }
        // A fixed order makes neighbours on the disk neighbours in time.
        regular.sort_unstable();
        let place = Arc::new(place);
        let below = directories.into_iter();
        queue.add(below.map(|name| Job::Directory(Arc::clone(&place), name)));
        let mut regular = regular.into_iter().peekable();
        while regular.peek().is_some() {
            let batch = regular.by_ref().take(BATCH).collect();
            queue.add([Job::Files(Arc::clone(&place), batch)]);
        }
        Ok(())
    }

    /// Lets an error pass that says that something did not hold still, where this is a look.
    fn steady<T>(&self, outcome: Result<T, ScanError>) -> Result<Option<T>, ScanError> {
        match (outcome, self.watch) {
            (Err(error), Some(watch)) => watch.note(error).map(|()| None),
            (outcome, _) => outcome.map(Some),
        }
    }

    /// Finds out what an entry is, and whether it is taken.
    fn judge(
        &self,
        place: &Place,
        name: &OsStr,
        kind: Option<FileType>,
    ) -> Result<(FileType, Verdict), ScanError> {
        let kind = match kind {
            Some(kind) => kind,
            None => FileType::from_raw_mode(stat(place, name)?.st_mode),
        };
        let Some(watch) = self.watch else {
            return Ok((kind, Verdict::Take));
        };
        let directory = (place.path.as_path(), &place.handle);
        let verdict = watch.verdict(directory, name, kind == FileType::Directory);
        let verdict = verdict.map_err(|source| ScanError::Read {
            path: place.path.join(name),
            source,
        })?;
        Ok((kind, verdict))
    }

    /// Takes a directory without what is in it; it is not even opened.
    fn emptied(&self, place: &Place, name: &OsStr) -> Result<(), ScanError> {
        let metadata = metadata(&stat(place, name)?, bedplate_model::Xattrs::default());
        let entry = name_of(&place.path.join(name), name)?;
        let node = Node::new(metadata, Content::empty_directory());
        self.found().directories[place.number].push((entry, Entry::Node(node)));
        Ok(())
    }

    /// Opens a directory and notes it as an entry of its parent.
    fn enter(&self, parent: &Place, name: &OsStr) -> Result<Place, ScanError> {
        let path = parent.path.join(name);
        let open = || -> io::Result<(OwnedFd, Metadata)> {
            let handle = files::open_directory(&parent.handle, name)?;
            let metadata = metadata_of_file(&handle, &rustix::fs::fstat(&handle)?)?;
            Ok((handle, metadata))
        };
        let (handle, metadata) = open().map_err(|source| ScanError::Read {
            path: path.clone(),
            source,
        })?;
        let entry = name_of(&path, name)?;
        self.observer.taken(0);
        let mut found = self.found();
        let number = found.directories.len();
        found.directories.push(Vec::new());
        found.directories[parent.number].push((entry, Entry::Directory(metadata, number)));
        drop(found);
        Ok(Place {
            path,
            handle,
            number,
        })
    }

    /// Takes a link, device, pipe or socket.
    fn special(&self, place: &Place, name: &OsStr) -> Result<(), ScanError> {
        let path = || place.path.join(name);
        let read = |source| ScanError::Read {
            path: path(),
            source,
        };
        let stat = stat(place, name)?;
        let content = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&place.handle, name, Vec::new())
                    .map_err(|error| read(error.into()))?;
                Content::Symlink(target.into_bytes().into())
            }
            FileType::CharacterDevice => Content::CharacterDevice(rdev(&stat)),
            FileType::BlockDevice => Content::BlockDevice(rdev(&stat)),
            FileType::Fifo => Content::Fifo,
            FileType::Socket => Content::Socket,
            FileType::RegularFile | FileType::Directory | FileType::Unknown => {
                return Err(ScanError::Changed(path()));
            }
        };
        let xattrs = xattr::of_entry(&place.handle, name).map_err(read)?;
        let node = Node::new(metadata(&stat, xattrs), content);
        let entry = name_of(&path(), name)?;
        self.observer.taken(0);
        let mut found = self.found();
        if stat.st_nlink == 1 {
            found.directories[place.number].push((entry, Entry::Node(node)));
        } else {
            let (number, first) = found.linked_number(&stat);
            if first {
                found.linked[number] = Some(node);
            }
            found.directories[place.number].push((entry, Entry::Linked(number)));
        }
        Ok(())
    }

    fn files(&self, place: &Place, names: Vec<OsString>) -> Result<(), ScanError> {
        let mut taken = Vec::with_capacity(names.len());
        for name in names {
            let Some(entry) = self.steady(self.file(place, &name))? else {
                continue;
            };
            taken.push((name_of(&place.path.join(&name), &name)?, entry));
        }
        self.found().directories[place.number].extend(taken);
        Ok(())
    }

    fn file(&self, place: &Place, name: &OsStr) -> Result<Entry, ScanError> {
        let path = || place.path.join(name);
        let read = |source: io::Error| ScanError::Read {
            path: path(),
            source,
        };
        let file = files::open_file(&place.handle, name).map_err(read)?;
        let stat = rustix::fs::fstat(&file).map_err(|error| read(error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(ScanError::Changed(path()));
        }
        let mut linked = None;
        if stat.st_nlink > 1 {
            let (number, first) = self.found().linked_number(&stat);
            if !first {
                self.observer.taken(0);
                return Ok(Entry::Linked(number)); // whoever met the first name takes the content
            }
            linked = Some(number);
        }
        let metadata = metadata_of_file(&file, &stat).map_err(read)?;
        let size = stat.st_size as u64;
        let content = self
            .contents
            .put_file(&file, size)
            .map_err(|source| match source {
                PutError::WrongSize { .. } => ScanError::Changed(path()),
                source => ScanError::Store {
                    path: path(),
                    source,
                },
            })?;
        if self.watch.is_some() {
            // Bytes that were written over while they were read are of no one time.
            let after = rustix::fs::fstat(&file).map_err(|error| read(error.into()))?;
            let times = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
            if times(&stat) != times(&after) || stat.st_size != after.st_size {
                return Err(ScanError::Changed(path()));
            }
        }
        self.observer.taken(size);
        let node = Node::new(metadata, Content::File(content));
        Ok(match linked {
            None => Entry::Node(node),
            Some(number) => {
                self.found().linked[number] = Some(node);
                Entry::Linked(number)
            }
        })
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Found {
    /// Returns the number of an inode with several names, and whether this is the first of them.
    fn linked_number(&mut self, stat: &Stat) -> (usize, bool) {
        let next = self.linked.len();
        let number = *self
            .inodes
            .entry((stat.st_dev, stat.st_ino))
            .or_insert(next);
        if number == next {
            self.linked.push(None);
        }
        (number, number == next)
    }
}

/// Puts what was found together, in the order of names: equal directories give equal arenas.
struct Assembly<'a> {
    watch: Option<&'a Watch>,
    directories: Vec<Vec<(Name, Entry)>>,
    linked: Vec<Option<Node>>,
    /// The node of each entry of `linked`, once it has its first name.
    placed: Vec<Option<NodeId>>,
}

impl<'a> Assembly<'a> {
    fn new(found: Found, watch: Option<&'a Watch>) -> Self {
        Self {
            watch,
            placed: vec![None; found.linked.len()],
            directories: found.directories,
            linked: found.linked,
        }
    }

    fn tree(mut self, root: Metadata, path: &Path) -> Result<Tree, ScanError> {
        let mut tree = Tree::new(root);
        let mut pending = vec![(Tree::ROOT, 0, path.to_owned())];
        while let Some((parent, number, path)) = pending.pop() {
            let mut entries = std::mem::take(&mut self.directories[number]);
            entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
            for (name, entry) in entries {
                let refused = |name: &Name, source| ScanError::Tree {
                    path: path.join(name.as_os_str()),
                    source,
                };
                match entry {
                    Entry::Node(node) => {
                        tree.insert(parent, name.clone(), node)
                            .map_err(|error| refused(&name, error))?;
                    }
                    Entry::Directory(metadata, number) => {
                        let node = Node::new(metadata, Content::empty_directory());
                        let id = tree
                            .insert(parent, name.clone(), node)
                            .map_err(|error| refused(&name, error))?;
                        pending.push((id, number, path.join(name.as_os_str())));
                    }
                    Entry::Linked(number) => {
                        match (self.placed[number], self.linked[number].take()) {
                            (Some(id), _) => tree
                                .link(parent, name.clone(), id)
                                .map_err(|error| refused(&name, error))?,
                            (None, Some(node)) => {
                                let id = tree
                                    .insert(parent, name.clone(), node)
                                    .map_err(|error| refused(&name, error))?;
                                self.placed[number] = Some(id);
                            }
                            // Whoever met the first name could not take it.
                            (None, None) => {
                                let changed = ScanError::Changed(path.join(name.as_os_str()));
                                match self.watch {
                                    Some(watch) => watch.note(changed)?,
                                    None => return Err(changed),
                                }
                            }
                        }
                    }
                }
            }
        }
        Ok(tree)
    }
}

fn stat(place: &Place, name: &OsStr) -> Result<Stat, ScanError> {
    rustix::fs::statat(&place.handle, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| {
        ScanError::Read {
            path: place.path.join(name),
            source: error.into(),
        }
    })
}

fn name_of(path: &Path, name: &OsStr) -> Result<Name, ScanError> {
    Name::new(name.as_bytes()).map_err(|source| ScanError::Name {
        path: path.to_owned(),
        source,
    })
}

fn metadata_of_file(file: impl std::os::fd::AsFd, stat: &Stat) -> io::Result<Metadata> {
    Ok(metadata(stat, xattr::of_file(file)?))
}

fn metadata(stat: &Stat, xattrs: bedplate_model::Xattrs) -> Metadata {
    Metadata {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Timestamp {
            seconds: stat.st_mtime,
            nanoseconds: stat.st_mtime_nsec as u32,
        },
        xattrs,
    }
}

fn rdev(stat: &Stat) -> Rdev {
    Rdev {
        major: rustix::fs::major(stat.st_rdev),
        minor: rustix::fs::minor(stat.st_rdev),
    }
}
