//! Names: one component of a path, and whole paths below a tree's root.
//!
//! Both are bytes: a Linux file system knows nothing of UTF-8.

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The longest name that Linux file systems hold, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// The name of one directory entry: 1 to 255 bytes, no slash, no NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Makes a name, or says why these bytes are none.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        match bytes {
            b"" => Err(NameError::Empty),
            b"." | b".." => Err(NameError::Dots),
            _ if bytes.len() > NAME_MAX => Err(NameError::TooLong(bytes.len())),
            _ if bytes.iter().any(|byte| matches!(byte, b'/' | 0)) => {
                Err(NameError::Forbidden(shown(bytes)))
            }
            _ => Ok(Self(bytes.into())),
        }
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the name for calls that take operating system strings.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

impl TryFrom<&str> for Name {
    type Error = NameError;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        Self::new(text.as_bytes())
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", shown(&self.0))
    }
}

/// Why some bytes are not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes.
    #[error("a name is empty")]
    Empty,
    /// `.` or `..`.
    #[error("`.` and `..` are no names")]
    Dots,
    /// Longer than [`NAME_MAX`].
    #[error("a name has {0} bytes; at most {NAME_MAX} are possible")]
    TooLong(usize),
    /// A slash or a NUL.
    #[error("the name `{0}` has a slash or a NUL in it")]
    Forbidden(String),
}

/// A path below a tree's root, as components; the root itself has none.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreePath(Vec<Name>);

impl TreePath {
    /// The path of the root.
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// Parses a path as it stands in archives and on command lines.
    ///
    /// A leading `/` or `./`, doubled slashes and `.` components are dropped; `..` is refused, because
    /// no honest archive needs it and every hostile one tries it.
    pub fn parse(bytes: &[u8]) -> Result<Self, NameError> {
        bytes
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .map(Name::new)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Returns the components, from the top.
    pub fn components(&self) -> &[Name] {
        &self.0
    }

    /// Returns the path of the entry `name` below this one.
    #[must_use]
    pub fn join(&self, name: &Name) -> Self {
        let mut components = Vec::with_capacity(self.0.len() + 1);
        components.extend_from_slice(&self.0);
        components.push(name.clone());
        Self(components)
    }

    /// Appends one component.
    pub fn push(&mut self, name: Name) {
        self.0.push(name);
    }

    /// Takes the last component off.
    pub fn pop(&mut self) -> Option<Name> {
        self.0.pop()
    }

    /// Splits into the parent's components and the last name, or returns `None` for the root.
    pub fn split_last(&self) -> Option<(&[Name], &Name)> {
        self.0.split_last().map(|(name, parent)| (parent, name))
    }

    /// Returns the bytes, joined with slashes and without a leading one: empty for the root.
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = self.0.iter().map(|name| name.as_bytes().len() + 1).sum();
        let mut bytes = Vec::with_capacity(length);
        for (position, name) in self.0.iter().enumerate() {
            if position > 0 {
                bytes.push(b'/');
            }
            bytes.extend_from_slice(name.as_bytes());
        }
        bytes
    }

    /// Returns whether this path is `other` or lies below it.
    pub fn starts_with(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }
}

impl TryFrom<&str> for TreePath {
    type Error = NameError;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        Self::parse(text.as_bytes())
    }
}

impl TryFrom<&Path> for TreePath {
    type Error = NameError;

    fn try_from(path: &Path) -> Result<Self, Self::Error> {
        Self::parse(path.as_os_str().as_bytes())
    }
}

impl FromIterator<Name> for TreePath {
    fn from_iter<I: IntoIterator<Item = Name>>(names: I) -> Self {
        Self(names.into_iter().collect())
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("/")?;
        f.write_str(&shown(&self.to_bytes()))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Makes bytes printable: what is not UTF-8, and control characters, as escapes (`\xff`, `\n`).
///
/// Every byte string of a stranger passes through here on its way to a terminal.
pub fn shown(bytes: &[u8]) -> String {
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && *byte != b'\\';
    if let Ok(text) = str::from_utf8(bytes)
        && bytes.iter().all(is_plain)
    {
        return text.to_owned();
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || character == '\\' {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}"); // a String never fails
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_lose_their_ornaments_and_keep_their_meaning() {
        for (text, wanted) in [
            ("", ""),
            ("/", ""),
            ("./", ""),
            ("./a//b/./c/", "a/b/c"),
            ("/etc/passwd", "etc/passwd"),
        ] {
            let path = TreePath::try_from(text).unwrap();
            assert_eq!(path.to_bytes(), wanted.as_bytes(), "{text}");
        }
    }

    #[test]
    fn no_path_leaves_its_root() {
        for text in ["..", "a/../b", "/../etc", "a/.."] {
            assert_eq!(TreePath::try_from(text), Err(NameError::Dots), "{text}");
        }
        assert!(TreePath::parse(b"a\0b").is_err());
        assert!(TreePath::parse(&[b'x'; 256]).is_err());
    }

    #[test]
    fn names_that_are_not_utf8_are_shown_with_escapes() {
        assert_eq!(Name::new(b"a\xff\n").unwrap().to_string(), "a\\xff\\n");
    }

    proptest! {
        #[test]
        fn a_path_prints_to_the_bytes_it_was_parsed_from(parts in proptest::collection::vec("[a-z]{1,5}", 0..6)) {
            let bytes = parts.join("/").into_bytes();
            prop_assert_eq!(TreePath::parse(&bytes).unwrap().to_bytes(), bytes);
        }
    }
}
