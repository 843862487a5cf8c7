//! Changing refs: one by the rename of its file, several at once by a journal.
//!
//! ```text
//! one      tmp/<txn>/ref-0 ─ fsync ─ rename → refs/<name>             the commit point
//! several  refs/<name>.new, journal.done, journal.new ─ sync
//!          rename journal.new → journal, fsync                        the commit point
//!          rename each <name>.new → <name>, fsync; rename journal.done → journal, fsync
//! readers  journal, then refs/<name>: what a journal says counts until it is done
//! ```
//!
//! Whoever changes refs holds a lock on `refs/`, and finishes what a crash left of a journal first. A version
//! of this program that knows of no journals does not: a journal says what each ref was, and does not count
//! where a ref has become something else meanwhile.
//!
//! Invariants: a change of several refs is seen whole or not at all, at any time and after a power cut;
//! a journal is never taken up again after a later change, whoever made it. What follows a commit point needs
//! no room: on a full disk a change fails before it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use bedplate_model::format::FormatHeader;
use bedplate_model::{ImageName, Sha256};
use bedplate_sys::lock::Lock;
use bedplate_sys::{durable, files};
use rustix::fs::AtFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::document::{self, RefDocument};
use super::{RefTarget, RefsError, file_name};
use crate::store::{Store, sha256};

const JOURNAL_FORMAT: &str = "bedplate-journal";
/// How often a journal is looked at that changes while it is compared with the refs.
const LOOKS: usize = 100;

/// The journal's name in the store.
const JOURNAL: &str = "journal";
/// More bytes than a journal has: as many refs as anybody sets at once, with their histories.
const JOURNAL_MAX: u64 = 256 << 20;
/// What a transaction calls the document of its only ref.
const PART: &str = "ref-0";
/// Its name until it is on the disk.
const JOURNAL_PART: &str = "journal.new";
/// The name of the one that says that it is done, until it is.
const JOURNAL_DONE: &str = "journal.done";
/// The name of one that was overtaken.
const JOURNAL_STALE: &str = "journal.stale";
/// What a journal says of a ref that was not there.
const NOTHING: &str = "nothing";

/// A change of several refs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Journal {
    #[serde(flatten)]
    header: FormatHeader,
    /// Counts the changes, so that a reader notices one that came and went.
    pub(super) generation: u64,
    /// What is not yet in its place; empty once everything is. `None` removes the ref.
    refs: Vec<JournalEntry>,
    /// The check of the whole file; see [`document`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    check: Option<Sha256>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct JournalEntry {
    name: ImageName,
    /// The digest of the file that the ref had before, or [`NOTHING`]; older versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaces: Option<String>,
    document: Option<RefDocument>,
}

/// The changes of one transaction.
pub(crate) struct RefChanges {
    /// `None` removes the ref.
    changes: Vec<(ImageName, Option<RefTarget>)>,
    /// The bytes that the only ref's file had when its new document was written early.
    #[expect(clippy::option_option, reason = "not read, no file, its bytes")]
    early: Option<Option<Vec<u8>>>,
}

impl RefChanges {
    /// Takes the changes in the order in which they were asked for: the last one of each name counts.
    pub(crate) fn new(asked: Vec<(ImageName, Option<RefTarget>)>) -> Self {
        let mut last: BTreeMap<ImageName, Option<RefTarget>> = BTreeMap::new();
        for (name, target) in asked {
            last.insert(name, target);
        }
        Self {
            changes: last.into_iter().collect(),
            early: None,
        }
    }

    /// Writes what can be written before the lock is taken, so that the transaction's own sync makes it
    /// durable. The caller syncs.
    pub(crate) fn prepare(
        &mut self,
        store: &Store,
        directory: BorrowedFd<'_>,
    ) -> Result<(), RefsError> {
        if let [(name, Some(target))] = &self.changes[..] {
            let old = store.ref_bytes(name)?;
            let document = RefDocument::replacing(old.as_deref(), name, target);
            write(directory, PART, &document.to_bytes())
                .map_err(|source| store.ref_write_error(name, source))?;
            self.early = Some(old);
        }
        Ok(())
    }

