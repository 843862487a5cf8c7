//! Refs: image names that point at images, and remember where they pointed before. Pins: other
//! holders, such as mounts and deployments.
//!
//! ```text
//! refs/localhost%2Fos%3Av1   {"format":"bedplate-ref",…,"name":…,"target":{…},"history":[{…},…]}
//! pins/mount-7               {"format":"bedplate-pin",…,"name":…,"root":…}
//! journal                    a change of several refs, until each is in its place
//! ```
//!
//! Invariants: a ref or pin is replaced whole; what a later version added to it is kept; a reader sees
//! all of a transaction's changes of refs, or none.

mod aside;
mod change;
mod document;
mod hold;

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bedplate_model::format::FormatError;
use bedplate_model::image::Revision;
use bedplate_model::{ImageName, RootDigest, Sha256};
use bedplate_sys::{files, space};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::item::Item;
use crate::parts::PartError;
use crate::store::Store;

pub use aside::SetAside;
pub(crate) use change::RefChanges;
pub use document::HISTORY_MAX;
use document::PinDocument;
pub(crate) use document::RefDocument;
pub use hold::{MountHold, MountState, SeenMounts};

/// More bytes than any ref or pin has.
const DOCUMENT_MAX: u64 = 1 << 20;
/// Longer file names are replaced by a digest of the name: `NAME_MAX` is 255, and `.new` has to fit.
const FILE_NAME_MAX: usize = 200;
/// How often a list of the refs is read again because somebody changed several of them meanwhile.
const LIST_TRIES: u32 = 8;

/// What a ref points at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefTarget {
    /// The image.
    pub root: RootDigest,
    /// Its manifest, where it was built, pulled or pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Sha256>,
    /// Its config, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Sha256>,
    /// When the ref was set, in seconds since 1970.
    pub created: i64,
    /// Who signed the manifest, as far as that was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Value>,
    /// What policy said about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Value>,
}

impl RefTarget {
    /// Points at an image of which nothing more is known; `created` is in seconds since 1970.
    pub const fn new(root: RootDigest, created: i64) -> Self {
        Self {
            root,
            manifest: None,
            config: None,
            created,
            signature: None,
            policy: None,
        }
    }

    /// Returns whether both lead to the same image, whatever documents it has.
    pub fn is_same_image(&self, other: &Self) -> bool {
        self.root == other.root
    }

    /// Returns the image and the documents that are named.
    pub(crate) fn items(&self) -> impl Iterator<Item = Item> {
        let blobs = [self.manifest, self.config].into_iter().flatten();
        std::iter::once(Item::Image(self.root.image)).chain(blobs.map(Item::Blob))
    }
}

/// A name, where it points, and where it pointed before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ref {
    /// The name.
    pub name: ImageName,
    /// Where it points.
    pub target: RefTarget,
    /// Where it pointed before, the newest first. An image that an older version of this program
    /// collected may be gone.
    pub history: Vec<RefTarget>,
}

impl Ref {
    /// Returns every image of the name: the current one, then the earlier ones, the newest first.
    pub fn images(&self) -> impl Iterator<Item = &RefTarget> {
        std::iter::once(&self.target).chain(&self.history)
    }
}

impl From<RefDocument> for Ref {
    fn from(document: RefDocument) -> Self {
        Self {
            name: document.name,
            target: document.target,
            history: document.history,
        }
    }
}

/// A name that keeps an image without being an image's name: a mount, a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Who holds the image, such as `mount-7` or `deployment-0123abcd`.
    pub name: String,
    /// The image.
    pub root: RootDigest,
    /// Its manifest, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Sha256>,
    /// Its config, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Sha256>,
}

impl Pin {
    /// Returns the image and the documents that are named.
    pub(crate) fn items(&self) -> impl Iterator<Item = Item> {
        let blobs = [self.manifest, self.config].into_iter().flatten();
        std::iter::once(Item::Image(self.root.image)).chain(blobs.map(Item::Blob))
    }
}

/// What is wrong with a damaged file.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is no document of its kind.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It was changed after it was written.
    #[error("its check does not fit what it says")]
    Check,
}

