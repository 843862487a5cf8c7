//! A tree becomes a directory: every attribute exactly, contents checked while they are copied.
//!
//! ```text
//! 1  directories, files, links, devices     on all cores, each below its parent's handle
//! 2  further names of one node, then the attributes of directories, children before parents
//! ```
//!
//! Invariants: nothing is written outside the destination, whatever links the tree has; a directory's
//! time is set after the last change below it; what a failed checkout made is removed again; what the
//! system makes another time or mode of is told.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bedplate_model::{Content, FileContent, Metadata, Name, NodeId, Timestamp, Tree};
use bedplate_sys::{files, xattr};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::buffers::Buffers;
use crate::store::{ReadStoreError, Store};
use crate::work::{self, Queue};

/// How a tree is checked out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckoutOptions {
    /// Leave out what only root may set (owners, devices, some extended attributes) instead of
    /// failing; [`CheckedOut::left_out`] counts it. A file without its owner loses its setuid and
    /// setgid bits, too: they would lend the rights of whoever checks out.
    pub unprivileged: bool,
}

/// What a checkout did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckedOut {
    /// How many names were made, the top one included.
    pub entries: u64,
    /// The bytes of the files.
    pub bytes: u64,
    /// How many owners, devices, setuid bits and extended attributes were left out.
    pub left_out: u64,
    /// What has another time than the tree says, because the file system has no room for that (ext4 ends
    /// in 2446, or in 2038).
    pub other_times: Differing<Timestamp>,
    /// What has another mode than the tree says: Linux lets no access list contradict the mode, and has one
    /// mode for symbolic links.
    pub other_modes: Differing<u16>,
}

/// Files that have another attribute than the tree says, because the system can hold no such one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differing<T> {
    /// How many there are.
    pub count: u64,
    /// One of them: what it should have, and what it has.
    pub example: Option<(PathBuf, T, T)>,
}

impl<T> Default for Differing<T> {
    fn default() -> Self {
        Self {
            count: 0,
            example: None,
        }
    }
}

impl<T> Differing<T> {
    fn add(found: &Mutex<Self>, path: PathBuf, wanted: T, has: T) {
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        found.count += 1;
        found.example.get_or_insert((path, wanted, has));
    }