    /// Changes the refs. `synced` says that what [`RefChanges::prepare`] wrote is on the disk.
    pub(crate) fn commit(
        self,
        store: &Store,
        directory: BorrowedFd<'_>,
        synced: bool,
    ) -> Result<(), RefsError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let changing = store.lock_refs()?;
        let generation = changing.finish_journal()?;
        match &self.changes[..] {
            [(name, target)] => {
                let target = target.as_ref();
                changing.one(name, target, directory, self.early.as_ref(), synced)
            }
            changes => changing.several(changes, generation.wrapping_add(1)),
        }
    }

    /// Changes the refs, all of which are removals: this needs no transaction, and on a full disk no room.
    pub(crate) fn remove(self, store: &Store) -> Result<(), RefsError> {
        let changing = store.lock_refs()?;
        let one = |(name, _): &(ImageName, Option<RefTarget>)| {
            changing.one(name, None, changing.refs.as_fd(), None, true)
        };
        let generation = match changing.finish_journal() {
            // What it does not name is not its business, and may make the room.
            Err(error) if error.is_full() && !self.is_named_by(store.journal()?.as_ref()) => {
                return self.changes.iter().try_for_each(one);
            }
            other => other?,
        };
        match &self.changes[..] {
            [] => Ok(()),
            [only] => one(only),
            changes => match changing.several(changes, generation.wrapping_add(1)) {
                Err(error) if error.is_full() => changes.iter().try_for_each(one),
                other => other,
            },
        }
    }

    /// Returns whether a journal says something of one of the refs.
    fn is_named_by(&self, journal: Option<&Journal>) -> bool {
        journal.is_some_and(|journal| {
            let mut names = self.changes.iter().map(|(name, _)| name);
            names.any(|name| journal.document(name).is_some())
        })
    }
}

/// The right to change refs; lasts as long as the lock does.
pub(crate) struct Changing<'a> {
    store: &'a Store,
    refs: Lock,
}

