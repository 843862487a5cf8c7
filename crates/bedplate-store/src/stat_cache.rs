//! The stat cache: an unchanged directory is committed again without reading its files.
//!
//! ```text
//! scan ─→ Remembering::put_file ─┬ known, unchanged, the object there ─→ its name; nothing is read
//!                                └ otherwise: stamp → Transaction::put_file → stamp: remembered if equal
//! Remembering::save ─→ index/stat-<hex>     one file for each directory that was scanned
//! ```
//!
//! What is trusted, and why that is never wrong: an entry says "a file with this stamp has this content",
//! and a stamp cannot come again once the content changed.
//!
//! - The stamp has the ctime, which no program can set, beside device, inode, size, mtime, birth time.
//! - It is remembered only where it was at least [`MARGIN`] seconds old when the scan began, by the clock
//!   of the file systems: a change in the same tick as the remembered one cannot have come after it.
//! - It is remembered only where it was the same before and after the content was read.
//! - Only file systems that set the ctime with every change of content are remembered
//!   ([`FileSystem::notices_changes`]), after all mapped pages were written back, and after every write
//!   that had begun had ended.
//! - The file is of this boot: a power cut may keep new bytes and lose the times that tell of them.
//!
//! Modes, owners and extended attributes are not remembered: they are read each time, because what
//! `listxattr` says depends on more than the inode (capabilities, user namespaces, mount options, LSM).
//!
//! Invariant: a cache that is lost, damaged, foreign or written by two at once makes a commit slower,
//! never wrong, and never fail. `docs/format/store.md` has the format.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bedplate_model::tree::INLINE_MAX;
use bedplate_model::{Algorithm, FileContent, ObjectId};
use bedplate_sys::files;
use bedplate_sys::stamp::{self, FileSystem, Stamp, Time};
use rustix::fs::AtFlags;

use crate::item::Item;
use crate::place::Standing;
use crate::scan::ContentSink;
use crate::store::{Store, sha256};
use crate::transaction::{PutError, Transaction};

/// How long a file must have been unchanged, in seconds: more than the coarsest time stamps of the
/// trusted file systems (one second), and than any tick.
const MARGIN: i64 = 2;
const MAGIC: &[u8; 16] = b"bedplate-stat-1\n";
/// Where the kernel names this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// A file of more entries is not written, and not read.
const ENTRIES_MAX: usize = 1 << 21;
/// How many directories are remembered; those that were saved longest ago are forgotten.
const FILES_MAX: usize = 16;
/// Magic, algorithm, boot.
const HEADER: usize = MAGIC.len() + 1 + 32;
/// The SHA-256 at the end.
const CHECK: usize = 32;
/// File system (kind, number) and inode: what entries are sorted and found by.
const KEY: usize = 3 * 8;
/// Key, device, size, three times.
const STAMP: usize = KEY + 2 * 8 + 3 * 12;

/// Gives every file that is being written in this process its own name.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Takes the contents of files into a transaction, and remembers them for the next scan of the same
/// directory.
///
/// What is found in the cache is not held against garbage collection until the transaction puts an image
/// of it.
#[derive(Debug)]
pub struct Remembering<'a, 'store> {
    transaction: &'a Transaction<'store>,
    /// What an earlier scan found.
    known: Known,
    /// The name of the cache's file; `None` where nothing can be remembered here.
    file_name: Option<String>,
    boot: [u8; 32],
    /// When the scan began, by the file systems' clock.
    began: Time,
    /// Files whose ctime or mtime is not before this are not remembered.
    settled_before: Time,
    /// By device: the file system, if it is one that notices changes.
    file_systems: Mutex<HashMap<u64, Option<FileSystem>>>,
    /// By device: whether mapped pages were written back.
    flushed: Mutex<HashMap<u64, bool>>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Records as they lie in the file.
    records: Vec<Box<[u8]>>,
    /// How many of them were known.
    hits: usize,
}

impl<'a, 'store> Remembering<'a, 'store> {
    /// Starts to remember a directory that will be scanned; loads what is known of it.
    pub fn new(transaction: &'a Transaction<'store>, directory: &Path) -> Self {
        Self::open(transaction, directory, None)
    }

