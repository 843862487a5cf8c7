//! Boot entries: the text of one, and the name of its file.
//!
//! ```text
//! bedplate-<D>.conf             D is proven (or the machine's only deployment): no counter
//! bedplate-<B>-<D>+3.conf       D is on trial with three tries; B boots when none is left
//! bedplate-<B>-<D>+2-1.conf     the loader has tried it once
//! ```
//!
//! Invariant: names print as they parse, digit widths included, and so do entries; keys that are not
//! ours are kept.

use std::fmt;
use std::str::FromStr;

use bedplate_model::record::DeploymentId;

/// The sort key of every entry of ours: they stand together, the newest first.
pub const SORT_KEY: &str = "bedplate";
/// The longest entry that is read.
pub const ENTRY_MAX: usize = 64 << 10;

/// A boot entry of type 1 of the Boot Loader Specification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootEntry {
    /// What a menu shows.
    pub title: Option<String>,
    /// What entries of one sort key are ordered by, the largest first.
    pub version: Option<String>,
    /// What entries are ordered by at first.
    pub sort_key: Option<String>,
    /// The kernel's path on the boot partition.
    pub linux: Option<String>,
    /// Paths of initramfs images on the boot partition.
    pub initrd: Vec<String>,
    /// Pieces of the command line; the loader joins them with spaces.
    pub options: Vec<String>,
    /// Keys that mean nothing here, in their order.
    pub other: Vec<(String, String)>,
}

impl BootEntry {
    /// Parses an entry. Comments and empty lines are dropped, of a key that may stand once the last counts.
    pub fn parse(text: &str) -> Result<Self, ParseEntryError> {
        if text.len() > ENTRY_MAX {
            return Err(ParseEntryError::Long);
        }
        let mut entry = Self::default();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, value) = line
                .split_once(char::is_whitespace)
                .ok_or_else(|| ParseEntryError::NoValue(shown(line)))?;
            let value = value.trim().to_owned();
            match key {
                "title" => entry.title = Some(value),
                "version" => entry.version = Some(value),
                "sort-key" => entry.sort_key = Some(value),
                "linux" => entry.linux = Some(value),
                "initrd" => entry.initrd.push(value),
                "options" => entry.options.push(value),
                _ => entry.other.push((key.to_owned(), value)),
            }
        }
        Ok(entry)
    }

    /// Returns the whole command line.
    pub fn command_line(&self) -> String {
        self.options.join(" ")
    }
}

impl fmt::Display for BootEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            title,
            version,
            sort_key,
            linux,
            initrd,
            options,
            other,
        } = self;
        for (key, value) in [
            ("title", title),
            ("version", version),
            ("sort-key", sort_key),
            ("linux", linux),
        ] {
            if let Some(value) = value {
                writeln!(f, "{key} {}", one_line(value))?;
            }
        }
        for (key, values) in [("initrd", initrd), ("options", options)] {
            for value in values {
                writeln!(f, "{key} {}", one_line(value))?;
            }
        }
        for (key, value) in other {
            writeln!(f, "{key} {}", one_line(value))?;
        }
        Ok(())
    }
}

/// Makes one line of a text: a title comes from an image and must not bring keys of its own.
pub(crate) fn one_line(text: &str) -> String {
    text.split(char::is_control).collect::<Vec<_>>().join(" ")
}

/// Why a text is no boot entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseEntryError {
    /// A key stands alone.
    #[error("the boot entry's key `{0}` has no value")]
    NoValue(String),
    /// Longer than any entry.
    #[error("the boot entry has more than {ENTRY_MAX} bytes")]
    Long,
}

/// How often an entry was tried and may still be: what stands in its file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    /// Tries left.
    pub left: u32,
    /// Tries done; `None` before the first one.
    pub done: Option<u32>,
    /// How many digits `left` and `done` are printed with at least: the loader keeps them.
    pub widths: (u8, u8),
}

impl Tries {
    /// Returns the counter of an entry that was never tried.
    pub const fn new(left: u32) -> Self {
        Self {
            left,
            done: None,
            widths: (1, 1),
        }
    }

    /// Counts one try, as the loader does before it starts the entry; with none left nothing changes.
    #[must_use]
    pub fn tried(self) -> Self {
        let Some(left) = self.left.checked_sub(1) else {
            return self;
        };
        // The loader does not let a number grow over its digits.
        let most = 10u32.saturating_pow(self.widths.1.into()).saturating_sub(1);
        let done = self.done.unwrap_or(0).saturating_add(1).min(most.max(1));
        Self {
            left,
            done: Some(done),
            ..self
        }
    }
}

impl fmt::Display for Tries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (left_width, done_width) = self.widths;
        write!(f, "+{:0width$}", self.left, width = left_width.into())?;
        match self.done {
            None => Ok(()),
            Some(done) => write!(f, "-{done:0width$}", width = done_width.into()),
        }
    }
}

/// The name of an entry's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryName {
    /// The deployment that boots when this one has no tries left; `None` where it is not on trial.
    pub base: Option<DeploymentId>,
    /// The deployment that it boots.
    pub deployment: DeploymentId,
    /// The counter; `None` where nothing is counted.
    pub tries: Option<Tries>,
}

impl EntryName {
    /// Returns the name of the entry of a proven deployment.
    pub const fn proven(deployment: DeploymentId) -> Self {
        Self {
            base: None,
            deployment,
            tries: None,
        }
    }

