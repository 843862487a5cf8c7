//! Packages: dpkg's status file and apk's list of what is installed, read without running anything.
//!
//! ```text
//! Package: htop            paragraphs of `Field: value`, apart by an empty line;
//! Status: install ok installed          a line that starts with a blank continues the one above
//! Architecture: amd64
//! Version: 3.2.2-2
//! ```
//!
//! dpkg's format is that of Debian's policy manual, chapter 5 ("Control files and their fields"); apk's has
//! the same shape with letters for fields (`P:`, `V:`, `A:`), as its wiki's "Apk spec" describes.

use std::collections::BTreeMap;
use std::fmt;

use bedplate_model::name::shown;

/// More packages than any system has: a bound for a stranger's database.
pub(super) const PACKAGES_MAX: usize = 1_000_000;

/// An installed package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// Its name; dpkg may list several architectures of one package side by side.
    pub name: String,
    /// Its architecture.
    pub architecture: String,
    /// Its version.
    pub version: String,
}

/// What happened to a package between two images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackageChange {
    /// It is new.
    Added {
        /// The package's name.
        name: String,
        /// Its version.
        version: String,
    },
    /// It is gone.
    Removed {
        /// The package's name.
        name: String,
        /// The version that was there.
        version: String,
    },
    /// It has another version.
    Changed {
        /// The package's name.
        name: String,
        /// The version before.
        from: String,
        /// The version now.
        to: String,
    },
}

impl fmt::Display for PackageChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { name, version } => write!(f, "+ {name} {version}"),
            Self::Removed { name, version } => write!(f, "- {name} {version}"),
            Self::Changed { name, from, to } => write!(f, "~ {name} {from} → {to}"),
        }
    }
}

/// Why a text is no database of packages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParsePackagesError {
    /// A line is neither `Field: value` nor a continuation.
    #[error("line {line} is no field: `{text}`")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// Its text, shortened.
        text: String,
    },
    /// A paragraph of an installed package lacks a field.
    #[error("the paragraph that ends at line {line} has no field `{field}`")]
    Field {
        /// The last line of the paragraph.
        line: usize,
        /// The field.
        field: &'static str,
    },
    /// It is no SQLite database of rpm's, or a damaged one.
    #[error("it is not the SQLite database of rpm")]
    Sqlite,
    /// It is no ndb database of rpm's, or a damaged one.
    #[error("it is not the ndb database of rpm")]
    Ndb,
    /// It is no Berkeley DB database of rpm's, or a damaged one.
    #[error("it is not the Berkeley DB database of rpm")]
    Bdb,
    /// A change of the database was interrupted, and has to be taken back before it can be read.
    #[error("a change of it was interrupted; rpm takes it back when it next runs there")]
    Interrupted,
    /// There are more packages than can be.
    #[error("there are more than {PACKAGES_MAX} packages")]
    TooMany,
}

/// Reads dpkg's status file: the packages that are installed, in the order of their names.
pub fn parse_dpkg_status(bytes: &[u8]) -> Result<Vec<Package>, ParsePackagesError> {
    parse_paragraphs(bytes, WithoutStatus::NotInstalled)
}

/// Reads a file of dpkg's `status.d`, where images that were put together without dpkg describe their
/// packages: what has no status is installed.
pub fn parse_dpkg_control(bytes: &[u8]) -> Result<Vec<Package>, ParsePackagesError> {
    parse_paragraphs(bytes, WithoutStatus::Installed)
}

/// What a package is whose paragraph has no status.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WithoutStatus {
    Installed,
    NotInstalled,
}

fn parse_paragraphs(
    bytes: &[u8],
    otherwise: WithoutStatus,
) -> Result<Vec<Package>, ParsePackagesError> {
    let mut packages = Vec::new();
    let mut paragraph = Paragraph::default();
    for (index, text) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = index + 1;
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        match text {
            [] => paragraph.finish(index, otherwise, &mut packages)?,
            // Continuations belong to fields that are of no interest here.
            [b' ' | b'\t', ..] => {}
            _ => paragraph.field(line, text)?,
        }
    }
    paragraph.finish(bytes.len(), otherwise, &mut packages)?;
    packages.sort();
    Ok(packages)
}

