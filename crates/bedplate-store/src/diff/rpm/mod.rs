//! Packages of rpm: its databases of the last twenty years, read without running anything.
//!
//! ```text
//! sqlite   rpmdb.sqlite   rpm 4.16 and later: Fedora, RHEL 9
//! ndb      Packages.db    openSUSE
//! bdb      Packages       up to rpm 4.15: RHEL and CentOS 7 and 8
//! ```
//!
//! Each holds the headers of packages: counts, an index of (tag, type, offset, count), data; the format is
//! rpm's "RPM V4 Package format", the header without its magic.

mod bdb;
mod ndb;
mod sqlite;

use super::packages::{PACKAGES_MAX, Package, ParsePackagesError, printable};

pub use bdb::parse_rpm_bdb;
pub use ndb::parse_rpm_ndb;
pub use sqlite::parse_rpm_sqlite;

/// The longest header that rpm itself reads.
const HEADER_MAX: usize = 256 << 20;

const TAG_NAME: u32 = 1000;
const TAG_VERSION: u32 = 1001;
const TAG_RELEASE: u32 = 1002;
const TAG_EPOCH: u32 = 1003;
const TAG_ARCH: u32 = 1022;
const TYPE_INT32: u32 = 4;
const TYPE_STRING: u32 = 6;

/// The packages of a database while it is read.
struct Packages {
    found: Vec<Package>,
    too_many: bool,
    /// What is wrong where something is.
    otherwise: ParsePackagesError,
}

impl Packages {
    const fn new(otherwise: ParsePackagesError) -> Self {
        Self {
            found: Vec::new(),
            too_many: false,
            otherwise,
        }
    }

    /// Adds the package that a header describes.
    fn header(&mut self, header: &[u8]) -> Option<()> {
        self.too_many = self.found.len() >= PACKAGES_MAX;
        if self.too_many {
            return None;
        }
        // Public keys are packages to rpm, and to nobody else.
        let package = package(header)?.filter(|package| package.name != "gpg-pubkey");
        self.found.extend(package);
        Some(())
    }

    /// Returns the packages in the order of their names; `read` is `None` where reading broke off.
    fn finish(mut self, read: Option<()>) -> Result<Vec<Package>, ParsePackagesError> {
        match read {
            Some(()) => {}
            None if self.too_many => return Err(ParsePackagesError::TooMany),
            None => return Err(self.otherwise),
        }
        self.found.sort();
        Ok(self.found)
    }
}

/// Reads the header of a package; `Some(None)` where it is of no package.
#[expect(clippy::option_option, reason = "damage, no package, a package")]
fn package(header: &[u8]) -> Option<Option<Package>> {
    let entries = be32(header, 0)? as usize;
    let index = header.get(8..)?.get(..entries.checked_mul(16)?)?;
    let data = header.get(8 + index.len()..)?;
    let find = |wanted: u32, kind: u32| {
        let entry = index
            .chunks_exact(16)
            .find(|entry| be32(entry, 0) == Some(wanted) && be32(entry, 4) == Some(kind))?;
        data.get(be32(entry, 8)? as usize..)
    };
    let string = |tag| {
        let bytes = find(tag, TYPE_STRING)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        Some(printable(&bytes[..end]))
    };
    let Some(name) = string(TAG_NAME) else {
        return Some(None);
    };
    let mut version = format!("{}-{}", string(TAG_VERSION)?, string(TAG_RELEASE)?);
    if let Some(epoch) = find(TAG_EPOCH, TYPE_INT32).and_then(|bytes| be32(bytes, 0)) {
        version = format!("{epoch}:{version}");
    }
    Some(Some(Package {
        name,
        architecture: string(TAG_ARCH).unwrap_or_default(),
        version,
    }))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// Databases that rpm and the libraries below it wrote (`testdata/rpm/README.md`).
#[cfg(test)]
mod samples {
    use crate::diff::packages::Package;

    pub(super) const SQLITE: &[u8] = include_bytes!("../../../../../testdata/rpm/rpmdb.sqlite");
    pub(super) const SQLITE_LOG: &[u8] =
        include_bytes!("../../../../../testdata/rpm/rpmdb.sqlite-wal");
    pub(super) const NDB: &[u8] = include_bytes!("../../../../../testdata/rpm/Packages.db");
    pub(super) const BDB: &[u8] = include_bytes!("../../../../../testdata/rpm/Packages");
    pub(super) const BDB_BIG_ENDIAN: &[u8] =
        include_bytes!("../../../../../testdata/rpm/Packages.big-endian");
    const EXPECTED: &str = include_str!("../../../../../testdata/rpm/expected.txt");

    /// What rpm itself says of them, without the key.
    pub(super) fn expected() -> Vec<String> {
        let lines = EXPECTED.lines().map(str::to_owned);
        lines
            .filter(|line| !line.starts_with("gpg-pubkey "))
            .collect()
    }

    pub(super) fn shown(packages: &[Package]) -> Vec<String> {
        let mut lines: Vec<String> = packages
            .iter()
            .map(|it| format!("{} {} {}", it.name, it.architecture, it.version))
            .collect();
        lines.sort();
        lines
    }
}
