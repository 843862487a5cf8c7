//! Refs: image names that point at images. Pins: other holders, such as mounts and deployments.
//!
//! ```text
//! refs/localhost%2Fos%3Av1   {"format":"bedplate-ref","version":1,…,"name":…,"target":{…}}
//! pins/mount-7               {"format":"bedplate-pin","version":1,…,"name":…,"root":…}
//! ```
//!
//! Invariant: a ref or pin is replaced whole; what a later version added to it is kept.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bedplate_model::format::{FormatError, FormatHeader};
use bedplate_model::{ImageName, RootDigest, Sha256};
use bedplate_sys::files;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::store::Store;

const REF_FORMAT: &str = "bedplate-ref";
const PIN_FORMAT: &str = "bedplate-pin";
const VERSION: u32 = 1;
/// More bytes than any ref or pin has.
const DOCUMENT_MAX: u64 = 1 << 20;
/// Longer file names are replaced by a digest of the name: `NAME_MAX` is 255, and `.new` has to fit.
const FILE_NAME_MAX: usize = 200;

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

/// A ref.
pub(crate) type NamedTarget = (ImageName, RefTarget);

/// A ref as it lies on the disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RefDocument {
    #[serde(flatten)]
    header: FormatHeader,
    name: ImageName,
    target: RefTarget,
    /// What later versions keep beside the target (their history, for one).
    #[serde(flatten)]
    rest: Map<String, Value>,
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

