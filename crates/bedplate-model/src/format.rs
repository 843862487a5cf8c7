//! The header that every format of ours opens with.
//!
//! An unknown required feature is refused by name; an unknown optional one is kept and ignored.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a reader must understand before it uses the rest of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormatHeader {
    /// The format's name, such as `bedplate-store`.
    pub format: String,
    /// The version; a reader refuses what is newer than it knows.
    pub version: u32,
    /// Features without which the document is misread.
    #[serde(default)]
    pub required: Vec<String>,
    /// Features that an older reader may pass over, and must keep.
    #[serde(default)]
    pub optional: Vec<String>,
}

impl FormatHeader {
    /// Makes the header of a new document without features.
    pub fn new(format: &str, version: u32) -> Self {
        Self {
            format: format.to_owned(),
            version,
            required: Vec::new(),
            optional: Vec::new(),
        }
    }

    /// Checks that this program understands the document.
    ///
    /// `known` names the required features that the caller implements.
    pub fn check(
        &self,
        format: &'static str,
        version: u32,
        known: &[&str],
    ) -> Result<(), FormatError> {
        if self.format != format {
            return Err(FormatError::Other {
                wanted: format,
                found: Shown(self.format.clone()),
            });
        }
        if self.version == 0 || self.version > version {
            return Err(FormatError::Version {
                format,
                found: self.version,
                newest: version,
            });
        }
        match self
            .required
            .iter()
            .find(|name| !known.contains(&name.as_str()))
        {
            None => Ok(()),
            Some(feature) => Err(FormatError::Feature {
                format,
                feature: Shown(feature.clone()),
            }),
        }
    }
}

/// Why a document is not for this program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The document is of another kind.
    #[error("this is `{found}`, not `{wanted}`")]
    Other {
        /// The format that was expected.
        wanted: &'static str,
        /// The format that was found.
        found: Shown,
    },
    /// The document is of a version that this program does not know.
    #[error("{format} version {found} is not known here (this program knows 1 to {newest})")]
    Version {
        /// The format.
        format: &'static str,
        /// The version that was found.
        found: u32,
        /// The newest version that is known.
        newest: u32,
    },
    /// The document needs a feature that this program does not have.
    #[error("this {format} uses {feature}, which needs a newer version of bedplate")]
    Feature {
        /// The format.
        format: &'static str,
        /// The feature.
        feature: Shown,
    },
}

/// A stranger's text, shortened and with control characters escaped when it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown(pub String);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars().take(120) {
            write!(f, "{}", character.escape_debug())?;
        }
        Ok(())
    }
}

/// A size in bytes, shown for people in the units that limits are given in: `4 MiB`, `1.5 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let Some(unit) = (self.0.max(1).ilog2() / 10).checked_sub(1) else {
            return write!(f, "{} bytes", self.0);
        };
        let shift = 10 * (unit + 1);
        let (whole, rest) = (self.0 >> shift, self.0 & ((1 << shift) - 1));
        // Ten times what is left stays below 2^64: it is less than 2^60.
        match (rest * 10) >> shift {
            0 => write!(f, "{whole} {}", UNITS[unit as usize]),
            tenths => write!(f, "{whole}.{tenths} {}", UNITS[unit as usize]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_the_units_of_limits() {
        for (size, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (4 << 20, "4 MiB"),
            (3 << 29, "1.5 GiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
            (64 << 30, "64 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(Size(size).to_string(), text);
        }
    }

    #[test]
    fn an_unknown_required_feature_is_refused_by_name_and_an_optional_one_is_not() {
        let mut header = FormatHeader::new("bedplate-store", 1);
        header.optional.push("later".into());
        assert_eq!(header.check("bedplate-store", 1, &[]), Ok(()));
        header.required.push("zstd-dict".into());
        assert_eq!(header.check("bedplate-store", 1, &["zstd-dict"]), Ok(()));
        let error = header.check("bedplate-store", 1, &[]).unwrap_err();
        assert!(error.to_string().contains("uses zstd-dict"), "{error}");
    }

    #[test]
    fn a_newer_version_and_another_format_are_refused() {
        assert!(
            FormatHeader::new("bedplate-store", 2)
                .check("bedplate-store", 1, &[])
                .is_err()
        );
        assert!(
            FormatHeader::new("bedplate-record", 1)
                .check("bedplate-store", 1, &[])
                .is_err()
        );
    }
}