    fn of(found: Mutex<Self>) -> Self {
        found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a tree could not be checked out.
#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    /// The destination has something in it.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// The destination could not be made or listed.
    #[error("cannot use {} as the destination", path.display())]
    Destination {
        /// The destination.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something could not be made.
    #[error("cannot make {}", path.display())]
    Make {
        /// What was made.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An attribute could not be set.
    #[error("cannot set the {attribute} of {}", path.display())]
    Attribute {
        /// What it belongs to.
        path: PathBuf,
        /// Which one.
        attribute: String,
        /// What the system said.
        source: io::Error,
    },
    /// An owner that the system takes for "leave it as it is": the file would stay that of whoever checks out.
    #[error("{} has the {field} 4294967295, which is nobody's", path.display())]
    Nobody {
        /// What has it.
        path: PathBuf,
        /// Which number: uid or gid.
        field: &'static str,
    },
    /// A content could not be opened.
    #[error("cannot get the content of {}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Box<ReadStoreError>,
    },
    /// A content could not be copied, or is damaged.
    #[error("cannot copy the content of {}", path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// What the system said, or what is wrong with the content.
        source: io::Error,
    },
}

impl CheckoutError {
    /// Whether the same checkout may succeed for root.
    pub fn needs_root(&self) -> bool {
        match self {
            Self::Make { source, .. } | Self::Attribute { source, .. } => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            Self::NotEmpty(_)
            | Self::Nobody { .. }
            | Self::Destination { .. }
            | Self::Content { .. }
            | Self::Copy { .. } => false,
        }
    }
}

/// Makes a directory that is the tree; `destination` must be empty, or not there.
pub fn checkout(
    store: &Store,
    tree: &Tree,
    destination: &Path,
    options: CheckoutOptions,
) -> Result<CheckedOut, CheckoutError> {
    let (root, made) = open_destination(destination)?;
    let outcome = fill(store, tree, destination, &root, options);
    if outcome.is_err() {
        // What cannot be removed stays: the error that is on its way says more than one about that.
        let _ = clear(&root);
        if made {
            let _ = fs::remove_dir(destination);
        }
    }
    outcome
}

/// Makes everything below the destination, and sets its own attributes.
fn fill(
    store: &Store,
    tree: &Tree,
    destination: &Path,
    root: &OwnedFd,
    options: CheckoutOptions,
) -> Result<CheckedOut, CheckoutError> {
    let mut checkout = Checkout {
        store,
        tree,
        destination,
        options,
        first_names: first_names(tree),
        buffers: Buffers::default(),
        entries: AtomicU64::new(1),
        bytes: AtomicU64::new(0),
        left_out: AtomicU64::new(0),
        other_times: Mutex::default(),
        other_modes: Mutex::default(),
    };
    let top = Place {
        path: destination.to_owned(),
        handle: files::open_beneath(root, []).map_err(|source| CheckoutError::Destination {
            path: destination.to_owned(),
            source,
        })?,
        node: Tree::ROOT,
    };
    work::run(vec![Job::Root(top)], |job, queue| match job {
        Job::Root(place) => {
            checkout.fill(place, queue);
            Ok(())
        }
        Job::Directory(parent, name, node) => {
            checkout.fill(checkout.make_directory(&parent, &name, node)?, queue);
            Ok(())
        }
        Job::Others(place, entries) => entries
            .into_iter()
            .try_for_each(|(name, node)| checkout.make(&place, &name, node)),
    })?;
    checkout.finish(root)?;
    Ok(CheckedOut {
        entries: *checkout.entries.get_mut(),
        bytes: *checkout.bytes.get_mut(),
        left_out: *checkout.left_out.get_mut(),
        other_times: Differing::of(checkout.other_times),
        other_modes: Differing::of(checkout.other_modes),
    })
}

/// Times that every file system has room for: those of 32 bits, from 1970 on.
const EVERYWHERE: std::ops::RangeInclusive<i64> = 0..=i32::MAX as i64;
/// How many files one job takes.
const BATCH: usize = 32;
/// The list that decides about access: setting it changes the mode, and setting the mode changes it.
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// The list that what is made in a directory begins with.
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

struct Checkout<'a> {
    store: &'a Store,
    tree: &'a Tree,
    destination: &'a Path,
    options: CheckoutOptions,
    /// For each node with several names, the one that it is made under.
    first_names: HashMap<NodeId, FirstName>,
    buffers: Buffers,
    entries: AtomicU64,
    bytes: AtomicU64,
    left_out: AtomicU64,
    other_times: Mutex<Differing<Timestamp>>,
    other_modes: Mutex<Differing<u16>>,
}

struct FirstName {
    directory: NodeId,
    components: Vec<Name>,
}

/// A directory of the destination.
struct Place {
    /// For messages.
    path: PathBuf,
    handle: OwnedFd,
    node: NodeId,
}

enum Job {
    Root(Place),
    Directory(Arc<Place>, Name, NodeId),
    /// What is no directory, of one directory.
    Others(Arc<Place>, Vec<(Name, NodeId)>),
}

