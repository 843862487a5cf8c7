//! Pieces of QEMU's command line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use crate::Accelerator;

/// What every guest of ours is made of, before its disks and ports.
pub fn machine(accelerator: Accelerator, memory: u32, processors: u32) -> Vec<OsString> {
    let memory = memory.to_string();
    let processors = processors.to_string();
    [
        "-accel",
        accelerator.argument(),
        // microvm hangs often with this emulator's software engine.
        "-M",
        "q35",
        // Without -cx16, QEMU 7.2 trips over kernels from 6.12 on.
        "-cpu",
        "max,-cx16",
        "-nodefaults",
        "-display",
        "none",
        // MiB
        "-m",
        &memory,
        "-smp",
        &processors,
    ]
    .map(OsString::from)
    .into()
}

/// Returns a path as it can stand in one of QEMU's comma-separated options.
pub fn plain(path: impl AsRef<Path>) -> OsString {
    let mut text = Vec::new();
    for byte in path.as_ref().as_os_str().as_bytes() {
        text.push(*byte);
        if *byte == b',' {
            text.push(b',');
        }
    }
    OsString::from_vec(text)
}

/// Returns the options of the one disk: a raw image.
///
/// The host's cache may be lost with the host: nobody keeps these disks through a power cut. Only where
/// firmware boots it must it say that it comes first: otherwise the network is tried, too.
pub fn disk(image: &Path, by_firmware: bool) -> Vec<OsString> {
    let mut drive = OsString::from("if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file=");
    drive.push(plain(image));
    let first = if by_firmware { ",bootindex=0" } else { "" };
    vec![
        "-drive".into(),
        drive,
        "-device".into(),
        format!("nvme,drive=disk,serial=bedplate{first}").into(),
    ]
}

/// Returns the options of a network card on the network `netdev`, and of a source of randomness.
///
/// No option ROM: nobody boots from this card, and its file is in a package of its own.
pub fn network(netdev: &OsStr) -> Vec<OsString> {
    let mut options = vec![OsString::from("-netdev"), netdev.to_owned()];
    options.extend(
        [
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
            "-device",
            "virtio-rng-pci",
        ]
        .map(OsString::from),
    );
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_is_no_option() {
        assert_eq!(plain("/a,b/disk"), "/a,,b/disk");
        let options = disk(Path::new("/a,b/disk"), true);
        assert!(options[1].to_string_lossy().ends_with(",file=/a,,b/disk"));
        assert!(options[3].to_string_lossy().ends_with(",bootindex=0"));
    }

    #[test]
    fn memory_and_processors_are_as_asked_for() {
        let options = machine(Accelerator::Tcg, 1024, 2);
        let pair = |name: &str| {
            let at = options.iter().position(|option| option == name).unwrap();
            options[at + 1].to_string_lossy().into_owned()
        };
        assert_eq!(pair("-m"), "1024");
        assert_eq!(pair("-smp"), "2");
        assert_eq!(pair("-cpu"), "max,-cx16");
    }
}