    /// The same, trusting every file that changed before `settled_before` (seconds since 1970).
    ///
    /// For tests, which cannot wait until their files are old: the caller promises not to change a
    /// file in the tick in which it was scanned.
    #[doc(hidden)]
    pub fn trusting_until(
        transaction: &'a Transaction<'store>,
        directory: &Path,
        settled_before: i64,
    ) -> Self {
        Self::open(transaction, directory, Some((settled_before, 0)))
    }

    fn open(
        transaction: &'a Transaction<'store>,
        directory: &Path,
        settled_before: Option<Time>,
    ) -> Self {
        let store = transaction.store();
        let mut remembering = Self {
            transaction,
            known: Known::default(),
            file_name: None,
            boot: [0; 32],
            began: Time::default(),
            settled_before: Time::default(),
            file_systems: Mutex::default(),
            flushed: Mutex::default(),
            seen: Mutex::default(),
        };
        // Whatever fails here: nothing is known then, and nothing remembered.
        let place = || -> io::Result<Option<(Time, Stamp, FileSystem)>> {
            let Some(clock) = file_clock(store)? else {
                return Ok(None);
            };
            let root = files::open_root(directory)?;
            Ok(Some((clock, Stamp::of(&root)?, FileSystem::of(&root)?)))
        };
        let boot = std::fs::read(BOOT_ID);
        if let (Ok(Some((clock, root, file_system))), Ok(boot)) = (place(), boot) {
            remembering.boot = sha256(&boot).0;
            remembering.began = clock;
            remembering.settled_before = settled_before.unwrap_or((clock.0 - MARGIN, clock.1));
            let name = file_name(&root, file_system);
            remembering.known =
                Known::load(store, &name, &remembering.boot, store.algorithm()).unwrap_or_default();
            remembering.file_name = Some(name);
        }
        remembering
    }

    /// Returns how many files were not read because they are known.
    pub fn hits(&self) -> usize {
        self.seen().hits
    }

    /// Writes what the scan found, for the next one. Not durable: a power cut makes it void anyway.
    ///
    /// What goes wrong here costs time at the next commit, and nothing else: nothing is returned.
    pub fn save(self) {
        let seen = self
            .seen
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let unchanged = seen.hits == seen.records.len() && seen.hits == self.known.len();
        if let Some(name) = &self.file_name
            && !unchanged
            && seen.records.len() <= ENTRIES_MAX
        {
            let store = self.transaction.store();
            let mut records = seen.records;
            // A file with two names was met once; should one come twice, the two are equal.
            records.sort_unstable();
            records.dedup();
            let algorithm = store.algorithm();
            let _ = write_file(
                store,
                name,
                self.began,
                &encode(algorithm, &self.boot, &records),
            );
        }
    }

    /// Returns the file system of a file, if its changes can be trusted to show.
    fn file_system(&self, file: &File, device: u64) -> Option<FileSystem> {
        self.file_name.as_ref()?;
        let mut known = self.lock_file_systems();
        *known.entry(device).or_insert_with(|| {
            let found = FileSystem::of(file).ok()?;
            found.notices_changes().then_some(found)
        })
    }

    /// Makes sure that from now on every change of a file shows in its stamp.
    fn changes_show(&self, file: &File, device: u64) -> bool {
        let flush = || {
            let mut flushed = self.flushed.lock().unwrap_or_else(PoisonError::into_inner);
            // Once is enough: what is written to after this has a time after `began`.
            *flushed
                .entry(device)
                .or_insert_with(|| stamp::flush_mappings(file).is_ok())
        };
        flush() && stamp::wait_for_writers(file).is_ok()
    }

