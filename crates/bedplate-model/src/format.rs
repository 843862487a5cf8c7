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

#[cfg(test)]
mod tests {
    use super::*;

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
