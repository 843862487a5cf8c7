//! The documents of refs and pins, as they lie on the disk.
//!
//! ```text
//! {"format":"bedplate-ref","version":1,"optional":["history","check"],"name":…,
//!  "target":{…,"check":"sha256:…"}, where the name points now; the check of the whole file
//!  "history":[{…},{…}]}             where it pointed before, the newest first
//! ```
//!
//! The check is the SHA-256 of the file's bytes with zeros for the check's own digits. It stands inside
//! `target` because whoever replaces a target without knowing of checks leaves it out there, while members
//! beside it stay: so no ref has the check of another.
//!
//! Invariants: a history has no two neighbours that are the same image, and at most [`HISTORY_MAX`]
//! entries; members that this version does not know stay; a file with a wrong check is damaged.

use std::path::Path;

use bedplate_model::format::FormatHeader;
use bedplate_model::{ImageName, Sha256};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{DocumentError, MountHold, Pin, Ref, RefTarget, RefsError};
use crate::store::sha256;

const REF_FORMAT: &str = "bedplate-ref";
const PIN_FORMAT: &str = "bedplate-pin";
const VERSION: u32 = 1;
/// What an older version may pass over: it keeps the history, and does not add to it.
const HISTORY_FEATURE: &str = "history";
/// What an older version may pass over, too: the check in a target.
const CHECK_FEATURE: &str = "check";
/// The check until it is known.
const NO_CHECK: Sha256 = Sha256([0; 32]);
/// The most earlier images that a name remembers: reading and writing a ref stay short, whatever happens.
pub const HISTORY_MAX: usize = 100;

/// A ref as it lies on the disk, without its check; so a journal has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RefDocument {
    #[serde(flatten)]
    header: FormatHeader,
    pub(crate) name: ImageName,
    pub(crate) target: RefTarget,
    /// Where the name pointed before, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) history: Vec<RefTarget>,
    /// What later versions keep beside these.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A ref as it is written, with its check.
#[derive(Serialize)]
struct CheckedRef<'a> {
    #[serde(flatten)]
    header: &'a FormatHeader,
    name: &'a ImageName,
    target: CheckedTarget<'a>,
    #[serde(skip_serializing_if = "<[RefTarget]>::is_empty")]
    history: &'a [RefTarget],
    #[serde(flatten)]
    rest: &'a Map<String, Value>,
}

#[derive(Serialize)]
struct CheckedTarget<'a> {
    #[serde(flatten)]
    target: &'a RefTarget,
    check: Sha256,
}

/// What of a ref says whether the rest is as it was written.
#[derive(Deserialize)]
struct RefCheck {
    target: TargetCheck,
}

#[derive(Deserialize)]
struct TargetCheck {
    check: Option<Sha256>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct PinDocument {
    #[serde(flatten)]
    header: FormatHeader,
    #[serde(flatten)]
    pub(super) pin: Pin,
    /// Of a mount: what it takes to know when it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mount: Option<MountHold>,
}

impl RefDocument {
    /// Makes the document that replaces `old` (the bytes of the ref's file, if there is one).
    ///
    /// What the name pointed at goes into the history, unless it is the very same image.
    pub(crate) fn replacing(old: Option<&[u8]>, name: &ImageName, target: &RefTarget) -> Self {
        let mut document = Self {
            header: FormatHeader::new(REF_FORMAT, VERSION),
            name: name.clone(),
            target: target.clone(),
            history: Vec::new(),
            rest: Map::new(),
        };
        // A damaged ref is replaced by a whole one; nothing of it can be kept.
        if let Some(old) = old.and_then(|bytes| Self::read(bytes).ok()) {
            document.header.optional = old.header.optional;
            document.rest = old.rest;
            document.history = old.history;
            if !old.target.is_same_image(target) {
                document.history.insert(0, old.target);
            }
        }
        document.history.truncate(HISTORY_MAX);
        document.announce();
        document
    }

    /// Makes the document of a name that is not there, with what it points at and remembers elsewhere.
    pub(crate) fn restored(known: &Ref) -> Self {
        let mut document = Self::replacing(None, &known.name, &known.target);
        document.history.clone_from(&known.history);
        document.history.truncate(HISTORY_MAX);
        document.announce();
        document
    }

    /// Forgets entries of the history, by their positions.
    pub(crate) fn forget(&mut self, gone: impl Fn(usize) -> bool) {
        let mut position = 0..;
        self.history
            .retain(|_| position.next().is_none_or(|at| !gone(at)));
        self.announce();
    }

    /// Says which features the document has.
    fn announce(&mut self) {
        self.header
            .optional
            .retain(|feature| feature != HISTORY_FEATURE && feature != CHECK_FEATURE);
        if !self.history.is_empty() {
            self.header.optional.push(HISTORY_FEATURE.to_owned());
        }
        self.header.optional.push(CHECK_FEATURE.to_owned());
    }

    /// Returns the bytes of the ref's file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        with_check(|check| {
            to_bytes(&CheckedRef {
                header: &self.header,
                name: &self.name,
                target: CheckedTarget {
                    target: &self.target,
                    check,
                },
                history: &self.history,
                rest: &self.rest,
            })
        })
    }

    pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Self, RefsError> {
        let document = Self::read(bytes).map_err(|source| damaged(path, source))?;
        check(&document.header, REF_FORMAT, path)?;
        Ok(document)
    }

    /// Reads a document that is as it was written, of whatever format it says it is.
    fn read(bytes: &[u8]) -> Result<Self, DocumentError> {
        let document: Self = serde_json::from_slice(bytes)?;
        let RefCheck { target } = serde_json::from_slice(bytes)?;
        verify(bytes, target.check)?;
        Ok(document)
    }
}

