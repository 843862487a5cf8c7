//! What is mounted on this machine, for pins of mounts that somebody else took off.
//!
//! Invariant: where there may be mounts that are not seen (another user's processes, namespaces that no
//! process is in), the answer is that not all can be seen.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bedplate_store::{MountHold, MountState, Pin, SeenMounts, Store};

/// The first namespace of processes, as the kernel numbers it: in any other, not all processes are seen.
const FIRST_PROCESSES: &str = "pid:[4026531836]";

/// Looks at all mounts.
pub(crate) fn see() -> io::Result<SeenMounts> {
    Ok(SeenMounts {
        devices: devices().unwrap_or(None),
        ..seen_of_this_boot()?
    })
}

/// Returns what a pin says before its mount is there.
pub(crate) fn hold() -> io::Result<MountHold> {
    let SeenMounts { boot, machine, .. } = seen_of_this_boot()?;
    Ok(MountHold {
        boot,
        machine,
        device: None,
    })
}

/// Returns the device number of what is mounted at a directory, as lists of mounts have it.
pub(crate) fn device_at(at: &Path) -> io::Result<String> {
    let device = fs::metadata(at)?.dev();
    Ok(format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    ))
}

/// Lists the pins of mounts that are gone.
pub(crate) fn gone(store: &Store) -> anyhow::Result<Vec<(Pin, MountHold)>> {
    let mut pins = store.mount_pins()?;
    if pins.is_empty() {
        return Ok(pins);
    }
    // Where nothing can be seen, nothing is known to be gone.
    let Ok(seen) = see() else {
        return Ok(Vec::new());
    };
    pins.retain(|(_, hold)| hold.state(&seen) == MountState::Over);
    Ok(pins)
}

fn seen_of_this_boot() -> io::Result<SeenMounts> {
    let line = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
    Ok(SeenMounts {
        boot: line("/proc/sys/kernel/random/boot_id")?,
        machine: line("/etc/machine-id").ok().filter(|id| !id.is_empty()),
        devices: None,
    })
}

/// Lists the device numbers of all mounts in all namespaces, or `None` where not all can be seen.
fn devices() -> io::Result<Option<BTreeSet<String>>> {
    let first = fs::read_link("/proc/self/ns/pid")?;
    if first != Path::new(FIRST_PROCESSES) || !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let mut devices = BTreeSet::new();
    let mut namespaces = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let is_process = name
            .as_encoded_bytes()
            .first()
            .is_some_and(u8::is_ascii_digit);
        if !is_process {
            continue;
        }
        let namespace = fs::read_link(entry.path().join("ns/mnt"));
        let list = namespace.and_then(|namespace| {
            // Most processes are in the same one.
            if namespaces.insert(namespace) {
                fs::read(entry.path().join("mountinfo"))
            } else {
                Ok(Vec::new())
            }
        });
        match list {
            Ok(list) => {
                if !add(&list, &mut devices) {
                    return Ok(None);
                }
            }
            // It ended meanwhile, or is ending.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
                    || error.kind() == io::ErrorKind::InvalidInput => {}
            Err(_) => return Ok(None),
        }
    }
    Ok(Some(devices))
}

/// Adds the devices of a list of mounts; returns whether these are all that it leads to: a namespace that
/// is mounted somewhere may have others, and no process.
fn add(list: &[u8], devices: &mut BTreeSet<String>) -> bool {
    for line in list.split(|byte| *byte == b'\n') {
        let mut words = line.split(|byte| *byte == b' ').skip(2);
        if let (Some(device), Some(root)) = (words.next(), words.next()) {
            if root.starts_with(b"mnt:[") {
                return false;
            }
            devices.insert(String::from_utf8_lossy(device).into_owned());
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounted_namespace_may_hide_mounts() {
        let mut devices = BTreeSet::new();
        let plain = b"22 1 0:57 / /mnt ro - overlay none ro\n23 1 8:1 / / rw - ext4 /dev/sda1 rw\n";
        assert!(add(plain, &mut devices));
        assert_eq!(devices.iter().collect::<Vec<_>>(), ["0:57", "8:1"]);
        let hidden = b"24 1 0:4 mnt:[4026532000] /run/ns rw - nsfs nsfs rw\n";
        assert!(!add(hidden, &mut devices));
    }
}