impl Checkout<'_> {
    /// Adds jobs for everything in a directory.
    fn fill(&self, place: Place, queue: &Queue<Job, CheckoutError>) {
        let place = Arc::new(place);
        let mut directories = Vec::new();
        let mut others = Vec::new();
        for (name, node) in self.tree.entries(place.node).into_iter().flatten() {
            if self.tree.entries(*node).is_some() {
                directories.push(Job::Directory(Arc::clone(&place), name.clone(), *node));
            } else if self.is_first(*node, place.node, name) {
                others.push((name.clone(), *node));
            }
        }
        queue.add(directories);
        let mut others = others.into_iter().peekable();
        while others.peek().is_some() {
            let batch = others.by_ref().take(BATCH).collect();
            queue.add([Job::Others(Arc::clone(&place), batch)]);
        }
    }

    /// Returns whether a node is made under this name; its other names are links.
    fn is_first(&self, node: NodeId, directory: NodeId, name: &Name) -> bool {
        self.first_names.get(&node).is_none_or(|first| {
            first.directory == directory && first.components.last() == Some(name)
        })
    }

    fn make_directory(
        &self,
        parent: &Place,
        name: &Name,
        node: NodeId,
    ) -> Result<Place, CheckoutError> {
        let path = parent.path.join(name.as_os_str());
        let make = || -> io::Result<OwnedFd> {
            let mode = Mode::from_raw_mode(0o700);
            rustix::fs::mkdirat(&parent.handle, name.as_os_str(), mode)?;
            files::open_directory(&parent.handle, name.as_os_str())
        };
        let handle = make().map_err(|source| CheckoutError::Make {
            path: path.clone(),
            source,
        })?;
        self.entries.fetch_add(1, Ordering::Relaxed);
        Ok(Place { path, handle, node })
    }

    /// Makes what is no directory.
    fn make(&self, place: &Place, name: &Name, id: NodeId) -> Result<(), CheckoutError> {
        let node = self.tree.node(id);
        let path = || place.path.join(name.as_os_str());
        let failed = |source: Errno| CheckoutError::Make {
            path: path(),
            source: source.into(),
        };
        let (directory, file_name) = (&place.handle, name.as_os_str());
        let device = |kind, rdev: Option<bedplate_model::Rdev>| {
            let device = rdev.map_or(0, |rdev| rustix::fs::makedev(rdev.major, rdev.minor));
            rustix::fs::mknodat(
                directory,
                file_name,
                kind,
                Mode::from_raw_mode(0o600),
                device,
            )
        };
        let made = match &node.content {
            // Directories are made as they are entered.
            Content::Directory(_) => return Ok(()),
            Content::File(content) => {
                self.entries.fetch_add(1, Ordering::Relaxed);
                return self.make_file(place, name, content, &node.metadata);
            }
            Content::Symlink(target) => {
                rustix::fs::symlinkat(OsStr::from_bytes(target), directory, file_name)
            }
            Content::BlockDevice(rdev) => device(FileType::BlockDevice, Some(*rdev)),
            Content::CharacterDevice(rdev) => device(FileType::CharacterDevice, Some(*rdev)),
            Content::Fifo => device(FileType::Fifo, None),
            Content::Socket => device(FileType::Socket, None),
        };
        match made {
            Err(Errno::PERM) if self.options.unprivileged => {
                self.left_out.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            other => other.map_err(failed)?,
        }
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.set_unopened(place, file_name, node)
    }

    fn make_file(
        &self,
        place: &Place,
        name: &Name,
        content: &FileContent,
        metadata: &Metadata,
    ) -> Result<(), CheckoutError> {
        let path = || place.path.join(name.as_os_str());
        let file =
            files::create_file(&place.handle, name.as_os_str(), 0o600).map_err(|source| {
                CheckoutError::Make {
                    path: path(),
                    source,
                }
            })?;
        let copied = |source| CheckoutError::Copy {
            path: path(),
            source,
        };
        match content {
            FileContent::Inline(bytes) => (&file).write_all(bytes).map_err(copied)?,
            FileContent::Object { id, size }
                if self.store.copy_sparse(*id, *size, &file).map_err(copied)? => {}
            FileContent::Object { .. } => {
                let mut reader =
                    self.store
                        .read_content(content)
                        .map_err(|source| CheckoutError::Content {
                            path: path(),
                            source: Box::new(source),
                        })?;
                let mut buffer = self.buffers.take();
                loop {
                    let count = reader.read(&mut buffer).map_err(copied)?;
                    if count == 0 {
                        break;
                    }
                    (&file).write_all(&buffer[..count]).map_err(copied)?;
                }
            }
        }
        self.bytes.fetch_add(content.size(), Ordering::Relaxed);
        self.set_opened(&file, metadata, &path)
    }

    /// Sets the attributes of an open file or directory, in the order in which none undoes another:
    /// changing the owner drops setuid and capabilities, and where access list and mode contradict each other,
    /// the list counts, which is what the kernel asks in a mounted image.
    fn set_opened(
        &self,
        file: impl AsFd,
        metadata: &Metadata,
        path: &dyn Fn() -> PathBuf,
    ) -> Result<(), CheckoutError> {
        let file = file.as_fd();
        let owned = self.set_owner(metadata, path, |uid, gid| {
            rustix::fs::fchown(file, Some(uid), Some(gid))
        })?;
        let set = |name: &[u8], value: &[u8]| {
            self.set_xattr(name, path, || xattr::set_on_file(file, name, value))
        };
        for (name, value) in before_mode(metadata) {
            set(name, value)?;
        }
        let wanted = self.mode(metadata, owned);
        rustix::fs::fchmod(file, wanted)
            .map_err(|error| attribute(path(), "mode", error.into()))?;
        if let Some(list) = metadata.xattrs.get(ACL_ACCESS) {
            set(ACL_ACCESS, list)?;
            self.check_mode(wanted, path, || rustix::fs::fstat(file))?;
        }
        rustix::fs::futimens(file, &times(metadata))
            .map_err(|error| attribute(path(), "time", error.into()))?;
        self.check_time(metadata, path, || rustix::fs::fstat(file))
    }

    /// Sets the attributes of a link, device, pipe or socket, which cannot be opened.
    fn set_unopened(
        &self,
        place: &Place,
        name: &OsStr,
        node: &bedplate_model::Node,
    ) -> Result<(), CheckoutError> {
        let path = || place.path.join(name);
        let (directory, metadata) = (&place.handle, &node.metadata);
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let owned = self.set_owner(metadata, &path, |uid, gid| {
            rustix::fs::chownat(directory, name, Some(uid), Some(gid), nofollow)
        })?;
        let set = |attribute: &[u8], value: &[u8]| {
            self.set_xattr(attribute, &path, || {
                xattr::set_on_entry(directory, name, attribute, value)
            })
        };
        for (attribute, value) in before_mode(metadata) {
            set(attribute, value)?;
        }
        let stat = || rustix::fs::statat(directory, name, nofollow);
        let wanted = self.mode(metadata, owned);
        // The permissions of a link mean nothing, and Linux does not let them be changed.
        let is_link = matches!(node.content, Content::Symlink(_));
        if !is_link {
            let change = || -> rustix::io::Result<()> {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let handle = rustix::fs::openat(directory, name, flags, Mode::empty())?;
                let itself = format!("/proc/self/fd/{}", handle.as_raw_fd());
                rustix::fs::chmod(itself, wanted)
            };
            change().map_err(|error| attribute(path(), "mode", error.into()))?;
        }
        let list = metadata.xattrs.get(ACL_ACCESS);
        if let Some(list) = list {
            set(ACL_ACCESS, list)?;
        }
        if list.is_some() || (is_link && wanted != Mode::from_raw_mode(0o777)) {
            self.check_mode(wanted, &path, stat)?;
        }
        rustix::fs::utimensat(directory, name, &times(metadata), nofollow)
            .map_err(|error| attribute(path(), "time", error.into()))?;
        self.check_time(metadata, &path, stat)
    }

    /// Looks whether a time arrived: a file system without room for it takes another one without a word.
    fn check_time(
        &self,
        metadata: &Metadata,
        path: &dyn Fn() -> PathBuf,
        stat: impl FnOnce() -> rustix::io::Result<Stat>,
    ) -> Result<(), CheckoutError> {
        let wanted = metadata.mtime;
        if EVERYWHERE.contains(&wanted.seconds) {
            return Ok(()); // not worth a system call
        }
        let stat = stat().map_err(|error| attribute(path(), "time", error.into()))?;
        let found = Timestamp {
            seconds: stat.st_mtime,
            nanoseconds: stat.st_mtime_nsec as u32,
        };
        if found != wanted {
            Differing::add(&self.other_times, path(), wanted, found);
        }
        Ok(())
    }

    /// Looks whether a mode is the one that was set.
    fn check_mode(
        &self,
        wanted: Mode,
        path: &dyn Fn() -> PathBuf,
        stat: impl FnOnce() -> rustix::io::Result<Stat>,
    ) -> Result<(), CheckoutError> {
        let stat = stat().map_err(|error| attribute(path(), "mode", error.into()))?;
        let found = Mode::from_raw_mode(stat.st_mode);
        if found != wanted {
            let [wanted, found] = [wanted, found].map(|mode| mode.as_raw_mode() as u16 & 0o7777);
            Differing::add(&self.other_modes, path(), wanted, found);
        }
        Ok(())
    }

    /// Gives a file its owner, and returns whether it has it.
    fn set_owner(
        &self,
        metadata: &Metadata,
        path: &dyn Fn() -> PathBuf,
        set: impl FnOnce(Uid, Gid) -> rustix::io::Result<()>,
    ) -> Result<bool, CheckoutError> {
        for (id, field) in [(metadata.uid, "uid"), (metadata.gid, "gid")] {
            if id == u32::MAX && self.options.unprivileged {
                self.left_out.fetch_add(1, Ordering::Relaxed);
                return Ok(false);
            }
            if id == u32::MAX {
                let path = path();
                return Err(CheckoutError::Nobody { path, field });
            }
        }
        let set = set(Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
        self.allow(set.map_err(Into::into), "owner", path)
    }

    fn set_xattr(
        &self,
        name: &[u8],
        path: &dyn Fn() -> PathBuf,
        set: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), CheckoutError> {
        let shown = format!("extended attribute {}", bedplate_model::name::shown(name));
        self.allow(set(), &shown, path).map(|_| ())
    }

    /// Returns the permissions of a file that has its owner, or has not.
    fn mode(&self, metadata: &Metadata, owned: bool) -> Mode {
        let wanted = mode(metadata);
        let lent = Mode::SUID | Mode::SGID;
        if owned || !wanted.intersects(lent) {
            return wanted;
        }
        self.left_out.fetch_add(1, Ordering::Relaxed);
        wanted - lent
    }

    /// Lets a refusal pass where the caller said so, and returns whether there was none.
    fn allow(
        &self,
        outcome: io::Result<()>,
        what: &str,
        path: &dyn Fn() -> PathBuf,
    ) -> Result<bool, CheckoutError> {
        match outcome {
            Err(error)
                if self.options.unprivileged
                    && matches!(
                        error.kind(),
                        io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported
                    ) =>
            {
                self.left_out.fetch_add(1, Ordering::Relaxed);
                Ok(false)
            }
            other => other
                .map(|()| true)
                .map_err(|source| attribute(path(), what, source)),
        }
    }

    /// Adds the further names of nodes, and sets the attributes of directories, deepest first.
    fn finish(&self, root: &OwnedFd) -> Result<(), CheckoutError> {
        let mut open = vec![Frame {
            path: self.destination.to_owned(),
            node: Tree::ROOT,
            entries: self.tree.entries(Tree::ROOT).into_iter().flatten(),
            handle: files::open_beneath(root, []).map_err(|source| CheckoutError::Destination {
                path: self.destination.to_owned(),
                source,
            })?,
        }];
        while let Some(frame) = open.last_mut() {
            let Some((name, node)) = frame.entries.next() else {
                let metadata = &self.tree.node(frame.node).metadata;
                self.set_opened(&frame.handle, metadata, &|| frame.path.clone())?;
                open.pop();
                continue;
            };
            if let Some(entries) = self.tree.entries(*node) {
                let path = frame.path.join(name.as_os_str());
                let handle =
                    files::open_directory(&frame.handle, name.as_os_str()).map_err(|source| {
                        CheckoutError::Make {
                            path: path.clone(),
                            source,
                        }
                    })?;
                open.push(Frame {
                    path,
                    handle,
                    node: *node,
                    entries: Some(entries).into_iter().flatten(),
                });
            } else if !self.is_first(*node, frame.node, name)
                && let Some(first) = self.first_names.get(node)
            {
                self.link(root, first, frame, name)?;
            }
        }
        Ok(())
    }

    fn link(
        &self,
        top: &OwnedFd,
        first: &FirstName,
        frame: &Frame<'_>,
        name: &Name,
    ) -> Result<(), CheckoutError> {
        let Some((first_name, parents)) = first.components.split_last() else {
            return Ok(()); // a name has at least one component
        };
        let link = || -> io::Result<bool> {
            let parents = parents.iter().map(Name::as_os_str);
            let directory = files::open_beneath(top, parents)?;
            files::link(
                (&directory, first_name.as_os_str()),
                (&frame.handle, name.as_os_str()),
            )
        };
        match link() {
            Ok(true) => {
                self.entries.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            // The node is a device that was left out: so are its other names.
            Err(error) if self.options.unprivileged && error.kind() == io::ErrorKind::NotFound => {
                self.left_out.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            other => Err(CheckoutError::Make {
                path: frame.path.join(name.as_os_str()),
                source: other.err().unwrap_or_else(|| Errno::EXIST.into()),
            }),
        }
    }
}

/// A directory on the way of [`Checkout::finish`].
struct Frame<'a> {
    path: PathBuf,
    handle: OwnedFd,
    node: NodeId,
    entries:
        std::iter::Flatten<std::option::IntoIter<&'a std::collections::BTreeMap<Name, NodeId>>>,
}

/// Makes the destination, or checks that it is empty; says whether it was made.
fn open_destination(path: &Path) -> Result<(OwnedFd, bool), CheckoutError> {
    let failed = |source| CheckoutError::Destination {
        path: path.to_owned(),
        source,
    };
    let made = match fs::DirBuilder::new().mode(0o700).create(path) {
        // It may be there, if it is empty.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(failed(error)),
        Ok(()) => true,
    };
    let handle = files::open_root(path).map_err(failed)?;
    if !files::list(&handle).map_err(failed)?.is_empty() {
        return Err(CheckoutError::NotEmpty(path.to_owned()));
    }
    // Everything made below would inherit it; the tree says itself what has an access list.
    match xattr::remove_from_file(&handle, ACL_DEFAULT) {
        Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(failed(error)),
        _ => Ok((handle, made)),
    }
}

/// Removes everything in a directory, also where its attributes were set already.
fn clear(directory: &OwnedFd) -> io::Result<()> {
    for entry in files::list(directory)? {
        if entry.kind.is_none_or(|kind| kind == FileType::Directory)
            && let Ok(below) = open_writable(directory, &entry.name)
        {
            clear(&below)?;
        }
        files::remove_tree(directory, &entry.name)?;
    }
    Ok(())
}

/// Opens a directory in which this process may remove entries.
fn open_writable(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let itself = format!("/proc/self/fd/{}", handle.as_raw_fd());
    rustix::fs::chmod(itself, Mode::RWXU)?;
    files::open_directory(parent, name)
}

/// Finds, for each node with several names, the first of them.
fn first_names(tree: &Tree) -> HashMap<NodeId, FirstName> {
    let counts = tree.name_counts();
    let mut first_names = HashMap::new();
    if counts.iter().all(|count| *count <= 1) {
        return first_names;
    }
    for (path, node) in tree.walk() {
        if counts[node.index()] > 1
            && !first_names.contains_key(&node)
            && let Some((parents, _)) = path.split_last()
        {
            let parent: bedplate_model::TreePath = parents.iter().cloned().collect();
            if let Some(directory) = tree.lookup(&parent) {
                let components = path.components().to_vec();
                first_names.insert(
                    node,
                    FirstName {
                        directory,
                        components,
                    },
                );
            }
        }
    }
    first_names
}

fn attribute(path: PathBuf, attribute: &str, source: io::Error) -> CheckoutError {
    CheckoutError::Attribute {
        path,
        attribute: attribute.to_owned(),
        source,
    }
}

/// Returns the extended attributes that are set before the mode, which may take away the right to set them.
fn before_mode(metadata: &Metadata) -> impl Iterator<Item = (&[u8], &[u8])> {
    let xattrs = metadata.xattrs.iter();
    let others = xattrs.filter(|(name, _)| &***name != ACL_ACCESS);
    others.map(|(name, value)| (&**name, &**value))
}

fn mode(metadata: &Metadata) -> Mode {
    Mode::from_raw_mode(u32::from(metadata.mode))
}

fn times(metadata: &Metadata) -> Timestamps {
    let Timestamp {
        seconds,
        nanoseconds,
    } = metadata.mtime;
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: i64::from(nanoseconds),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
