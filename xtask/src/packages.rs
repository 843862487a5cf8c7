//! The Debian packages that a verb needs: installed as root, named exactly otherwise.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run;

/// What compiling the workspace needs beside cargo.
pub(crate) const BUILD: &[&str] = &["gcc", "libc6-dev"];

/// What compiling the tests needs more: the test oracle links OpenSSL statically.
pub(crate) const BUILD_TESTS: &[&str] = &["gcc", "libc6-dev", "libssl-dev", "pkg-config"];

/// What making the two Debian trees needs.
pub(crate) const IMAGES: &[&str] = &["mmdebstrap", "debian-archive-keyring", "openssh-client"];

/// What booting them needs, and making their disk.
pub(crate) const MACHINE: &[&str] = &[
    "qemu-system-x86",
    "ovmf",
    "socat",
    "openssh-client",
    "e2fsprogs",
];

/// What damaging a boot partition from outside needs.
pub(crate) const BOOT_PARTITION: &[&str] = &["fdisk", "mtools"];

/// What the tests compare with.
pub(crate) const PEERS: &[&str] = &[
    "skopeo",
    "podman",
    "erofs-utils",
    "docker-registry",
    "gdisk",
    "dosfstools",
    "mtools",
    "xfsprogs",
    "e2fsprogs",
    "cpio",
    "python3",
    "libarchive-tools",
    "binutils",
    "grub-common",
    "grub-pc-bin",
    "qemu-system-x86",
];

/// What the benchmark compares with, and measures by.
pub(crate) const BENCH: &[&str] = &[
    "ostree",
    "gir1.2-ostree-1.0",
    "python3-gi",
    "skopeo",
    "umoci",
    "casync",
    "erofs-utils",
    "time",
];

/// What whole trees are compared with.
pub(crate) const TREES: &[&str] = &[
    "attr",
    "diffutils",
    "erofs-utils",
    "fsverity",
    "libssl-dev",
    "pkg-config",
];

/// What trying power cuts and failing system calls needs.
pub(crate) const TRIALS: &[&str] = &[
    "qemu-system-common",
    "e2fsprogs",
    "mount",
    "strace",
    "util-linux",
];

/// What wrecks of disks are cloned on.
pub(crate) const CLONES: &[&str] = &["xfsprogs", "mount", "e2fsprogs"];

/// What entering a user namespace with a range of ids needs: nothing for root.
pub(crate) fn namespace() -> &'static [&'static str] {
    if run::is_root() { &[] } else { &["uidmap"] }
}

/// Makes sure that every package of `wanted` is installed.
///
/// Root gets them installed; everyone else is told the one command that does it. Elsewhere than on
/// Debian and its kin nothing is checked: a missing program then says so itself.
pub(crate) fn require(wanted: &[&[&'static str]]) -> Result<()> {
    if !run::found("dpkg-query") {
        return Ok(());
    }
    let mut missing: Vec<&str> = wanted
        .iter()
        .flat_map(|group| group.iter().copied())
        .filter(|package| !installed(package))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if !run::is_root() {
        bail!(
            "some Debian packages are missing. Install them with\n\n    \
             sudo apt-get update && sudo apt-get install --no-install-recommends {}\n",
            missing.join(" ")
        );
    }
    println!("installing Debian packages: {}", missing.join(" "));
    apt(&["update"])?;
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(&missing);
    apt(&install)
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .arg("--quiet=2")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    run::passing(&mut command).context("installing Debian packages")
}