#[derive(Serialize, Deserialize)]
struct PinDocument {
    #[serde(flatten)]
    header: FormatHeader,
    #[serde(flatten)]
    pin: Pin,
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
        source: serde_json::Error,
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

impl RefDocument {
    /// Makes the document that replaces `old` (the bytes of the ref's file, if there is one).
    pub(crate) fn replacing(old: Option<&[u8]>, name: &ImageName, target: &RefTarget) -> Self {
        let mut header = FormatHeader::new(REF_FORMAT, VERSION);
        let mut rest = Map::new();
        if let Some(old) = old.and_then(|bytes| serde_json::from_slice::<Self>(bytes).ok()) {
            header.optional = old.header.optional;
            rest = old.rest;
        }
        Self {
            header,
            name: name.clone(),
            target: target.clone(),
            rest,
        }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes =
            serde_json::to_vec_pretty(self).expect("names and digests are valid JSON texts");
        bytes.push(b'\n');
        bytes
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self, RefsError> {
        let document: Self =
            serde_json::from_slice(bytes).map_err(|source| RefsError::Damaged {
                path: path.to_owned(),
                source,
            })?;
        document
            .header
            .check(REF_FORMAT, VERSION, &[])
            .map_err(|source| RefsError::Format {
                path: path.to_owned(),
                source,
            })?;
        Ok(document)
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
    /// A name with a digest finds any ref whose manifest has it, its own repository's first.
    pub fn resolve(&self, name: &ImageName) -> Result<Option<RefTarget>, RefsError> {
        let Some(digest) = name.digest() else {
            return self.read_ref(&key(name));
        };
        let mut found = None;
        for (other, target) in self.refs()? {
            if target.manifest == Some(digest) {
                if (other.host(), other.repository()) == (name.host(), name.repository()) {
                    return Ok(Some(target));
                }
                found = Some(target);
            }
        }
        Ok(found)
    }

    /// Returns every ref, in the order of their names.
    pub fn refs(&self) -> Result<Vec<(ImageName, RefTarget)>, RefsError> {
        let mut refs = Vec::new();
        for result in self.each_ref()? {
            refs.push(result?);
        }
        refs.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(refs)
    }

    /// Reads every ref file; each may fail by itself.
    pub(crate) fn each_ref(&self) -> Result<Vec<Result<NamedTarget, RefsError>>, RefsError> {
        let mut refs = Vec::new();
        for path in files_in(&self.path().join("refs"))? {
            match self.read_document(&path) {
                Ok(bytes) => refs.push(RefDocument::parse(&bytes, &path).and_then(|document| {
                    if path.file_name() != Some(file_name(&document.name).as_ref()) {
                        return Err(RefsError::Misplaced {
                            path: path.clone(),
                            found: document.name.to_string(),
                        });
                    }
                    Ok((document.name, document.target))
                })),
                // Removed since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => refs.push(Err(RefsError::Read { path, source })),
            }
        }
        Ok(refs)
    }

    fn read_ref(&self, key: &ImageName) -> Result<Option<RefTarget>, RefsError> {
        let path = self.path().join("refs").join(file_name(key));
        match self.read_document(&path) {
            Ok(bytes) => {
                let document = RefDocument::parse(&bytes, &path)?;
                if document.name != *key {
                    return Err(RefsError::Misplaced {
                        path,
                        found: document.name.to_string(),
                    });
                }
                Ok(Some(document.target))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RefsError::Read { path, source }),
        }
    }

    /// Keeps an image from garbage collection, durably, until [`Store::unpin`].
    ///
    /// A pin outlives its process: what holds the image (a mount, a deployment) does too.
    pub fn pin(&self, pin: &Pin) -> Result<(), RefsError> {
        let path = self.pin_path(&pin.name)?;
        let write = |source| RefsError::Write {
            path: path.clone(),
            source,
        };
        // A gc that runs right now may have decided already: wait until it is through.
        let naming = self.lock_for_naming().map_err(write)?;
        if !self.has(&crate::Item::Image(pin.root.image)) {
            return Err(RefsError::NoImage(pin.root));
        }
        let document = PinDocument {
            header: FormatHeader::new(PIN_FORMAT, VERSION),
            pin: pin.clone(),
        };
        let mut bytes =
            serde_json::to_vec_pretty(&document).expect("names and digests are valid JSON texts");
        bytes.push(b'\n');
        bedplate_sys::durable::replace(&path, &bytes, 0o600).map_err(write)?;
        drop(naming);
        Ok(())
    }

    /// Gives up a pin; one that is not there is fine.
    pub fn unpin(&self, name: &str) -> Result<(), RefsError> {
        let path = self.pin_path(name)?;
        bedplate_sys::durable::remove(&path).map_err(|source| RefsError::Write { path, source })
    }

    /// Returns every pin, in the order of their names.
    pub fn pins(&self) -> Result<Vec<Pin>, RefsError> {
        let mut pins = Vec::new();
        for path in files_in(&self.path().join("pins"))? {
            let bytes = match self.read_document(&path) {
                Ok(bytes) => bytes,
                // Given up since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(RefsError::Read { path, source }),
            };
            let document: PinDocument = match serde_json::from_slice(&bytes) {
                Ok(document) => document,
                Err(source) => return Err(RefsError::Damaged { path, source }),
            };
            if let Err(source) = document.header.check(PIN_FORMAT, VERSION, &[]) {
                return Err(RefsError::Format { path, source });
            }
            pins.push(document.pin);
        }
        pins.sort_by(|one, other| one.name.cmp(&other.name));
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
    }

    #[test]
    fn what_a_later_version_added_to_a_ref_is_kept() {
        let name: ImageName = "os:v1".parse().unwrap();
        let root = format!("exact-1/v1-sha256-12:{}", "0".repeat(64));
        let later = format!(
            r#"{{"format":"bedplate-ref","version":1,"optional":["history"],
                 "name":"{name}","target":{{"root":"{root}","created":1}},"history":[1,2]}}"#
        );
        let target = RefTarget {
            root: root.parse().unwrap(),
            manifest: None,
            config: None,
            created: 7,
            signature: None,
            policy: None,
        };
        let document = RefDocument::replacing(Some(later.as_bytes()), &name, &target);
        let text = String::from_utf8(document.to_bytes()).unwrap();
        assert!(text.contains("\"history\""), "{text}");
        let again = RefDocument::parse(text.as_bytes(), Path::new("x")).unwrap();
        assert_eq!(again.target, target);
        assert_eq!(again.rest["history"], serde_json::json!([1, 2]));
    }
}