/// Why refs or pins could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RefsError {
    /// The directory or a file in it could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// A file is of a newer version, or of something else.
    #[error("cannot use {}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// A file says that it belongs to another name.
    #[error("{} is the file of `{found}`", path.display())]
    Misplaced {
        /// The file.
        path: PathBuf,
        /// The name in it.
        found: String,
    },
    /// The file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A pin's name has characters besides letters, digits, `-`, `_` and `.`.
    #[error("`{0}` cannot be the name of a pin")]
    PinName(String),
    /// The image is not in the store.
    #[error("the store has no image {0}")]
    NoImage(RootDigest),
}

impl RefsError {
    /// Returns whether the disk is full, and nothing else is wrong.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Write { source, .. } if space::is_full(source))
    }
}

/// Returns the name that a ref is kept under: the tag, or the digest where there is no tag.
pub(crate) fn key(name: &ImageName) -> ImageName {
    match name.tag() {
        Some(_) => name.without_digest(),
        None => name.clone(),
    }
}

/// Returns the name of a ref's file below `refs/`.
pub(crate) fn file_name(name: &ImageName) -> String {
    let text = name.to_string();
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            encoded.push(byte.into());
        } else {
            let _ = write!(encoded, "%{byte:02X}"); // a String never fails
        }
    }
    // A file that ends in `.new` is what a crash left.
    if let Some(stem) = encoded.strip_suffix(".new") {
        encoded = format!("{stem}%2Enew");
    }
    if encoded.len() <= FILE_NAME_MAX {
        return encoded;
    }
    use sha2::Digest as _;
    let digest: [u8; 32] = sha2::Sha256::digest(text.as_bytes()).into();
    format!("%long-{}", bedplate_model::digest::hex(&digest))
}

