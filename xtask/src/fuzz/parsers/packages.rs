//! Package databases of images, which their makers wrote.

use std::fs;

use anyhow::{Context, Result};
use bedplate_store::diff::{Package, parse_apk_installed, parse_dpkg_status, parse_rpm_sqlite};

use crate::workspace;

#[expect(clippy::unnecessary_wraps, reason = "one signature for all parsers")]
pub(super) fn texts() -> Result<Vec<Vec<u8>>> {
    let dpkg = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n\
                Description: a\n long\n .\n\nPackage: gone\nStatus: deinstall ok config-files\n\
                Version: 1\n";
    let apk = "C:Q1abcdefghijklmnopqrstuvwxyz01=\nP:musl\nV:1.2.4-r2\nA:x86_64\nF:lib\nR:ld.so\n\n\
               P:busybox\nV:1.36.1-r5\nA:x86_64\n";
    Ok(vec![dpkg.into(), apk.into()])
}

pub(super) fn text(input: &[u8]) {
    check(parse_dpkg_status(input).ok(), input);
    check(parse_apk_installed(input).ok(), input);
}

pub(super) fn databases() -> Result<Vec<Vec<u8>>> {
    let path = workspace::root().join("testdata/rpm/rpmdb.sqlite");
    let database = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(vec![database])
}

pub(super) fn database(input: &[u8]) {
    check(parse_rpm_sqlite(input).ok(), input);
}

/// No parser makes more of its input than there is.
fn check(packages: Option<Vec<Package>>, input: &[u8]) {
    let packages = packages.unwrap_or_default();
    assert!(packages.len() <= input.len(), "{} packages", packages.len());
}
