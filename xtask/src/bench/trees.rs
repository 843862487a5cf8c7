//! What is measured on.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::Extent;
use crate::apt_sources::Mirrors;
use crate::images::{Recipe, bare, source, suite};
use crate::workspace;

/// A server with an administrator's usual tools: about 1 GB in 30,000 entries.
const PACKAGES: &str = "systemd,systemd-sysv,udev,dbus,linux-image-amd64,openssh-server,python3,git,vim,curl,\
     ca-certificates,network-manager,podman,perl,locales,man-db,sudo,iproute2,nftables,grub-common,rsync,\
     strace,python3-pip,gdb,btrfs-progs,lvm2,cryptsetup,polkitd,cockpit-ws,cockpit-system,chrony";

/// Leaves what a machine would run, and nothing that only the making needed.
const CUSTOMIZE: &str =
    r#"rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/tmp/* "$1"/var/log/apt"#;

/// How many files the small tree has.
const SMALL_FILES: u32 = 2000;

/// What [`PACKAGES`] becomes in the next version.
const MORE_PACKAGES: &str = "tmux,htop,jq,nginx-light,ostree,skopeo";

/// Two versions of a system.
pub(super) struct Trees {
    /// The first one.
    pub(super) v1: PathBuf,
    /// The same after an upgrade, another kernel included, with some packages more.
    pub(super) v2: PathBuf,
}

impl Trees {
    /// Opens the trees for this extent, or makes them.
    pub(super) fn open_or_make(extent: Extent) -> Result<Self> {
        let place = workspace::target("bench");
        fs::create_dir_all(&place).with_context(|| format!("creating {}", place.display()))?;
        if extent == Extent::Small {
            let (v1, v2) = (place.join("small"), place.join("small-2"));
            make_small(&v1, "")?;
            make_small(&v2, "of the next version\n")?;
            return Ok(Self { v1, v2 });
        }
        let mirrors = Mirrors::of_this_machine()?;
        let released = [source(&mirrors.archive, "bookworm")];
        let mut upgraded = released.to_vec();
        upgraded.push(source(&mirrors.archive, "bookworm-updates"));
        if let Some(security) = &mirrors.security {
            upgraded.push(source(security, "bookworm-security"));
        }
        let v1 = make_real("a Debian 12 server of about 1 GB", PACKAGES, &released);
        let packages = format!("{PACKAGES},{MORE_PACKAGES}");
        let v2 = make_real("the same server, upgraded", &packages, &upgraded);
        Ok(Self {
            v1: v1.open_or_make(&place)?.path,
            v2: v2.open_or_make(&place)?.path,
        })
    }
}

fn make_real(name: &str, packages: &str, sources: &[String]) -> Recipe {
    let mut arguments = bare(packages);
    arguments.push(format!("--customize-hook={CUSTOMIZE}"));
    arguments.extend(suite(sources));
    Recipe {
        name: name.to_owned(),
        arguments,
    }
}

/// Makes a tree of text-like files, the same each time; every tenth ends with `change`.
fn make_small(path: &std::path::Path, change: &str) -> Result<()> {
    let mut state: u32 = 1;
    for number in 0..SMALL_FILES {
        let directory = path.join(format!("d{}", number % 40));
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        let mut content = Vec::new();
        // Sizes fall as they do in a system: many small files, few large ones.
        let lines = 1 + (state >> 8) % (4 << (number % 9));
        for _ in 0..lines {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            content.extend_from_slice(format!("line {state:x} of file {number}\n").as_bytes());
        }
        if number % 10 == 0 {
            content.extend_from_slice(change.as_bytes());
        }
        let file = directory.join(format!("f{number}"));
        fs::write(&file, content).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}