/// Reads apk's list of installed packages, in the order of their names.
pub fn parse_apk_installed(bytes: &[u8]) -> Result<Vec<Package>, ParsePackagesError> {
    let mut packages = Vec::new();
    let mut paragraph = Paragraph::default();
    let mut line = 0;
    for text in bytes.split(|byte| *byte == b'\n') {
        line += 1;
        match text {
            [] => paragraph.finish_installed(line, &mut packages)?,
            [letter, b':', value @ ..] => {
                let place = match letter {
                    b'P' => &mut paragraph.package,
                    b'V' => &mut paragraph.version,
                    b'A' => &mut paragraph.architecture,
                    _ => continue,
                };
                *place = Some(printable(value));
            }
            _ => {
                let text = shown(text).chars().take(80).collect();
                return Err(ParsePackagesError::Line { line, text });
            }
        }
    }
    paragraph.finish_installed(line, &mut packages)?;
    packages.sort();
    Ok(packages)
}

/// Makes a name or version printable, for it goes to terminals.
pub(super) fn printable(value: &[u8]) -> String {
    shown(value.trim_ascii()).chars().take(256).collect()
}

/// The fields of a paragraph that matter.
#[derive(Default)]
struct Paragraph {
    package: Option<String>,
    status: Option<String>,
    architecture: Option<String>,
    version: Option<String>,
}

impl Paragraph {
    fn field(&mut self, line: usize, text: &[u8]) -> Result<(), ParsePackagesError> {
        let Some(colon) = text.iter().position(|byte| *byte == b':') else {
            let text = shown(text).chars().take(80).collect();
            return Err(ParsePackagesError::Line { line, text });
        };
        let (name, value) = text.split_at(colon);
        let place = match &name.to_ascii_lowercase()[..] {
            b"package" => &mut self.package,
            b"status" => &mut self.status,
            b"architecture" => &mut self.architecture,
            b"version" => &mut self.version,
            _ => return Ok(()),
        };
        *place = Some(printable(&value[1..]));
        Ok(())
    }

    fn finish(
        &mut self,
        line: usize,
        otherwise: WithoutStatus,
        packages: &mut Vec<Package>,
    ) -> Result<(), ParsePackagesError> {
        let paragraph = std::mem::take(self);
        let installed = match &paragraph.status {
            Some(status) => status.split_ascii_whitespace().nth(2) == Some("installed"),
            // Several empty lines make a paragraph without a package, too.
            None => otherwise == WithoutStatus::Installed && paragraph.package.is_some(),
        };
        if !installed {
            return Ok(()); // removed with its configuration kept, or an empty paragraph
        }
        paragraph.add(line, packages)
    }

    /// Ends a paragraph of a list in which everything is installed.
    fn finish_installed(
        &mut self,
        line: usize,
        packages: &mut Vec<Package>,
    ) -> Result<(), ParsePackagesError> {
        let paragraph = std::mem::take(self);
        if paragraph.package.is_none() && paragraph.version.is_none() {
            return Ok(()); // several empty lines
        }
        paragraph.add(line, packages)
    }

    fn add(self, line: usize, packages: &mut Vec<Package>) -> Result<(), ParsePackagesError> {
        let missing = |field| ParsePackagesError::Field { line, field };
        if packages.len() >= PACKAGES_MAX {
            return Err(ParsePackagesError::TooMany);
        }
        packages.push(Package {
            name: self.package.ok_or_else(|| missing("Package"))?,
            architecture: self.architecture.unwrap_or_default(),
            version: self.version.ok_or_else(|| missing("Version"))?,
        });
        Ok(())
    }
}

