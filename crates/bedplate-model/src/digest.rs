//! Digests: what things are called by their content.
//!
//! ```text
//! ObjectId    fs-verity digest of a file       0123…   (64 hex digits: SHA-256, 128: SHA-512)
//! Sha256      plain SHA-256, as OCI has it     sha256:0123…
//! RootDigest  fs-verity digest of an image     exact-1/v1-sha256-12:0123…
//! ```
//!
//! Invariant: every digest prints as it parses, in lower-case hexadecimal.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The hash algorithm of an fs-verity digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// `FS_VERITY_HASH_ALG_SHA256`, the default.
    Sha256,
    /// `FS_VERITY_HASH_ALG_SHA512`: images of others.
    Sha512,
}

impl Algorithm {
    /// Returns the length of a digest in bytes.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// Returns the number that the kernel's fs-verity interface has for this algorithm.
    pub const fn kernel_number(self) -> u8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha512 => 2,
        }
    }

    /// Returns the name used in texts: `sha256` or `sha512`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

/// The fs-verity digest (4096-byte blocks, no salt) of a file's content: the name of an object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectId {
    /// A SHA-256 digest.
    Sha256([u8; 32]),
    /// A SHA-512 digest.
    Sha512([u8; 64]),
}

impl ObjectId {
    /// Makes an id from the raw bytes of a digest, or returns `None` when the length is wrong.
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        match algorithm {
            Algorithm::Sha256 => Some(Self::Sha256(bytes.try_into().ok()?)),
            Algorithm::Sha512 => Some(Self::Sha512(bytes.try_into().ok()?)),
        }
    }

    /// Returns the algorithm.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Returns the raw digest.
    pub const fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }

    /// Returns the digest in hexadecimal.
    pub fn to_hex(&self) -> String {
        hex(self.as_bytes())
    }

    /// Returns whether this is [`ObjectId::object_path`], without making it.
    pub fn is_object_path(&self, path: &[u8]) -> bool {
        let [first, second, b'/', rest @ ..] = path else {
            return false;
        };
        let digits = self
            .as_bytes()
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15]);
        let found = [first, second].into_iter().chain(rest);
        found
            .copied()
            .eq(digits.map(|digit| DIGITS[usize::from(digit)]))
    }

    /// Returns the path below `objects/`: the first byte, a slash, the rest, in hexadecimal.
    pub fn object_path(&self) -> String {
        let hex = self.to_hex();
        format!("{}/{}", &hex[..2], &hex[2..])
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.to_hex())
    }
}

impl FromStr for ObjectId {
    type Err = ParseDigestError;

    /// Parses 64 (SHA-256) or 128 (SHA-512) hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.len() {
            64 => unhex(text).map(Self::Sha256),
            128 => unhex(text).map(Self::Sha512),
            _ => None,
        }
        .ok_or_else(|| ParseDigestError::new("fs-verity digest", text))
    }
}

/// A plain SHA-256 of some bytes, written `sha256:<hex>` as in OCI.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// Returns the digest in hexadecimal, without the algorithm.
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_hex())
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Sha256 {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("sha256:")
            .and_then(unhex)
            .map(Self)
            .ok_or_else(|| ParseDigestError::new("OCI digest", text))
    }
}

/// How layers or a directory became a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RuleSet {
    /// Nothing changed: nanosecond times, every extended attribute.
    Exact1,
    /// bootc's and composefs's rules: whole-second times, an allow-list of extended attributes,
    /// emptied directories, metadata of `/` from `/usr`.
    Bootc1,
}

impl RuleSet {
    /// Returns the name used in texts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact1 => "exact-1",
            Self::Bootc1 => "bootc-1",
        }
    }
}

impl FromStr for RuleSet {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Exact1, Self::Bootc1]
            .into_iter()
            .find(|rules| rules.name() == text)
            .ok_or_else(|| ParseDigestError::new("rule set", text))
    }
}

/// The version of the composefs EROFS layout, as `mkcomposefs --min-version` counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErofsVersion {
    /// The C tool's default.
    V0,
    /// Bedplate's default: opaque directories are marked for `user.overlay` too.
    V1,
}

