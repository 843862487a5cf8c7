//! The kernel command line: split as the kernel splits it, and what early boot is told by it.
//!
//! ```text
//! root=UUID=… bedplate.deployment=<8 hex> bedplate.root=[?]v1-sha256-12:<hex> … panic=10
//! ```
//!
//! Invariant: a command line prints as it parses; the last of several equal keys counts.

use std::fmt;
use std::str::FromStr;

use bedplate_model::record::{DeploymentId, EtcMode};
use bedplate_model::{Algorithm, ErofsVersion, ObjectId, RootDigest};

/// The key of the deployment's id.
pub const DEPLOYMENT: &str = "bedplate.deployment";
/// The key of the root digest.
pub const ROOT_DIGEST: &str = "bedplate.root";
/// The key of the physical root's device.
pub const ROOT: &str = "root";
/// The key of how the deployment comes by its /etc.
pub const ETC: &str = "bedplate.etc";
/// Asks early boot for a shell instead of a reboot when it fails.
pub const DEBUG: &str = "bedplate.debug";

/// A command line: words, of which each is a flag or `key=value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cmdline {
    words: Vec<String>,
}

impl Cmdline {
    /// Makes a command line of words that are quoted where they need it.
    pub fn from_words(words: impl IntoIterator<Item = String>) -> Self {
        Self {
            words: words.into_iter().collect(),
        }
    }

    /// Splits a command line at white space outside double quotes. No text is wrong.
    pub fn parse(text: &str) -> Self {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for character in text.chars() {
            quoted ^= character == '"';
            if character.is_ascii_whitespace() && !quoted {
                words.push(String::new());
            } else if let Some(word) = words.last_mut() {
                word.push(character);
            }
        }
        words.retain(|word| !word.is_empty());
        Self { words }
    }

    /// Returns the words as they stand, with their quotes.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// Adds a word.
    pub fn push(&mut self, word: impl Into<String>) {
        self.words.push(word.into());
    }

    /// Returns the value of a key without quotes, that of the last one where there are several.
    pub fn value(&self, key: &str) -> Option<String> {
        self.own().rev().find_map(|word| {
            let plain = word.replace('"', "");
            let (name, value) = plain.split_once('=')?;
            same_key(name, key).then(|| value.to_owned())
        })
    }

    /// Returns whether a flag is set: the word alone, or with a value that is not false.
    pub fn flag(&self, name: &str) -> bool {
        let said = self.value(name);
        self.own().any(|word| same_key(word, name))
            || said.is_some_and(|value| !matches!(&*value, "0" | "no" | "n" | "off" | "false"))
    }

    /// The words before `--`; what follows is for init.
    fn own(&self) -> impl DoubleEndedIterator<Item = &String> {
        let end = self.words.iter().position(|word| word == "--");
        self.words[..end.unwrap_or(self.words.len())].iter()
    }
}

/// The kernel takes `-` and `_` for one another in names.
pub(crate) fn same_key(one: &str, other: &str) -> bool {
    one.len() == other.len()
        && one
            .bytes()
            .zip(other.bytes())
            .all(|(one, other)| one == other || matches!((one, other), (b'-' | b'_', b'-' | b'_')))
}

impl fmt::Display for Cmdline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words.join(" "))
    }
}

/// How a device is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// `UUID=`: that of the file system.
    Uuid(String),
    /// `LABEL=`: that of the file system.
    Label(String),
    /// `PARTUUID=`: that of the partition.
    PartUuid(String),
    /// `/dev/…`: a path.
    Path(String),
    /// Not named: the partition of the discoverable type for this architecture's root.
    Discoverable,
}

