//! Package databases of images, which their makers wrote.

use std::fs;
use std::sync::LazyLock;

use anyhow::{Context, Result};
use bedplate_store::diff::{
    Package, parse_apk_installed, parse_dpkg_control, parse_dpkg_status, parse_rpm_bdb,
    parse_rpm_ndb, parse_rpm_sqlite,
};

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
    check(parse_dpkg_control(input).ok(), input);
    check(parse_apk_installed(input).ok(), input);
}

pub(super) fn databases() -> Result<Vec<Vec<u8>>> {
    ["made-up.sqlite", "rpmdb.sqlite"]
        .map(sample)
        .into_iter()
        .collect()
}

pub(super) fn database(input: &[u8]) {
    check(parse_rpm_sqlite(input, b"", b"").ok(), input);
}

/// Seeds of the log beside a database.
pub(super) fn logs() -> Result<Vec<Vec<u8>>> {
    Ok(vec![sample("rpmdb.sqlite-wal")?])
}

pub(super) fn log(input: &[u8]) {
    static DATABASE: LazyLock<Vec<u8>> =
        LazyLock::new(|| sample("rpmdb.sqlite").unwrap_or_default());
    check(parse_rpm_sqlite(&DATABASE, input, b"").ok(), &DATABASE);
}

pub(super) fn ndbs() -> Result<Vec<Vec<u8>>> {
    Ok(vec![sample("Packages.db")?])
}

pub(super) fn ndb(input: &[u8]) {
    check(parse_rpm_ndb(input).ok(), input);
}

pub(super) fn bdbs() -> Result<Vec<Vec<u8>>> {
    ["Packages", "Packages.big-endian"]
        .map(sample)
        .into_iter()
        .collect()
}

pub(super) fn bdb(input: &[u8]) {
    check(parse_rpm_bdb(input).ok(), input);
}

/// A database that rpm, or the library below it, wrote.
fn sample(name: &str) -> Result<Vec<u8>> {
    let path = workspace::root().join("testdata/rpm").join(name);
    fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

/// No parser makes more of its input than there is.
fn check(packages: Option<Vec<Package>>, input: &[u8]) {
    let packages = packages.unwrap_or_default();
    assert!(packages.len() <= input.len(), "{} packages", packages.len());
}