impl ErofsVersion {
    /// Returns the number that stands in the image's header.
    pub const fn number(self) -> u32 {
        match self {
            Self::V0 => 0,
            Self::V1 => 1,
        }
    }
}

impl FromStr for ErofsVersion {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "0" => Ok(Self::V0),
            "1" => Ok(Self::V1),
            _ => Err(ParseDigestError::new("EROFS version", text)),
        }
    }
}

/// The fs-verity digest of an image, with everything that decided it: one value that fixes every
/// name, mode and byte of a tree. Written `exact-1/v1-sha256-12:<hex>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RootDigest {
    /// How the tree was made.
    pub rules: RuleSet,
    /// The layout of the image.
    pub erofs: ErofsVersion,
    /// The digest of the image file; its algorithm is also that of every object in the tree.
    pub image: ObjectId,
}

impl fmt::Display for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 12 is the binary logarithm of fs-verity's block size, as composefs writes it.
        write!(
            f,
            "{}/v{}-{}-12:{}",
            self.rules.name(),
            self.erofs.number(),
            self.image.algorithm().name(),
            self.image
        )
    }
}

impl FromStr for RootDigest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (rules, rest) = text.split_once('/')?;
            let (kind, hex) = rest.split_once(':')?;
            let mut kind = kind.strip_prefix('v')?.splitn(3, '-');
            let erofs = kind.next()?.parse().ok()?;
            let algorithm = kind.next()?;
            let image: ObjectId = hex.parse().ok()?;
            (kind.next()? == "12" && algorithm == image.algorithm().name()).then_some(())?;
            Some(Self {
                rules: rules.parse().ok()?,
                erofs,
                image,
            })
        };
        parse().ok_or_else(|| ParseDigestError::new("root digest", text))
    }
}

/// A text that is not the digest it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid {what}")]
pub struct ParseDigestError {
    what: &'static str,
    text: String,
}

impl ParseDigestError {
    fn new(what: &'static str, text: &str) -> Self {
        Self {
            what,
            text: text.chars().take(160).collect(),
        }
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Prints bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)].into());
        text.push(DIGITS[usize::from(byte & 15)].into());
    }
    text
}

/// Parses exactly `2 * N` lower-case hexadecimal digits.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

/// Implements serde by a type's own text form, so that there is one parser and one printer.
macro_rules! serde_as_text {
    ($($type:ty),+) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}
pub(crate) use serde_as_text;

serde_as_text!(ObjectId, Sha256, RootDigest);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn digests_print_as_they_parse(short: [u8; 32], long in proptest::collection::vec(any::<u8>(), 64)) {
            for image in [ObjectId::Sha256(short), ObjectId::Sha512(long.clone().try_into().unwrap())] {
                prop_assert_eq!(image.to_string().parse::<ObjectId>().unwrap(), image);
                for rules in [RuleSet::Exact1, RuleSet::Bootc1] {
                    for erofs in [ErofsVersion::V0, ErofsVersion::V1] {
                        let root = RootDigest { rules, erofs, image };
                        prop_assert_eq!(root.to_string().parse::<RootDigest>().unwrap(), root);
                    }
                }
            }
            prop_assert_eq!(Sha256(short).to_string().parse::<Sha256>().unwrap(), Sha256(short));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,80}") {
            let _ = text.parse::<ObjectId>();
            let _ = text.parse::<Sha256>();
            let _ = text.parse::<RootDigest>();
        }
    }

    #[test]
    fn a_root_digest_is_refused_when_its_parts_disagree() {
        let sha256 = "0".repeat(64);
        let sha512 = "0".repeat(128);
        for text in [
            format!("exact-1/v1-sha512-12:{sha256}"),
            format!("exact-1/v1-sha256-12:{sha512}"),
            format!("exact-1/v2-sha256-12:{sha256}"),
            format!("exact-1/v1-sha256-16:{sha256}"),
            format!("exact-2/v1-sha256-12:{sha256}"),
            format!("v1-sha256-12:{sha256}"),
            format!("exact-1/v1-sha256-12:{}", "A".repeat(64)),
        ] {
            assert!(text.parse::<RootDigest>().is_err(), "{text}");
        }
    }
}