/// Compares two lists of packages; changes come in the order of the names.
pub(crate) fn changes(from: &[Package], to: &[Package]) -> Vec<PackageChange> {
    let (from, to) = (by_name(from), by_name(to));
    let names: std::collections::BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    names
        .into_iter()
        .filter_map(|name| match (from.get(name), to.get(name)) {
            (Some(from), Some(to)) => (from != to).then(|| PackageChange::Changed {
                name: name.clone(),
                from: (*from).to_owned(),
                to: (*to).to_owned(),
            }),
            (Some(version), None) => Some(PackageChange::Removed {
                name: name.clone(),
                version: (*version).to_owned(),
            }),
            (None, Some(version)) => Some(PackageChange::Added {
                name: name.clone(),
                version: (*version).to_owned(),
            }),
            (None, None) => None,
        })
        .collect()
}

/// Keys packages by name, with the architecture where a name alone is not enough.
fn by_name(packages: &[Package]) -> BTreeMap<String, &str> {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for package in packages {
        *counts.entry(&package.name).or_default() += 1;
    }
    packages
        .iter()
        .map(|package| {
            let key = if counts[package.name.as_str()] > 1 {
                format!("{}:{}", package.name, package.architecture)
            } else {
                package.name.clone()
            };
            (key, package.version.as_str())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATUS: &str = "\
Package: htop
Status: install ok installed
Architecture: amd64
Version: 3.2.2-2
Description: interactive processes viewer
 Package: not a field, but a continuation

Package: gone
Status: deinstall ok config-files
Version: 1

Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9

Package: libc6
Status: install ok installed
Architecture: i386
Version: 2.36-9
";

    #[test]
    fn installed_packages_are_found_and_compared() {
        let old = parse_dpkg_status(STATUS.as_bytes()).unwrap();
        assert_eq!(old.len(), 3);
        let new = STATUS.replace("3.2.2-2", "3.3.0-1").replace(
            "Package: gone\nStatus: deinstall ok config-files",
            "Package: jq\nStatus: install ok installed",
        );
        let new = parse_dpkg_status(new.as_bytes()).unwrap();
        let texts: Vec<String> = changes(&old, &new)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(texts, ["~ htop 3.2.2-2 → 3.3.0-1", "+ jq 1"]);
        let texts: Vec<String> = changes(&new, &old)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(texts, ["~ htop 3.3.0-1 → 3.2.2-2", "- jq 1"]);
        let one = &old[..2];
        assert_eq!(changes(one, one), []);
    }

    #[test]
    fn what_is_no_status_file_is_refused_with_the_line() {
        assert_eq!(
            parse_dpkg_status(b"Package: a\n\x1b[31m\n"),
            Err(ParsePackagesError::Line {
                line: 2,
                text: "\\u{1b}[31m".to_owned()
            })
        );
        assert!(matches!(
            parse_dpkg_status(b"Status: install ok installed\n"),
            Err(ParsePackagesError::Field {
                field: "Package",
                ..
            })
        ));
    }

    #[test]
    fn a_description_without_a_status_counts_where_there_is_none() {
        let control = "Package: base-files\nVersion: 12.4\nArchitecture: amd64\n\n\n";
        assert_eq!(parse_dpkg_status(control.as_bytes()).unwrap(), []);
        let packages = parse_dpkg_control(control.as_bytes()).unwrap();
        assert_eq!(packages.len(), 1);
        assert_eq!(packages[0].version, "12.4");
        assert_eq!(parse_dpkg_control(STATUS.as_bytes()).unwrap().len(), 3);
    }

    #[test]
    fn packages_of_apk_are_read_as_well() {
        let list = "C:Q1abc=\nP:musl\nV:1.2.5-r0\nA:x86_64\nF:lib\nR:ld-musl-x86_64.so.1\n\n\
                    P:busybox\nV:1.36.1-r29\n\n\n";
        let packages = parse_apk_installed(list.as_bytes()).unwrap();
        let names: Vec<&str> = packages.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["busybox", "musl"]);
        assert_eq!(packages[1].version, "1.2.5-r0");
        let error = parse_apk_installed(b"P:a\n\n").unwrap_err();
        assert!(error.to_string().contains("Version"), "{error}");
        assert!(parse_apk_installed(b"nonsense\n").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_dpkg_status(&bytes);
            let _ = parse_dpkg_control(&bytes);
            let _ = parse_apk_installed(&bytes);
        }
    }
}