impl Store {
    /// Waits until nobody else changes refs.
    pub(crate) fn lock_refs(&self) -> Result<Changing<'_>, RefsError> {
        let path = self.path().join("refs");
        match Lock::exclusive(&path) {
            Ok(refs) => Ok(Changing { store: self, refs }),
            Err(source) => Err(RefsError::Write { path, source }),
        }
    }

    /// Reads the journal, where there is one.
    pub(super) fn journal(&self) -> Result<Option<Journal>, RefsError> {
        let path = self.path().join(JOURNAL);
        let bytes = match files::read_file(self.root(), JOURNAL.as_ref(), JOURNAL_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RefsError::Read { path, source }),
        };
        let journal: Journal = document::parse(&bytes, &path)?;
        document::verify(&bytes, journal.check)
            .map_err(|source| document::damaged(&path, source))?;
        document::check(&journal.header, JOURNAL_FORMAT, &path)?;
        Ok(Some(journal))
    }

    /// Reads the journal, where there is one that counts.
    pub(super) fn standing_journal(&self) -> Result<Option<Journal>, RefsError> {
        let mut found = self.journal()?;
        for _ in 0..LOOKS {
            let Some(journal) = found else {
                return Ok(None);
            };
            if !self.is_overtaken(&journal)? {
                return Ok(Some(journal));
            }
            // One that the next change has followed meanwhile looks overtaken, too.
            let again = self.journal()?;
            let same = |one: &Journal| {
                (one.generation, one.is_done()) == (journal.generation, journal.is_done())
            };
            if again.as_ref().is_some_and(same) {
                return Ok(None);
            }
            found = again;
        }
        Ok(found)
    }

    /// Returns whether a version without journals changed one of the refs after a journal was written: then
    /// its files say what is true.
    fn is_overtaken(&self, journal: &Journal) -> Result<bool, RefsError> {
        for entry in &journal.refs {
            let bytes = self.ref_bytes(&entry.name)?;
            let as_it_was = match &entry.replaces {
                Some(before) => *before == before_of(bytes.as_deref()),
                None => true,
            };
            if as_it_was {
                continue;
            }
            let path = self.path().join("refs").join(file_name(&entry.name));
            let now = match bytes.map(|bytes| RefDocument::parse(&bytes, &path)) {
                None => None,
                Some(Ok(document)) => Some(document),
                Some(Err(RefsError::Damaged { .. })) => continue, // no change, but damage
                Some(Err(_)) => return Ok(true),
            };
            if now != entry.document {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the journals that a later change overtook: the one in its place, and one that was set aside.
    pub(crate) fn overtaken_journals(&self) -> Result<Vec<PathBuf>, RefsError> {
        let mut paths = Vec::new();
        if let Some(journal) = self.journal()?
            && self.is_overtaken(&journal)?
        {
            paths.push(self.path().join(JOURNAL));
        }
        let aside = self.path().join(JOURNAL_STALE);
        match std::fs::symlink_metadata(&aside) {
            Ok(_) => paths.push(aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(RefsError::Read {
                    path: aside,
                    source,
                });
            }
        }
        Ok(paths)
    }

    /// Sets a journal aside that cannot be read, and returns where it is now: the names are as their files
    /// say from then on. A change of several names that it may have held is lost, whole or from where it was
    /// interrupted; nobody could read it.
    pub(crate) fn set_journal_aside(&self) -> Result<Option<PathBuf>, RefsError> {
        let changing = self.lock_refs()?;
        match self.journal() {
            Err(RefsError::Damaged { path, .. }) => {
                let aside = path.with_extension("damaged");
                durable::rename(&path, &aside).map_err(|source| self.journal_error(source))?;
                drop(changing);
                Ok(Some(aside))
            }
            Err(error) => Err(error),
            Ok(_) => Ok(None),
        }
    }

    /// Reads the bytes of a ref's file, without a look at the journal.
    fn ref_bytes(&self, name: &ImageName) -> Result<Option<Vec<u8>>, RefsError> {
        let path = self.path().join("refs").join(file_name(name));
        match self.read_document(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // Something else in its place, such as a link, is replaced, as a damaged ref is.
            Err(error)
                if error.kind() == io::ErrorKind::InvalidData
                    || error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) =>
            {
                Ok(None)
            }
            Err(source) => Err(RefsError::Read { path, source }),
        }
    }

    fn ref_write_error(&self, name: &ImageName, source: io::Error) -> RefsError {
        RefsError::Write {
            path: self.path().join("refs").join(file_name(name)),
            source,
        }
    }

    fn journal_error(&self, source: io::Error) -> RefsError {
        RefsError::Write {
            path: self.path().join(JOURNAL),
            source,
        }
    }
}

impl Changing<'_> {
    /// Finishes what a crash left of a journal; returns the generation of the last change.
    pub(crate) fn finish_journal(&self) -> Result<u64, RefsError> {
        let Some(journal) = self.store.journal()? else {
            return Ok(0);
        };
        if self.store.is_overtaken(&journal)? {
            // Kept for people to look at; fsck names it.
            let root = self.store.root();
            rustix::fs::renameat(root, JOURNAL, root, JOURNAL_STALE)
                .and_then(|()| rustix::fs::fsync(root))
                .map_err(|error| self.store.journal_error(error.into()))?;
        } else if !journal.is_done() {
            self.finish(&journal)?;
        }
        Ok(journal.generation)
    }

    /// Changes one ref. The commit point is the rename (or the removal) of its file.
    fn one(
        &self,
        name: &ImageName,
        target: Option<&RefTarget>,
        directory: BorrowedFd<'_>,
        early: Option<&Option<Vec<u8>>>,
        synced: bool,
    ) -> Result<(), RefsError> {
        let failed = |source| self.store.ref_write_error(name, source);
        let file = file_name(name);
        match target {
            Some(target) => {
                let old = self.store.ref_bytes(name)?;
                if early != Some(&old) {
                    // Somebody was faster: what they set belongs into the history.
                    remove(directory, PART).map_err(failed)?;
                    let document = RefDocument::replacing(old.as_deref(), name, target);
                    write(directory, PART, &document.to_bytes()).map_err(failed)?;
                }
                if early != Some(&old) || !synced {
                    sync(directory, PART).map_err(failed)?;
                }
                rustix::fs::renameat(directory, PART, &self.refs, file)
                    .map_err(|error| failed(error.into()))?;
            }
            None => remove(self.refs.as_fd(), &file).map_err(failed)?,
        }
        rustix::fs::fsync(&self.refs).map_err(|error| failed(error.into()))
    }

    /// Changes several refs. The commit point is the rename of the journal.
    fn several(
        &self,
        changes: &[(ImageName, Option<RefTarget>)],
        generation: u64,
    ) -> Result<(), RefsError> {
        let mut journal = Journal {
            header: FormatHeader::new(JOURNAL_FORMAT, 1),
            generation,
            refs: Vec::with_capacity(changes.len()),
            check: None,
        };
        for (name, target) in changes {
            let old = self.store.ref_bytes(name)?;
            journal.refs.push(JournalEntry {
                name: name.clone(),
                replaces: Some(before_of(old.as_deref())),
                document: target
                    .as_ref()
                    .map(|target| RefDocument::replacing(old.as_deref(), name, target)),
            });
        }
        let published = self.stage(&journal).and_then(|()| self.publish(&journal));
        if published.is_err() {
            self.unstage(&journal);
        }
        published.map_err(|source| self.store.journal_error(source))?;
        // It is done, and every reader sees it. What fails from here on is finished by whoever changes a
        // ref next, and they are told why where they cannot.
        let _ = self.apply(&journal);
        Ok(())
    }

    /// Writes all that [`Changing::apply`] needs, unless it is there.
    fn stage(&self, journal: &Journal) -> io::Result<()> {
        for document in journal.documents() {
            let (refs, bytes) = (self.refs.as_fd(), document.to_bytes());
            if !holds(refs, &file_name(&document.name), &bytes) {
                write_anew(refs, &new_name(&document.name), &bytes)?;
            }
        }
        let done = journal.done().to_bytes();
        write_anew(self.store.root().as_fd(), JOURNAL_DONE, &done)
    }

    /// Removes what a change that failed has staged, as far as it can.
    fn unstage(&self, journal: &Journal) {
        for document in journal.documents() {
            let _ = remove(self.refs.as_fd(), &new_name(&document.name));
        }
        for name in [JOURNAL_DONE, JOURNAL_PART] {
            let _ = remove(self.store.root().as_fd(), name);
        }
    }

    /// Writes a journal and gives it its name, durably.
    fn publish(&self, journal: &Journal) -> io::Result<()> {
        let root = self.store.root();
        write_anew(root.as_fd(), JOURNAL_PART, &journal.to_bytes())?;
        durable::sync_filesystem(root)?; // 1. these bytes and the staged ones are on the disk …
        rustix::fs::renameat(root, JOURNAL_PART, root, JOURNAL)?; // 2. … before they count …
        Ok(rustix::fs::fsync(root)?) // 3. … and so is the name.
    }

    /// Puts every document of a journal into its place, and says that it is done. What is staged is on the
    /// disk.
    fn apply(&self, journal: &Journal) -> Result<(), RefsError> {
        let refs = self.refs.as_fd();
        for JournalEntry { name, document, .. } in &journal.refs {
            let file = file_name(name);
            let failed = |source| self.store.ref_write_error(name, source);
            match document {
                Some(document) if holds(refs, &file, &document.to_bytes()) => {}
                Some(_) => rustix::fs::renameat(refs, new_name(name), refs, file)
                    .map_err(|error| failed(error.into()))?,
                None => remove(refs, &file).map_err(failed)?,
            }
        }
        let root = self.store.root();
        // The journal says "done" only when its refs are on the disk.
        rustix::fs::fsync(refs)
            .and_then(|()| rustix::fs::renameat(root, JOURNAL_DONE, root, JOURNAL))
            .and_then(|()| rustix::fs::fsync(root))
            .map_err(|error| self.store.journal_error(error.into()))
    }

    /// Finishes a journal that a crash, or an older version on a full disk, left.
    fn finish(&self, journal: &Journal) -> Result<(), RefsError> {
        self.stage(journal)
            .and_then(|()| durable::sync_filesystem(self.refs.as_fd()))
            .map_err(|source| self.store.journal_error(source))?;
        self.apply(journal)
    }

    /// Removes what a crash left of changes that never counted. The journal is finished.
    pub(crate) fn sweep(&self) -> Result<(), RefsError> {
        let path = || self.store.path().join("refs");
        let names = files::list(&self.refs).map_err(|source| RefsError::Read {
            path: path(),
            source,
        })?;
        let left = names
            .iter()
            .filter_map(|entry| entry.name.to_str())
            .filter(|name| name.strip_suffix(".new").is_some());
        for name in left {
            remove(self.refs.as_fd(), name).map_err(|source| RefsError::Write {
                path: path().join(name),
                source,
            })?;
        }
        Ok(())
    }

    /// Replaces documents that need not change together, with one wait for the disk.
    pub(crate) fn rewrite(&self, documents: &[RefDocument]) -> Result<(), RefsError> {
        let rewrite = || -> io::Result<()> {
            let refs = self.refs.as_fd();
            for document in documents {
                write_anew(refs, &new_name(&document.name), &document.to_bytes())?;
            }
            durable::sync_filesystem(refs)?; // 1. every byte is on the disk …
            for RefDocument { name, .. } in documents {
                rustix::fs::renameat(refs, new_name(name), refs, file_name(name))?; // 2. … before it counts.
            }
            Ok(rustix::fs::fsync(refs)?)
        };
        if documents.is_empty() {
            return Ok(());
        }
        rewrite().map_err(|source| RefsError::Write {
            path: self.store.path().join("refs"),
            source,
        })
    }
}

