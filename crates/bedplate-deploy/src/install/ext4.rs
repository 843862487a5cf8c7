//! The root of a disk that is being made: ext4 with fs-verity, filled from a directory by `mkfs.ext4`.
//!
//! Invariant: no privileges are needed. In a user namespace of its own, whoever runs this is root of
//! what they own, so every file comes out as root's.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use uuid::Uuid;

use super::layout::Region;

/// The block size: fs-verity needs that of a page, and small file systems get less by default.
pub const BLOCK: u64 = 4096;

/// What mkfs calls the file system.
const LABEL: &str = "bedplate";

/// Bytes of disk for each inode: mkfs's own ratio, which objects of 30 KB on average fit well.
const BYTES_PER_INODE: u64 = 16_384;

/// Makes an ext4 in `region` of the disk at `path`, holding what is below `content`.
///
/// `inodes` is how many the file system must have at least.
pub fn make(
    disk: &Path,
    region: Region,
    uuid: Uuid,
    content: &Path,
    inodes: u64,
    privileged: bool,
) -> Result<(), Ext4Error> {
    let mut command = if privileged {
        Command::new("mkfs.ext4")
    } else {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--", "mkfs.ext4"]);
        command
    };
    let inodes = inodes.max(region.length / BYTES_PER_INODE);
    // Inode tables are written now, as holes in a FILE, and not in the background of the first boot.
    let extended = format!(
        "offset={},hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0",
        region.start
    );
    command
        .args(["-q", "-F", "-b", "4096", "-O", "verity", "-m", "1"])
        .args(["-L", LABEL, "-U", &uuid.to_string()])
        .args(["-N", &inodes.to_string(), "-E", &extended])
        .arg("-d")
        .arg(content)
        .arg(disk)
        .arg((region.length / BLOCK).to_string())
        .env("PATH", SEARCH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let output = command.output().map_err(Ext4Error::Start)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = bedplate_model::name::shown(said.trim().as_bytes());
    Err(
        if output.status.code() == Some(127) || said.contains("failed to execute") {
            Ext4Error::Missing
        } else {
            Ext4Error::Failed { said }
        },
    )
}

/// Where programs are looked for: mkfs lies in sbin, which a user's own PATH often lacks.
const SEARCH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// Why the root could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// The program could not be started.
    #[error("cannot start mkfs.ext4 (package e2fsprogs), or unshare (package util-linux)")]
    Start(#[source] io::Error),
    /// `unshare` found no mkfs.ext4.
    #[error("mkfs.ext4 is missing (package e2fsprogs)")]
    Missing,
    /// It failed.
    #[error("mkfs.ext4 failed: {said}")]
    Failed {
        /// What it said.
        said: String,
    },
}