    fn lock_file_systems(&self) -> MutexGuard<'_, HashMap<u64, Option<FileSystem>>> {
        // The map is whole whatever happened to who held it.
        self.file_systems
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the content of a file that is known, where the store has it.
    fn recall(&self, key: &[u8]) -> Option<FileContent> {
        let id = self.known.find(key)?;
        let size = u64::from_le_bytes(key[KEY + 8..KEY + 16].try_into().ok()?);
        let standing = self
            .transaction
            .store()
            .standing(&Item::Object(id), Some(size));
        // One that was cut short is written again.
        (standing.ok()? == Standing::Fit).then_some(FileContent::Object { id, size })
    }

    /// Returns whether what is read now may be remembered.
    fn is_settled(&self, stamp: &Stamp) -> bool {
        stamp.ctime < self.settled_before && stamp.mtime < self.settled_before
    }
}

impl ContentSink for Remembering<'_, '_> {
    fn put_file(&self, file: &File, size: u64) -> Result<FileContent, PutError> {
        let plain = || self.transaction.put_file(file, size);
        if size <= INLINE_MAX as u64 {
            return plain(); // as cheap to read as to look up
        }
        let Ok(before) = Stamp::of(file) else {
            return plain();
        };
        let Some(file_system) = self.file_system(file, before.device) else {
            return plain();
        };
        let mut record = stamp_bytes(file_system, &before);
        if before.size == size
            && let Some(content) = self.recall(&record)
        {
            if let FileContent::Object { id, .. } = &content {
                record.extend_from_slice(id.as_bytes());
            }
            let mut seen = self.seen();
            seen.hits += 1;
            seen.records.push(record.into());
            return Ok(content);
        }
        if !self.is_settled(&before) || !self.changes_show(file, before.device) {
            return plain();
        }
        // Writers may have ended only now; what they wrote under older times is not to be missed.
        let Ok(before) = Stamp::of(file) else {
            return plain();
        };
        let content = plain()?;
        let same = Stamp::of(file).is_ok_and(|after| after == before);
        if same && let FileContent::Object { id, .. } = &content {
            record.extend_from_slice(id.as_bytes());
            self.seen().records.push(record.into());
        }
        Ok(content)
    }
}

/// What an earlier scan found: records, sorted, as they lie in the file.
#[derive(Debug, Default)]
struct Known {
    bytes: Vec<u8>,
    algorithm: Option<Algorithm>,
}

impl Known {
    fn load(store: &Store, name: &str, boot: &[u8; 32], algorithm: Algorithm) -> Option<Self> {
        let max = HEADER + ENTRIES_MAX * record_len(algorithm) + CHECK;
        let index = index_directory(store).ok()?;
        let bytes = files::read_file(index, OsStr::new(name), max as u64).ok()?;
        Self::decode(bytes, boot, algorithm)
    }

    /// Takes a file's bytes; `None` for anything that is not exactly what [`encode`] makes here and now.
    fn decode(mut bytes: Vec<u8>, boot: &[u8; 32], algorithm: Algorithm) -> Option<Self> {
        let end = bytes.len().checked_sub(CHECK)?;
        let header = bytes.get(..HEADER)?;
        let records = end.checked_sub(HEADER)?;
        let whole = header == encode(algorithm, boot, &[]).get(..HEADER)?
            && records.is_multiple_of(record_len(algorithm))
            && sha256(&bytes[..end]).0 == bytes[end..];
        if !whole {
            return None;
        }
        bytes.truncate(end);
        bytes.drain(..HEADER);
        Some(Self {
            bytes,
            algorithm: Some(algorithm),
        })
    }

    fn len(&self) -> usize {
        self.algorithm
            .map_or(0, |algorithm| self.bytes.len() / record_len(algorithm))
    }

    /// Finds the content of a stamp, all of it equal.
    fn find(&self, stamp: &[u8]) -> Option<ObjectId> {
        let algorithm = self.algorithm?;
        let length = record_len(algorithm);
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            let record = &self.bytes[middle * length..(middle + 1) * length];
            match record[..STAMP].cmp(stamp) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => {
                    return ObjectId::from_bytes(algorithm, &record[STAMP..]);
                }
            }
        }
        None
    }
}

