//! The documents of refs and pins, as they lie on the disk.
//!
//! ```text
//! {"format":"bedplate-ref","version":1,"optional":["history"],"name":…,
//!  "target":{…},                    where the name points now
//!  "history":[{…},{…}]}             where it pointed before, the newest first
//! ```
//!
//! Invariants: a history has no two neighbours that are the same image, and at most [`HISTORY_MAX`]
//! entries; members that this version does not know stay.

use std::path::Path;

use bedplate_model::ImageName;
use bedplate_model::format::FormatHeader;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Pin, RefTarget, RefsError};

const REF_FORMAT: &str = "bedplate-ref";
const PIN_FORMAT: &str = "bedplate-pin";
const VERSION: u32 = 1;
/// What an older version may pass over: it keeps the history, and does not add to it.
const HISTORY_FEATURE: &str = "history";
/// The most earlier images that a name remembers: reading and writing a ref stay short, whatever happens.
pub const HISTORY_MAX: usize = 100;

/// A ref as it lies on the disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
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

#[derive(Serialize, Deserialize)]
pub(super) struct PinDocument {
    #[serde(flatten)]
    header: FormatHeader,
    #[serde(flatten)]
    pub(super) pin: Pin,
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
        if let Some(old) = old.and_then(|bytes| serde_json::from_slice::<Self>(bytes).ok()) {
            document.header.optional = old.header.optional;
            document.rest = old.rest;
            document.history = old.history;
            if !old.target.is_same_image(target) {
                document.history.insert(0, old.target);
            }
        }
        document.history.truncate(HISTORY_MAX);
        document.announce_history();
        document
    }

    /// Forgets entries of the history, by their positions.
    pub(crate) fn forget(&mut self, gone: impl Fn(usize) -> bool) {
        let mut position = 0..;
        self.history
            .retain(|_| position.next().is_none_or(|at| !gone(at)));
        self.announce_history();
    }

    fn announce_history(&mut self) {
        self.header
            .optional
            .retain(|feature| feature != HISTORY_FEATURE);
        if !self.history.is_empty() {
            self.header.optional.push(HISTORY_FEATURE.to_owned());
        }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        to_bytes(self)
    }

    pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Self, RefsError> {
        let document: Self = parse(bytes, path)?;
        check(&document.header, REF_FORMAT, path)?;
        Ok(document)
    }
}

impl PinDocument {
    pub(super) fn new(pin: &Pin) -> Self {
        Self {
            header: FormatHeader::new(PIN_FORMAT, VERSION),
            pin: pin.clone(),
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
    serde_json::from_slice(bytes).map_err(|source| RefsError::Damaged {
        path: path.to_owned(),
        source,
    })
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
        assert_eq!(again.header.optional, ["colours", HISTORY_FEATURE]);
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
        assert!(short.header.optional.is_empty());
    }
}