    /// Returns the name of an entry on trial that was never tried.
    pub const fn trial(base: DeploymentId, deployment: DeploymentId, tries: u32) -> Self {
        Self {
            base: Some(base),
            deployment,
            tries: Some(Tries::new(tries)),
        }
    }

    /// Returns whether the loader still takes it before entries without tries.
    pub fn is_hopeful(&self) -> bool {
        self.tries.is_none_or(|tries| tries.left > 0)
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bedplate-")?;
        if let Some(base) = self.base {
            write!(f, "{base}-")?;
        }
        write!(f, "{}", self.deployment)?;
        if let Some(tries) = self.tries {
            write!(f, "{tries}")?;
        }
        f.write_str(".conf")
    }
}

impl FromStr for EntryName {
    type Err = ParseEntryNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let stem = text.strip_prefix("bedplate-")?.strip_suffix(".conf")?;
            let (ids, tries) = match stem.split_once('+') {
                None => (stem, None),
                Some((ids, counter)) => (ids, Some(parse_tries(counter)?)),
            };
            let (base, deployment) = match ids.split_once('-') {
                None => (None, ids),
                Some((base, deployment)) => (Some(base.parse().ok()?), deployment),
            };
            Some(Self {
                base,
                deployment: deployment.parse().ok()?,
                tries,
            })
        };
        parse().ok_or_else(|| ParseEntryNameError(shown(text)))
    }
}

fn parse_tries(text: &str) -> Option<Tries> {
    let number = |digits: &str| -> Option<(u32, u8)> {
        let plain = (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        Some((
            plain.then(|| digits.parse().ok())??,
            digits.len().try_into().ok()?,
        ))
    };
    match text.split_once('-') {
        None => {
            let (left, width) = number(text)?;
            Some(Tries {
                left,
                done: None,
                widths: (width, 1),
            })
        }
        Some((left, done)) => {
            let ((left, left_width), (done, done_width)) = (number(left)?, number(done)?);
            Some(Tries {
                left,
                done: Some(done),
                widths: (left_width, done_width),
            })
        }
    }
}

/// The name of a file that is no entry of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a boot entry of ours")]
pub struct ParseEntryNameError(String);

fn shown(text: &str) -> String {
    bedplate_model::name::shown(text.as_bytes())
        .chars()
        .take(80)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_print_as_they_parse() {
        for text in [
            "bedplate-01020304.conf",
            "bedplate-01020304-0a0b0c0d+3.conf",
            "bedplate-01020304-0a0b0c0d+2-1.conf",
            "bedplate-01020304-0a0b0c0d+09-01.conf",
        ] {
            assert_eq!(text.parse::<EntryName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn names_of_others_are_not_ours() {
        for text in [
            "bedplate-.conf",
            "bedplate-01020304",
            "bedplate-01020304+.conf",
            "bedplate-01020304+-1.conf",
            "bedplate-01020304+1-.conf",
            "bedplate-01020304+9999999999.conf",
            "bedplate-01020304-.conf",
            "bedplate-0102030g.conf",
            "debian-01020304.conf",
            "bedplate-01020304.conf.new",
        ] {
            assert!(text.parse::<EntryName>().is_err(), "{text}");
        }
    }

    #[test]
    fn tries_are_counted_as_the_loader_counts_them() {
        let names = |first: &str| {
            let mut name: EntryName = format!("bedplate-00000001-00000002{first}.conf")
                .parse()
                .unwrap();
            (0..4)
                .map(|_| {
                    name.tries = name.tries.map(Tries::tried);
                    name.tries.unwrap().to_string()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(names("+3"), ["+2-1", "+1-2", "+0-3", "+0-3"]);
        assert_eq!(names("+10"), ["+09-1", "+08-2", "+07-3", "+06-4"]);
        assert_eq!(names("+3-9"), ["+2-9", "+1-9", "+0-9", "+0-9"]);
    }

    #[test]
    fn unknown_keys_are_kept() {
        let text = "# made by hand\ntitle  An OS\n\nlinux /vmlinuz\ninitrd /a\ninitrd /b\n\
                    options root=x\noptions quiet\narchitecture x64\n";
        let entry = BootEntry::parse(text).unwrap();
        assert_eq!(entry.command_line(), "root=x quiet");
        assert_eq!(entry.other, [("architecture".into(), "x64".into())]);
        assert_eq!(BootEntry::parse(&entry.to_string()).unwrap(), entry);
    }

    #[test]
    fn a_title_brings_no_key_of_its_own() {
        let entry = BootEntry {
            title: Some("An OS\nlinux /evil".into()),
            ..BootEntry::default()
        };
        assert_eq!(BootEntry::parse(&entry.to_string()).unwrap().linux, None);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,80}") {
            let _ = BootEntry::parse(&text);
            let _ = text.parse::<EntryName>();
            let _ = format!("bedplate-{text}.conf").parse::<EntryName>();
        }

        #[test]
        fn entries_print_as_they_parse(
            title in "[a-zA-Z0-9(][a-zA-Z0-9 ()]{0,20}[a-z]",
            options in proptest::collection::vec("[a-z=\"]{1,9}", 0..4),
            other in proptest::collection::vec(("x-[a-z]{1,9}", "[a-z]{1,9}"), 0..4),
        ) {
            let entry = BootEntry {
                title: Some(title),
                options,
                other,
                ..BootEntry::default()
            };
            prop_assert_eq!(BootEntry::parse(&entry.to_string()).unwrap(), entry);
        }
    }
}