/// Returns the bytes of a cache's file: header, records, SHA-256 of both.
fn encode(algorithm: Algorithm, boot: &[u8; 32], records: &[Box<[u8]>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + records.len() * record_len(algorithm) + CHECK);
    bytes.extend_from_slice(MAGIC);
    bytes.push(algorithm.kernel_number());
    bytes.extend_from_slice(boot);
    for record in records {
        bytes.extend_from_slice(record);
    }
    let check = sha256(&bytes);
    bytes.extend_from_slice(&check.0);
    bytes
}

const fn record_len(algorithm: Algorithm) -> usize {
    STAMP + algorithm.digest_len()
}

/// Returns a record without the object's name.
fn stamp_bytes(file_system: FileSystem, stamp: &Stamp) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(STAMP + 64);
    for number in [
        file_system.kind,
        file_system.id,
        stamp.inode,
        stamp.device,
        stamp.size,
    ] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for (seconds, nanoseconds) in [stamp.mtime, stamp.ctime, stamp.btime] {
        bytes.extend_from_slice(&seconds.to_le_bytes());
        bytes.extend_from_slice(&nanoseconds.to_le_bytes());
    }
    bytes
}

/// Returns the name of the file for a directory.
fn file_name(root: &Stamp, file_system: FileSystem) -> String {
    let mut of = Vec::new();
    for number in [file_system.kind, file_system.id, root.device, root.inode] {
        of.extend_from_slice(&number.to_le_bytes());
    }
    format!("stat-{}", &sha256(&of).to_hex()[..16])
}

fn index_directory(store: &Store) -> io::Result<OwnedFd> {
    files::open_directory(store.root(), OsStr::new("index"))
}

/// Returns what time it is for files: that of one made just now. `None` where the store lies on a file
/// system with a clock of its own.
fn file_clock(store: &Store) -> io::Result<Option<Time>> {
    let index = index_directory(store)?;
    if !FileSystem::of(&index)?.keeps_this_clock() {
        return Ok(None);
    }
    match files::create_unnamed(&index, 0o600)? {
        Some(file) => Ok(Some(Stamp::of(file)?.ctime)),
        None => Ok(None),
    }
}

/// Puts a cache's file in its place, and removes what nobody will ask for.
///
/// Two at once: the later one wins, or one loses its file; both are whole.
fn write_file(store: &Store, name: &str, began: Time, bytes: &[u8]) -> io::Result<()> {
    let index = index_directory(store)?;
    let process = rustix::process::getpid().as_raw_nonzero();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let new = format!("{name}.{process}-{number}.new");
    tidy(&index, name)?;
    let write = || -> io::Result<()> {
        let mut file = files::create_file(&index, OsStr::new(&new), 0o600)?;
        // A clock that was set back meanwhile makes new changes look old.
        if Stamp::of(&file)?.ctime < began {
            return Err(io::Error::other("the clock was set back"));
        }
        file.write_all(bytes)?;
        Ok(rustix::fs::renameat(&index, &new, &index, name)?)
    };
    write().inspect_err(|_| {
        // Nothing to do where this fails, too: the next one tidies.
        let _ = rustix::fs::unlinkat(&index, &new, AtFlags::empty());
    })
}

/// Removes what crashes left, and the files that were saved longest ago, so that one more has a place.
fn tidy(index: &OwnedFd, name: &str) -> io::Result<()> {
    let mut others = Vec::new();
    for entry in files::list(index)? {
        let Some(text) = entry.name.to_str().filter(|text| text.starts_with("stat-")) else {
            continue;
        };
        if text.as_bytes().ends_with(b".new") {
            // One that is just being written loses its file: the next commit is slower.
            rustix::fs::unlinkat(index, text, AtFlags::empty())?;
        } else if text != name {
            let stat = rustix::fs::statat(index, text, AtFlags::SYMLINK_NOFOLLOW)?;
            others.push((stat.st_mtime, text.to_owned()));
        }
    }
    others.sort_unstable();
    let surplus = (others.len() + 1).saturating_sub(FILES_MAX);
    for (_, text) in &others[..surplus] {
        rustix::fs::unlinkat(index, text.as_str(), AtFlags::empty())?;
    }
    Ok(())
}