/// Writes a document with its check: once without, and again when it is known.
pub(super) fn with_check(write: impl Fn(Sha256) -> Vec<u8>) -> Vec<u8> {
    write(sha256(&write(NO_CHECK)))
}

/// Compares a document's check, where it has one, with its bytes.
pub(super) fn verify(bytes: &[u8], check: Option<Sha256>) -> Result<(), DocumentError> {
    let Some(check) = check else {
        return Ok(()); // an older version wrote it
    };
    let digits = check.to_hex().into_bytes();
    let mut blank = bytes.to_vec();
    let mut at = 0;
    while let Some(found) = blank[at..]
        .windows(digits.len())
        .position(|text| text == digits)
    {
        blank[at + found..][..digits.len()].fill(b'0');
        at += found + digits.len();
    }
    if sha256(&blank) == check {
        Ok(())
    } else {
        Err(DocumentError::Check)
    }
}

impl PinDocument {
    pub(super) fn new(pin: &Pin, mount: Option<&MountHold>) -> Self {
        Self {
            header: FormatHeader::new(PIN_FORMAT, VERSION),
            pin: pin.clone(),
            mount: mount.cloned(),
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        to_bytes(self)
    }

    pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Self, RefsError> {
        let document: Self = parse(bytes, path)?;
        check(&document.header, PIN_FORMAT, path)?;
        Ok(document)
    }
}

pub(super) fn to_bytes(document: &impl Serialize) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec_pretty(document).expect("names and digests are valid JSON texts");
    bytes.push(b'\n');
    bytes
}

pub(super) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], path: &Path) -> Result<T, RefsError> {
    serde_json::from_slice(bytes).map_err(|source| damaged(path, source.into()))
}

pub(super) fn damaged(path: &Path, source: DocumentError) -> RefsError {
    RefsError::Damaged {
        path: path.to_owned(),
        source,
    }
}

pub(super) fn check(
    header: &FormatHeader,
    format: &'static str,
    path: &Path,
) -> Result<(), RefsError> {
    header
        .check(format, VERSION, &[])
        .map_err(|source| RefsError::Format {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(digit: u8, created: i64) -> RefTarget {
        let root = format!("exact-1/v1-sha256-12:{}", digit.to_string().repeat(64));
        RefTarget::new(root.parse().unwrap(), created)
    }

    #[test]
    fn what_a_later_version_added_to_a_ref_is_kept() {
        let name: ImageName = "os:v1".parse().unwrap();
        let root = target(0, 1).root;
        let later = format!(
            r#"{{"format":"bedplate-ref","version":1,"optional":["colours"],
                 "name":"{name}","target":{{"root":"{root}","created":1}},"colours":[1,2]}}"#
        );
        let document = RefDocument::replacing(Some(later.as_bytes()), &name, &target(1, 7));
        let again = RefDocument::parse(&document.to_bytes(), Path::new("x")).unwrap();
        assert_eq!(again.target, target(1, 7));
        assert_eq!(again.rest["colours"], serde_json::json!([1, 2]));
        assert_eq!(
            again.header.optional,
            ["colours", HISTORY_FEATURE, CHECK_FEATURE]
        );
    }

    #[test]
    fn a_name_remembers_the_newest_images_and_none_twice_in_a_row() {
        let name: ImageName = "os:v1".parse().unwrap();
        let mut bytes = None;
        for round in 0..150 {
            // Every image is set twice: the second time is no event.
            let target = target((round / 2 % 10) as u8, round);
            bytes = Some(RefDocument::replacing(bytes.as_deref(), &name, &target).to_bytes());
        }
        let document = RefDocument::parse(&bytes.unwrap(), Path::new("x")).unwrap();
        assert_eq!(document.target.created, 149);
        assert_eq!(document.history.len(), 74);
        assert_eq!(document.history[0].created, 147);
        let mut short = document.clone();
        short.forget(|at| at == 0 || at > 3);
        assert_eq!(short.history, document.history[1..4]);
        short.forget(|_| true);
        assert_eq!(short.header.optional, [CHECK_FEATURE]);
    }

    #[test]
    fn no_flipped_bit_changes_what_a_ref_says() {
        let name: ImageName = "os:v1".parse().unwrap();
        let first = RefDocument::replacing(None, &name, &target(1, 1)).to_bytes();
        let document = RefDocument::replacing(Some(&first), &name, &target(2, 2));
        let bytes = document.to_bytes();
        let read = |bytes: &[u8]| RefDocument::parse(bytes, Path::new("x"));
        assert_eq!(read(&bytes).unwrap(), document);
        let mut unnoticed = 0;
        for at in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            if let Ok(found) = read(&flipped) {
                // The word `check` itself: what is left is a ref without one.
                assert_eq!(
                    (found.target, found.history),
                    (document.target.clone(), document.history.clone())
                );
                unnoticed += 1;
            }
        }
        assert!(unnoticed <= 8 * "check".len(), "{unnoticed}");
    }

    #[test]
    fn a_version_without_checks_leaves_none_of_another_ref() {
        // As one does: it knows the members of a target, and keeps those of the document.
        let name: ImageName = "os:v1".parse().unwrap();
        let bytes = RefDocument::replacing(None, &name, &target(1, 1)).to_bytes();
        let mut older: RefDocument = serde_json::from_slice(&bytes).unwrap();
        older.target = target(2, 2);
        let bytes = to_bytes(&older);
        assert_eq!(RefDocument::parse(&bytes, Path::new("x")).unwrap(), older);
    }
}