impl Journal {
    fn to_bytes(&self) -> Vec<u8> {
        document::with_check(|check| {
            document::to_bytes(&Self {
                check: Some(check),
                ..self.clone()
            })
        })
    }

    /// Returns the journal that says that everything is in its place.
    fn done(&self) -> Self {
        Self {
            refs: Vec::new(),
            ..self.clone()
        }
    }

    /// Returns whether everything is in its place.
    pub(super) fn is_done(&self) -> bool {
        self.refs.is_empty()
    }

    /// Returns what the journal says of a ref: `None` where nothing, `Some(None)` where it is removed.
    #[expect(clippy::option_option, reason = "unmentioned, removed, set")]
    pub(super) fn document(&self, name: &ImageName) -> Option<Option<&RefDocument>> {
        self.refs
            .iter()
            .find(|entry| entry.name == *name)
            .map(|entry| entry.document.as_ref())
    }

    /// Returns the documents that the journal sets.
    pub(super) fn documents(&self) -> impl Iterator<Item = &RefDocument> {
        self.refs.iter().filter_map(|entry| entry.document.as_ref())
    }
}

/// What a journal says of the file that a ref has before the change.
fn before_of(bytes: Option<&[u8]>) -> String {
    match bytes {
        Some(bytes) => sha256(bytes).to_string(),
        None => NOTHING.to_owned(),
    }
}

/// The name of a ref's next file, until it counts.
fn new_name(name: &ImageName) -> String {
    format!("{}.new", file_name(name))
}

/// Writes a file that may be there: then it is as it has to be, or left over.
fn write_anew(directory: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    if holds(directory, name, bytes) {
        return Ok(());
    }
    remove(directory, name)?;
    write(directory, name, bytes)
}

/// Returns whether a file has exactly these bytes.
fn holds(directory: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> bool {
    files::read_file(directory, name.as_ref(), bytes.len() as u64).is_ok_and(|there| there == bytes)
}

fn write(directory: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    files::create_file(directory, name.as_ref(), 0o600)?.write_all(bytes)
}

fn sync(directory: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let file: File = files::open_file(directory, name.as_ref())?;
    file.sync_all()
}

/// Removes a file; one that is not there is fine.
fn remove(directory: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
