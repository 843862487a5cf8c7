//! The root of a disk that is being made: ext4 with fs-verity, filled from a directory by `mkfs.ext4`.
//!
//! ```text
//! content/ ── mkfs.ext4 -d ──→ ext4, files owned by who made them ── debugfs ──→ owned by root
//! ```
//!
//! Invariant: no privileges are needed, and every file comes out as root's. A user namespace would do
//! that in one step, but containers and chroots refuse to make one.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

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
    let inodes = inodes.max(region.length / BYTES_PER_INODE);
    // Inode tables are written now, as holes in a FILE, and not in the background of the first boot.
    let extended = format!(
        "offset={},hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0",
        region.start
    );
    let mut command = program("mkfs.ext4");
    command
        .args(["-q", "-F", "-b", "4096", "-O", "verity", "-m", "1"])
        .args(["-L", LABEL, "-U", &uuid.to_string()])
        .args(["-N", &inodes.to_string(), "-E", &extended])
        .arg("-d")
        .arg(content)
        .arg(disk)
        .arg((region.length / BLOCK).to_string())
        .stdin(Stdio::null());
    let output = command.output().map_err(Ext4Error::start("mkfs.ext4"))?;
    if !output.status.success() {
        return Err(Ext4Error::failed("mkfs.ext4", &output.stderr));
    }
    if privileged {
        return Ok(());
    }
    give_to_root(disk, region, content)
}

/// Makes root the owner of every file that came from `content`.
fn give_to_root(disk: &Path, region: Region, content: &Path) -> Result<(), Ext4Error> {
    let failed = |source| Ext4Error::List {
        path: content.to_owned(),
        source,
    };
    let mut commands = String::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(content.join(&directory)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = directory.join(entry.file_name());
            let name = quotable(&path).ok_or_else(|| Ext4Error::Name(path.clone()))?;
            for field in ["uid", "gid"] {
                writeln!(commands, "set_inode_field \"/{name}\" {field} 0")
                    .expect("a string takes everything");
            }
            if entry.file_type().map_err(failed)?.is_dir() {
                directories.push(path);
            }
        }
    }
    let mut image = disk.as_os_str().to_owned();
    image.push(format!("?offset={}", region.start));
    let output = debugfs(&image, commands.as_bytes()).map_err(Ext4Error::start("debugfs"))?;
    // It ends well whatever happens; only what it says after its version tells.
    let said = output.stderr.splitn(2, |byte| *byte == b'\n').nth(1);
    match said {
        Some(b"") if output.status.success() => Ok(()),
        _ => Err(Ext4Error::failed("debugfs", &output.stderr)),
    }
}

fn debugfs(image: &std::ffi::OsStr, commands: &[u8]) -> io::Result<Output> {
    // From a file: through a pipe, each of us could wait for the other to read.
    let name = "debugfs commands";
    let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = fs::File::from(file);
    file.write_all(commands)?;
    file.rewind()?;
    program("debugfs")
        .args(["-w", "-f", "-"])
        .arg(image)
        .stdin(file)
        .output()
}

/// Returns the path as debugfs reads it between quotes, unless it cannot.
fn quotable(path: &Path) -> Option<&str> {
    let text = std::str::from_utf8(path.as_os_str().as_bytes()).ok()?;
    let plain = !text.contains(['"', '\\']) && !text.contains(char::is_control);
    plain.then_some(text)
}

fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command
        .env("PATH", SEARCH)
        .env("LC_ALL", "C")
        .stdout(Stdio::null());
    command
}

/// Where programs are looked for: mkfs lies in sbin, which a user's own PATH often lacks.
const SEARCH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// Why the root could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// A program could not be started.
    #[error("cannot start {program} (package e2fsprogs)")]
    Start {
        /// The program.
        program: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It failed.
    #[error("{program} failed: {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// What it said.
        said: String,
    },
    /// What the file system is filled from could not be listed.
    #[error("cannot list {}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A name that cannot be given to debugfs.
    #[error("cannot make root the owner of {:?}: debugfs has no way to write this name", .0)]
    Name(PathBuf),
}

impl Ext4Error {
    fn start(program: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Start { program, source }
    }

    fn failed(program: &'static str, said: &[u8]) -> Self {
        Self::Failed {
            program,
            said: bedplate_model::name::shown(said.trim_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_whoever_makes_the_disk_come_out_as_roots() {
        let directory = tempfile::tempdir().unwrap();
        let content = directory.path().join("content");
        fs::create_dir_all(content.join("with space/deeper")).unwrap();
        fs::write(content.join("with space/deeper/file"), "content").unwrap();
        std::os::unix::fs::symlink("deeper/file", content.join("with space/link")).unwrap();
        // Root makes them somebody's; for everyone else they are somebody's already.
        for path in [
            "",
            "with space",
            "with space/deeper",
            "with space/deeper/file",
            "with space/link",
        ] {
            let _ = std::os::unix::fs::lchown(content.join(path), Some(70_000), Some(70_001));
        }
        let disk = directory.path().join("disk");
        let region = Region {
            start: 1 << 20,
            length: 32 << 20,
        };
        fs::File::create(&disk).unwrap().set_len(33 << 20).unwrap();

        make(&disk, region, Uuid::from_u128(7), &content, 100, false).unwrap();

        let image = format!("{}?offset={}", disk.display(), region.start);
        for path in [
            "/",
            "/with space",
            "/with space/deeper/file",
            "/with space/link",
        ] {
            let stat = program("debugfs")
                .args(["-R", &format!("stat \"{path}\""), &image])
                .stdout(Stdio::piped())
                .output()
                .unwrap();
            let stat = String::from_utf8_lossy(&stat.stdout).into_owned();
            let words: Vec<&str> = stat.split_whitespace().collect();
            assert!(
                words
                    .windows(4)
                    .any(|words| words == ["User:", "0", "Group:", "0"]),
                "{path}: {stat}"
            );
        }
        let sound = program("e2fsck").args(["-fn", &image]).status().unwrap();
        assert!(sound.success());
    }
}
