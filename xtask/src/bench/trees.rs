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

/// Opens the tree for this extent, or makes it.
pub(super) fn open_or_make(extent: Extent) -> Result<PathBuf> {
    let place = workspace::target("bench");
    fs::create_dir_all(&place).with_context(|| format!("creating {}", place.display()))?;
    match extent {
        Extent::Full => {
            let mirrors = Mirrors::of_this_machine()?;
            let mut arguments = bare(PACKAGES);
            arguments.push(format!("--customize-hook={CUSTOMIZE}"));
            arguments.extend(suite(&[source(&mirrors.archive, "bookworm")]));
            let recipe = Recipe {
                name: "a Debian 12 server of about 1 GB".to_owned(),
                arguments,
            };
            Ok(recipe.open_or_make(&place)?.path)
        }
        Extent::Small => {
            let path = place.join("small");
            make_small(&path)?;
            Ok(path)
        }
    }
}

/// Makes a tree of text-like files, the same each time.
fn make_small(path: &std::path::Path) -> Result<()> {
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
        let file = directory.join(format!("f{number}"));
        fs::write(&file, content).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}
