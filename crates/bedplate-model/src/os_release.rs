//! What a system says about itself: `os-release(5)`.
//!
//! Invariant: whatever stands in the file, parsing gives a result; lines that are no assignment of
//! that format are passed over, as the specification asks.

use std::collections::BTreeMap;

/// Where the file lies below an image's root, the first that exists counts.
pub const PATHS: [&str; 2] = ["etc/os-release", "usr/lib/os-release"];

/// The most bytes of the file that are read.
pub const SIZE_MAX: u64 = 64 << 10;

/// The fields of an `os-release` file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OsRelease {
    fields: BTreeMap<String, String>,
}

impl OsRelease {
    /// Parses the file.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let fields = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .filter(|(key, _)| is_key(key))
            .map(|(key, value)| (key.to_owned(), unquote(value)))
            .collect();
        Self { fields }
    }

    /// Returns a field that is set to something.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Returns what people call the system: `PRETTY_NAME`, else `NAME`, else `Linux`.
    pub fn title(&self) -> &str {
        self.get("PRETTY_NAME")
            .or_else(|| self.get("NAME"))
            .unwrap_or("Linux")
    }

    /// Returns the version of the image: `IMAGE_VERSION`, else `OSTREE_VERSION`, else `VERSION_ID`.
    pub fn version(&self) -> Option<&str> {
        ["IMAGE_VERSION", "OSTREE_VERSION", "VERSION_ID"]
            .into_iter()
            .find_map(|key| self.get(key))
    }
}

fn is_key(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

/// Undoes the quoting of a shell word, without any expansion.
fn unquote(value: &str) -> String {
    let value = value.trim();
    let inner = |quote: char| {
        value
            .strip_prefix(quote)
            .and_then(|rest| rest.strip_suffix(quote))
    };
    if let Some(literal) = inner('\'') {
        return literal.to_owned();
    }
    let mut text = String::with_capacity(value.len());
    let mut characters = inner('"').unwrap_or(value).chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.extend(characters.next()),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quoting_is_that_of_a_shell_and_the_rest_is_passed_over() {
        let release = OsRelease::parse(
            b"# comment\nPRETTY_NAME=\"Debian \\\"12\\\"\"\nNAME='a b'\nVERSION_ID=12\nlower=1\nnonsense\nID=\n",
        );
        assert_eq!(release.title(), "Debian \"12\"");
        assert_eq!(release.get("NAME"), Some("a b"));
        assert_eq!(release.version(), Some("12"));
        assert_eq!(release.get("ID"), None);
        assert_eq!(release.get("lower"), None);
    }

    #[test]
    fn the_version_of_the_image_goes_before_that_of_the_distribution() {
        let release = OsRelease::parse(b"VERSION_ID=12\nIMAGE_VERSION=2026.11\n");
        assert_eq!(release.version(), Some("2026.11"));
        assert_eq!(OsRelease::parse(b"").title(), "Linux");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = OsRelease::parse(&bytes);
        }
    }
}