impl DeviceName {
    fn parse(text: &str) -> Option<Self> {
        Some(match text.split_once('=') {
            Some(("UUID", uuid)) => Self::Uuid(uuid.to_ascii_lowercase()),
            Some(("LABEL", label)) => Self::Label(label.to_owned()),
            Some(("PARTUUID", uuid)) => Self::PartUuid(uuid.to_ascii_lowercase()),
            None if text.starts_with("/dev/") => Self::Path(text.to_owned()),
            _ => return None,
        })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => write!(f, "UUID={uuid}"),
            Self::Label(label) => write!(f, "LABEL={label}"),
            Self::PartUuid(uuid) => write!(f, "PARTUUID={uuid}"),
            Self::Path(path) => f.write_str(path),
            Self::Discoverable => f.write_str("a partition of the discoverable type"),
        }
    }
}

/// The image that is booted, as the command line names it: the rule set is not early boot's concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootRoot {
    /// The layout of the image.
    pub erofs: ErofsVersion,
    /// The digest of the image file.
    pub image: ObjectId,
    /// Objects need not be sealed.
    pub unsealed_allowed: bool,
}

impl BootRoot {
    /// Returns what names a root digest on the command line.
    pub const fn new(root: &RootDigest, unsealed_allowed: bool) -> Self {
        Self {
            erofs: root.erofs,
            image: root.image,
            unsealed_allowed,
        }
    }

    /// Returns the algorithm of the image and of every object in it.
    pub const fn algorithm(&self) -> Algorithm {
        self.image.algorithm()
    }
}

impl fmt::Display for BootRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}v{}-{}-12:{}",
            if self.unsealed_allowed { "?" } else { "" },
            self.erofs.number(),
            self.image.algorithm().name(),
            self.image
        )
    }
}

impl FromStr for BootRoot {
    type Err = bedplate_model::digest::ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digest = text.strip_prefix('?');
        // One parser for digests: the rule set, which stands in every other place, is put before.
        let root: RootDigest = format!("exact-1/{}", digest.unwrap_or(text)).parse()?;
        Ok(Self::new(&root, digest.is_some()))
    }
}

/// Whether and how the file system of the physical root is checked: the arguments of systemd-fsck@.service(8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilesystemCheck {
    /// `fsck.mode=`.
    pub mode: CheckMode,
    /// `fsck.repair=`.
    pub repair: CheckRepair,
}

/// When a file system is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckMode {
    /// When it says that it needs it.
    #[default]
    Auto,
    /// At this boot.
    Force,
    /// Never.
    Skip,
}

/// What is done about errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckRepair {
    /// What can be mended without a loss is.
    #[default]
    Preen,
    /// Everything is.
    Yes,
    /// Nothing is.
    No,
}

impl FilesystemCheck {
    /// Reads it from a command line. A value that is none of them is passed over, as systemd does.
    fn of(cmdline: &Cmdline) -> Self {
        Self {
            mode: match cmdline.value("fsck.mode").as_deref() {
                Some("force") => CheckMode::Force,
                Some("skip") => CheckMode::Skip,
                _ => CheckMode::Auto,
            },
            repair: match cmdline.value("fsck.repair").as_deref() {
                Some("yes") => CheckRepair::Yes,
                Some("no") => CheckRepair::No,
                _ => CheckRepair::Preen,
            },
        }
    }
}

/// What early boot is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootArguments {
    /// Where the physical root is.
    pub root: DeviceName,
    /// The deployment that is booted.
    pub deployment: DeploymentId,
    /// Its image.
    pub image: BootRoot,
    /// How it comes by its /etc.
    pub etc: EtcMode,
    /// Whether the root's file system is checked before.
    pub check: FilesystemCheck,
    /// What is started at last.
    pub init: String,
    /// A shell is wanted when something fails.
    pub debug: bool,
}

