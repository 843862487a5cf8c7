//! What a person writes for an image that a store has: its name, or its digest.
//!
//! ```text
//! exact-1/v1-sha256-12:0123…            the root digest, as every verb prints it
//! exact-1/v1-sha256-12:0123  sha256:0123  0123   the beginning of a root or manifest digest
//! [HOST/]REPOSITORY[:TAG][@DIGEST]      a name
//! [HOST/]REPOSITORY[:TAG]~N             what the name pointed at, so many images back
//! ```
//!
//! Invariant: a word of four to 64 hexadecimal digits can be a name or a digest; the store decides, and
//! a name that is there goes first, as in git.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Algorithm, RootDigest};
use crate::image::{ImageName, ParseImageNameError, Revision};

/// The fewest digits that stand for a digest: as in git.
const DIGITS_MIN: usize = 4;

/// An image, as a person names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSelector {
    /// The image with this root digest.
    Root(RootDigest),
    /// The one image whose root or manifest digest begins with these hexadecimal digits.
    Prefix(String),
    /// The image of this name, or an earlier one of it; or, where there is none, as
    /// [`ImageSelector::Prefix`].
    Name(Revision),
}

impl ImageSelector {
    /// Returns the hexadecimal digits that a digest may begin with.
    pub fn digest_prefix(&self) -> Option<&str> {
        match self {
            Self::Root(_) => None,
            Self::Prefix(digits) => Some(digits),
            Self::Name(revision) => {
                let name = revision.name();
                let digits = name.repository();
                let bare = revision.back().is_none()
                    && name.is_local()
                    && name.tag() == Some("latest")
                    && name.digest().is_none();
                (bare && is_prefix(digits)).then_some(digits)
            }
        }
    }
}

impl From<ImageName> for ImageSelector {
    fn from(name: ImageName) -> Self {
        Self::Name(name.into())
    }
}

impl FromStr for ImageSelector {
    type Err = ParseImageNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(root) = text.parse() {
            return Ok(Self::Root(root));
        }
        if let Some((kind, digits)) = text.rsplit_once(':')
            && is_prefix(digits)
            && (kind == "sha256" || is_root_digest_kind(kind))
        {
            return Ok(Self::Prefix(digits.to_owned()));
        }
        text.parse().map(Self::Name)
    }
}

/// Returns whether a whole root digest could follow.
fn is_root_digest_kind(text: &str) -> bool {
    [Algorithm::Sha256, Algorithm::Sha512]
        .into_iter()
        .map(|algorithm| "0".repeat(2 * algorithm.digest_len()))
        .any(|digits| format!("{text}:{digits}").parse::<RootDigest>().is_ok())
}

fn is_prefix(text: &str) -> bool {
    let digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    (DIGITS_MIN..=128).contains(&text.len()) && text.chars().all(digit)
}

impl fmt::Display for ImageSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(root) => root.fmt(f),
            Self::Prefix(digits) => f.write_str(digits),
            Self::Name(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_verbs_print_is_read_as_what_it_is() {
        let hex = "0123456789abcdef".repeat(4);
        for (text, root, prefix) in [
            (format!("exact-1/v1-sha256-12:{hex}"), true, None),
            (format!("bootc-1/v0-sha512-12:{hex}{hex}"), true, None),
            ("exact-1/v1-sha256-12:0123".to_owned(), false, Some("0123")),
            (format!("sha256:{hex}"), false, Some(&*hex)),
            (hex.clone(), false, Some(&*hex)),
            ("0123456789ab".to_owned(), false, Some("0123456789ab")),
            ("012".to_owned(), false, None),
            ("cafe:v1".to_owned(), false, None),
            ("team/cafe".to_owned(), false, None),
            ("os".to_owned(), false, None),
            ("exact-1/v9:0123".to_owned(), false, None),
        ] {
            let selector: ImageSelector = text.parse().unwrap();
            assert_eq!(matches!(selector, ImageSelector::Root(_)), root, "{text}");
            assert_eq!(selector.digest_prefix(), prefix, "{text}");
        }
    }
}