impl Store {
    /// Returns what a name points at, or `None` where the store has no such ref.
    ///
    /// A name with a digest finds any ref that leads or led to that manifest, its own repository's first.
    pub fn resolve(&self, name: &ImageName) -> Result<Option<RefTarget>, RefsError> {
        let Some(digest) = name.digest() else {
            return Ok(self.find_ref(name)?.map(|found| found.target));
        };
        let mut found = None;
        for known in self.all_refs()? {
            let same_place =
                (known.name.host(), known.name.repository()) == (name.host(), name.repository());
            for target in known.images() {
                if target.manifest == Some(digest) && target.items().all(|item| self.has(&item)) {
                    if same_place {
                        return Ok(Some(target.clone()));
                    }
                    found = Some(target.clone());
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Returns an image of a name's history, or `None` where it does not reach back that far.
    pub fn resolve_revision(&self, revision: &Revision) -> Result<Option<RefTarget>, RefsError> {
        let Some(back) = revision.back() else {
            return self.resolve(revision.name());
        };
        let found = self.find_ref(revision.name())?;
        Ok(found.and_then(|found| found.images().nth(back as usize).cloned()))
    }

    /// Returns a ref with its history, or `None` where the store has no such ref.
    pub fn find_ref(&self, name: &ImageName) -> Result<Option<Ref>, RefsError> {
        let key = key(name);
        // The journal first: what it says has happened, whether or not the ref's file shows it yet.
        let journal = self.standing_journal()?;
        if let Some(document) = journal.as_ref().and_then(|it| it.document(&key)) {
            return Ok(document.cloned().map(Ref::from));
        }
        let path = self.path().join("refs").join(file_name(&key));
        match self.read_document(&path) {
            Ok(bytes) => {
                let document = RefDocument::parse(&bytes, &path)?;
                if document.name != key {
                    return Err(RefsError::Misplaced {
                        path,
                        found: document.name.to_string(),
                    });
                }
                Ok(Some(document.into()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RefsError::Read { path, source }),
        }
    }

    /// Returns every ref, in the order of their names.
    pub fn refs(&self) -> Result<Vec<(ImageName, RefTarget)>, RefsError> {
        let refs = self.all_refs()?;
        Ok(refs.into_iter().map(|it| (it.name, it.target)).collect())
    }

    /// Returns every ref with its history, in the order of their names.
    pub fn all_refs(&self) -> Result<Vec<Ref>, RefsError> {
        let documents = self.each_ref()?.into_iter();
        let mut refs: Vec<Ref> = documents
            .map(|document| document.map(Ref::from))
            .collect::<Result<_, _>>()?;
        refs.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(refs)
    }

    /// Returns every ref with its history, in the order of their names, and why others cannot be read.
    pub fn readable_refs(&self) -> Result<(Vec<Ref>, Vec<RefsError>), RefsError> {
        let (mut refs, mut errors) = (Vec::new(), Vec::new());
        for result in self.each_ref()? {
            match result {
                Ok(document) => refs.push(Ref::from(document)),
                Err(error) => errors.push(error),
            }
        }
        refs.sort_by(|one, other| one.name.cmp(&other.name));
        Ok((refs, errors))
    }

    /// Reads every ref as of one moment; each may fail by itself.
    pub(crate) fn each_ref(&self) -> Result<Vec<Result<RefDocument, RefsError>>, RefsError> {
        let mut before = self.standing_journal()?;
        for _ in 0..LIST_TRIES {
            let refs = self.list_refs()?;
            let after = self.standing_journal()?;
            let state = |journal: &Option<change::Journal>| {
                journal.as_ref().map(|it| (it.generation, it.is_done()))
            };
            // A change of several refs that came or ended meanwhile may have been read by half.
            if state(&before) == state(&after) {
                return Ok(match after {
                    Some(journal) => overlaid(refs, &journal),
                    None => refs,
                });
            }
            before = after;
        }
        // Somebody changes refs without a pause: only waiting for a gap helps.
        let changing = self.lock_refs()?;
        let refs = self.list_refs()?;
        let journal = self.standing_journal()?;
        drop(changing);
        Ok(match journal {
            Some(journal) => overlaid(refs, &journal),
            None => refs,
        })
    }

    /// Reads the files of all refs.
    fn list_refs(&self) -> Result<Vec<Result<RefDocument, RefsError>>, RefsError> {
        let mut refs = Vec::new();
        let directory = self.path().join("refs");
        let paths = files_in(&directory).map_err(|error| match error {
            // No names at all is something else.
            RefsError::Read { path, source } if source.kind() == io::ErrorKind::NotFound => {
                let source = PartError::Missing(directory.clone()).into();
                RefsError::Read { path, source }
            }
            other => other,
        })?;
        for path in paths {
            match self.read_document(&path) {
                Ok(bytes) => refs.push(RefDocument::parse(&bytes, &path).and_then(|document| {
                    if path.file_name() != Some(file_name(&document.name).as_ref()) {
                        return Err(RefsError::Misplaced {
                            path: path.clone(),
                            found: document.name.to_string(),
                        });
                    }
                    Ok(document)
                })),
                // Removed since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => refs.push(Err(RefsError::Read { path, source })),
            }
        }
        Ok(refs)
    }

    /// Removes refs, durably; one that is not there is fine.
    ///
    /// On a full disk this is what makes room, with a gc after it: where there is none for a journal, the
    /// refs go one after another.
    pub fn remove_refs(&self, names: &[ImageName]) -> Result<(), RefsError> {
        let naming = self.lock_for_naming().map_err(|source| RefsError::Write {
            path: self.path().join("refs"),
            source,
        })?;
        RefChanges::new(names.iter().map(|name| (key(name), None)).collect()).remove(self)?;
        drop(naming);
        Ok(())
    }

    /// Keeps an image from garbage collection, durably, until [`Store::unpin`].
    ///
    /// A pin outlives its process: what holds the image (a mount, a deployment) does too.
    pub fn pin(&self, pin: &Pin) -> Result<(), RefsError> {
        self.write_pin(&PinDocument::new(pin, None))
    }

    fn write_pin(&self, document: &PinDocument) -> Result<(), RefsError> {
        let pin = &document.pin;
        let path = self.pin_path(&pin.name)?;
        let write = |source| RefsError::Write {
            path: path.clone(),
            source,
        };
        // A gc that runs right now may have decided already: wait until it is through.
        let naming = self.lock_for_naming().map_err(write)?;
        if !self.has(&Item::Image(pin.root.image)) {
            return Err(RefsError::NoImage(pin.root));
        }
        bedplate_sys::durable::replace(&path, &document.to_bytes(), 0o600).map_err(write)?;
        drop(naming);
        Ok(())
    }

    /// Gives up a pin; one that is not there is fine.
    pub fn unpin(&self, name: &str) -> Result<(), RefsError> {
        let path = self.pin_path(name)?;
        self.prepare_parts()
            .and_then(|()| bedplate_sys::durable::remove(&path))
            .map_err(|source| RefsError::Write { path, source })
    }

    /// Returns every pin, in the order of their names.
    pub fn pins(&self) -> Result<Vec<Pin>, RefsError> {
        let mut pins: Vec<Pin> = self.each_pin()?.into_iter().collect::<Result<_, _>>()?;
        pins.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(pins)
    }

    /// Reads every pin; each may fail by itself.
    pub(crate) fn each_pin(&self) -> Result<Vec<Result<Pin, RefsError>>, RefsError> {
        let documents = self.each_pin_document()?.into_iter();
        Ok(documents
            .map(|document| document.map(|document| document.pin))
            .collect())
    }

    fn each_pin_document(&self) -> Result<Vec<Result<PinDocument, RefsError>>, RefsError> {
        let paths = match files_in(&self.path().join("pins")) {
            // A copy of a store may have left out what was empty; who writes to it makes it again.
            Err(RefsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Vec::new());
            }
            other => other?,
        };
        let mut pins = Vec::with_capacity(paths.len());
        for path in paths {
            match self.read_document(&path) {
                Ok(bytes) => pins.push(pin_of(&bytes, path)),
                // Given up since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => pins.push(Err(RefsError::Read { path, source })),
            }
        }
        Ok(pins)
    }

    /// Reads a ref's or pin's file. Only one that is not there is `NotFound`: whatever else is in its
    /// place, a link that leads nowhere too, is an error, for gc must not take it for a name that is gone.
    fn read_document(&self, path: &Path) -> io::Result<Vec<u8>> {
        let below = path.strip_prefix(self.path()).map_err(io::Error::other)?;
        files::read_file(self.root(), below.as_os_str(), DOCUMENT_MAX)
    }

    fn pin_path(&self, name: &str) -> Result<PathBuf, RefsError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let good = (1..=FILE_NAME_MAX).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(plain)
            && Path::new(name).extension().is_none_or(|last| last != "new");
        if !good {
            return Err(RefsError::PinName(
                name.chars().take(FILE_NAME_MAX).collect(),
            ));
        }
        Ok(self.path().join("pins").join(name))
    }
}

fn pin_of(bytes: &[u8], path: PathBuf) -> Result<PinDocument, RefsError> {
    let document = PinDocument::parse(bytes, &path)?;
    // Whoever gives up one of the two would otherwise give up the other.
    if path.file_name() != Some(document.pin.name.as_ref()) {
        return Err(RefsError::Misplaced {
            path,
            found: document.pin.name,
        });
    }
    Ok(document)
}

/// Puts what a journal says in the place of what the refs' files say.
fn overlaid(
    refs: Vec<Result<RefDocument, RefsError>>,
    journal: &change::Journal,
) -> Vec<Result<RefDocument, RefsError>> {
    let untouched = |result: &Result<RefDocument, RefsError>| match result {
        Ok(document) => journal.document(&document.name).is_none(),
        Err(_) => true,
    };
    refs.into_iter()
        .filter(untouched)
        .chain(journal.documents().cloned().map(Ok))
        .collect()
}

/// Lists the files of a flat directory, without what a crash left half-written.
fn files_in(directory: &Path) -> Result<Vec<PathBuf>, RefsError> {
    let read = |source| RefsError::Read {
        path: directory.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path.extension().is_none_or(|extension| extension != "new") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_flat_and_short() {
        let name: ImageName = "10.0.2.100:5000/team/os:v1".parse().unwrap();
        assert_eq!(file_name(&name), "10.0.2.100%3A5000%2Fteam%2Fos%3Av1");
        let long: ImageName = format!("{}/os:v1", "a".repeat(240)).parse().unwrap();
        assert!(file_name(&long).len() <= FILE_NAME_MAX);
        let new: ImageName = "localhost/os:v1.new".parse().unwrap();
        assert_eq!(file_name(&new), "localhost%2Fos%3Av1%2Enew");
    }
}