impl BootArguments {
    /// Reads what concerns early boot from a command line.
    pub fn of(cmdline: &Cmdline) -> Result<Self, BootArgumentsError> {
        let needed = |key: &'static str| {
            cmdline
                .value(key)
                .ok_or(BootArgumentsError::Missing { key })
        };
        let wrong = |key: &'static str, text: &str| BootArgumentsError::Wrong {
            key,
            text: text.chars().take(200).collect(),
        };
        let root = match cmdline.value(ROOT) {
            None => DeviceName::Discoverable,
            Some(text) => DeviceName::parse(&text).ok_or_else(|| wrong(ROOT, &text))?,
        };
        let etc = match cmdline.value(ETC) {
            None => EtcMode::Merged,
            Some(text) => text.parse().map_err(|_| wrong(ETC, &text))?,
        };
        let id = needed(DEPLOYMENT)?;
        let image = needed(ROOT_DIGEST)?;
        Ok(Self {
            root,
            deployment: id.parse().map_err(|_| wrong(DEPLOYMENT, &id))?,
            image: image.parse().map_err(|_| wrong(ROOT_DIGEST, &image))?,
            etc,
            check: FilesystemCheck::of(cmdline),
            init: cmdline.value("init").unwrap_or_else(|| "/sbin/init".into()),
            debug: cmdline.flag(DEBUG),
        })
    }
}

/// Why a command line does not say what to boot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootArgumentsError {
    /// A key is not there.
    #[error("the kernel command line has no `{key}=`")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value is not valid.
    #[error("`{key}={text}` on the kernel command line is not valid")]
    Wrong {
        /// The key.
        key: &'static str,
        /// The value.
        text: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn white_space_in_quotes_splits_nothing_and_the_last_value_counts() {
        let line = Cmdline::parse("quiet a=1  b=\"x y\" \"c=z w\"\na=2 foo_bar=1 -- d=1 quiet2\n");
        assert_eq!(line.value("a").as_deref(), Some("2"));
        assert_eq!(line.value("b").as_deref(), Some("x y"));
        assert_eq!(line.value("c").as_deref(), Some("z w"));
        assert_eq!(line.value("foo-bar").as_deref(), Some("1"));
        assert_eq!(line.value("d"), None, "it is init's");
        assert!(line.flag("quiet") && !line.flag("quiet2"));
        assert_eq!(Cmdline::parse(&line.to_string()), line);
    }

    #[test]
    fn early_boot_is_told_what_it_needs_or_it_says_what_is_missing() {
        let digest = "1".repeat(64);
        let base = format!("bedplate.deployment=01020304 bedplate.root=?v1-sha256-12:{digest}");
        let line = |more: &str| BootArguments::of(&Cmdline::parse(&format!("{base} {more}")));
        let told = line("root=UUID=ABC bedplate.debug").unwrap();
        assert_eq!(told.root, DeviceName::Uuid("abc".into()));
        assert_eq!(told.deployment, DeploymentId([1, 2, 3, 4]));
        assert!(told.image.unsealed_allowed && told.debug);
        assert_eq!(told.image.to_string(), format!("?v1-sha256-12:{digest}"));
        assert_eq!(line("").unwrap().root, DeviceName::Discoverable);
        assert_eq!(told.etc, EtcMode::Merged);
        for mode in EtcMode::ALL {
            assert_eq!(line(&format!("{ETC}={mode}")).unwrap().etc, mode);
        }
        assert!(line("bedplate.etc=sometimes").is_err());
        assert_eq!(told.check, FilesystemCheck::default());
        let told = line("fsck.mode=force fsck.repair=no").unwrap();
        assert_eq!(
            (told.check.mode, told.check.repair),
            (CheckMode::Force, CheckRepair::No)
        );
        assert!(line("root=nonsense").is_err());
        assert!(line("bedplate.deployment=5").is_err());
        assert!(line("bedplate.root=v1-sha512-12:00").is_err());
        let nothing = BootArguments::of(&Cmdline::parse("quiet")).unwrap_err();
        assert!(nothing.to_string().contains(DEPLOYMENT), "{nothing}");
    }

    proptest! {
        #[test]
        fn every_text_is_a_command_line_that_prints_as_it_parses(text in "\\PC{0,80}") {
            let line = Cmdline::parse(&text);
            prop_assert_eq!(Cmdline::parse(&line.to_string()), line);
            let _ = BootArguments::of(&Cmdline::parse(&text));
        }
    }
}
