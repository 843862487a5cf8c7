//! The initramfs: early boot's program, and the kernel modules that it needs to reach the root.
//!
//! ```text
//! modules.dep .builtin .softdep .alias ─→ modules: what to load, in which order
//! files of the modules, unpacked       ─┐
//! bedplate-init                        ─┴→ cpio ─→ zstd
//! ```
//!
//! Needs no tool of the image, and runs nothing of it.
//!
//! Invariant: equal input gives equal bytes.

mod cpio;
mod elf;
mod modules;
mod unpack;

use std::io;

pub use modules::{ModuleList, Stage};

/// Where the list of modules stands in the initramfs: a line `needed PATH`, `guest PATH` or `driver PATH` for
/// each module, in the order of loading.
pub const MODULE_LIST: &str = "etc/bedplate-modules";

/// How hard zstd tries: a quarter slower to make than the default for a tenth less to load.
const ZSTD_LEVEL: i32 = 12;

/// Modules that every boot needs.
const NEEDED: [Wanted; 4] = [
    Wanted::essential("ext4"),
    Wanted::essential("erofs"),
    Wanted::essential("overlay"),
    // Only kernels before 6.12 mount EROFS through it.
    Wanted::optional("loop"),
];

/// What leads to whoever runs a virtual machine: loaded only where they may give orders, and with the drivers.
const GUEST: [Wanted; 2] = [
    Wanted::optional("virtio_pci"),
    Wanted::optional("virtio_console"),
];

/// Drivers of disks: loaded only when the root is not found without them.
const DRIVERS: [Wanted; 16] = [
    Wanted::optional("nvme"),
    Wanted::optional("virtio_blk"),
    Wanted::optional("virtio_scsi"),
    Wanted::optional("ahci"),
    Wanted::optional("ata_piix"),
    Wanted::optional("sd_mod"),
    Wanted::optional("mmc_block"),
    Wanted::optional("sdhci_pci"),
    Wanted::optional("sdhci_acpi"),
    Wanted::optional("xhci_pci"),
    Wanted::optional("ehci_pci"),
    Wanted::optional("usb_storage"),
    Wanted::optional("uas"),
    Wanted::optional("hv_storvsc"),
    Wanted::optional("vmw_pvscsi"),
    Wanted::optional("xen_blkfront"),
];

/// A module by its name.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    name: &'static str,
    essential: bool,
}

impl Wanted {
    const fn essential(name: &'static str) -> Self {
        Self {
            name,
            essential: true,
        }
    }

    const fn optional(name: &'static str) -> Self {
        Self {
            name,
            essential: false,
        }
    }
}

/// The modules directory of one kernel release.
pub trait ModuleSource {
    /// Reads a file by its path below `/usr/lib/modules/<release>`, or returns `None` where there is none.
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>>;
}

/// What an initramfs is made of.
#[derive(Clone, Copy)]
pub struct InitramfsInput<'a> {
    /// The kernel's release.
    pub release: &'a str,
    /// Its modules.
    pub modules: &'a dyn ModuleSource,
    /// Early boot's program, linked statically.
    pub init: &'a [u8],
}

impl std::fmt::Debug for InitramfsInput<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InitramfsInput")
            .field("release", &self.release)
            .finish_non_exhaustive()
    }
}

/// Makes an initramfs.
pub fn build(input: &InitramfsInput<'_>) -> Result<Vec<u8>, InitramfsError> {
    // A disk may be reached through virtio_pci, too, so drivers come after it.
    let stages: [(Stage, &[Wanted]); 3] = [
        (Stage::Needed, &NEEDED),
        (Stage::Guest, &GUEST),
        (Stage::Driver, &DRIVERS),
    ];
    let list = modules::resolve(input.modules, &stages)?;
    let mut archive = cpio::Archive::default();
    for directory in ["dev", "etc", "newroot", "proc", "run", "sys", "sysroot"] {
        archive.directory(directory);
    }
    // The kernel opens it for the first program, before there is a devtmpfs.
    archive.character_device("dev/console", 0o600, (5, 1));
    let mut lines = String::new();
    let base = format!("usr/lib/modules/{}", input.release);
    for (stage, path) in &list.modules {
        let packed = read(input.modules, path)?
            .ok_or_else(|| InitramfsError::Vanished { path: path.clone() })?;
        let (plain, bytes) =
            unpack::module(path, packed).map_err(|source| InitramfsError::Unpack {
                path: path.clone(),
                source,
            })?;
        let plain = format!("{base}/{plain}");
        lines.extend([stage.to_string(), " /".into(), plain.clone(), "\n".into()]);
        archive.file(&plain, 0o644, bytes);
    }
    archive.file(MODULE_LIST, 0o644, lines.into_bytes());
    archive.file("init", 0o755, elf::loaded_part(input.init));
    zstd::bulk::compress(&archive.finish(), ZSTD_LEVEL).map_err(InitramfsError::Compress)
}

fn read(source: &dyn ModuleSource, path: &str) -> Result<Option<Vec<u8>>, InitramfsError> {
    source.read(path).map_err(|source| InitramfsError::Read {
        path: path.into(),
        source,
    })
}

/// Why an initramfs could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The list that depmod makes is not there.
    #[error("the kernel's modules have no {path}: run depmod in the image")]
    NoList {
        /// The list.
        path: &'static str,
    },
    /// A file could not be read.
    #[error("cannot read {path} of the kernel's modules")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A module without which no boot is possible is neither a file nor built in.
    #[error("the kernel has no module `{name}`, without which no image can be booted")]
    Essential {
        /// The module.
        name: &'static str,
    },
    /// A module stands in `modules.dep`, and is not there.
    #[error("{path} stands in modules.dep, and is not there")]
    Vanished {
        /// The module.
        path: String,
    },
    /// A module could not be unpacked.
    #[error("cannot unpack the kernel module {path}")]
    Unpack {
        /// The module.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The archive could not be compressed.
    #[error("cannot compress the initramfs")]
    Compress(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Write as _;

    struct Tree(BTreeMap<&'static str, Vec<u8>>);

    impl ModuleSource for Tree {
        fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
            Ok(self.0.get(path).cloned())
        }
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    /// `module overlay`, packed by xz with the checksum that kernels ask for.
    const OVERLAY_XZ: &[u8] = b"\xfd\x37\x7a\x58\x5a\x00\x00\x01\x69\x22\xde\x36\x02\x00\x21\x01\
        \x1c\x00\x00\x00\x10\xcf\x58\xcc\x01\x00\x0d\x6d\x6f\x64\x75\x6c\
        \x65\x20\x6f\x76\x65\x72\x6c\x61\x79\x00\x00\x00\x9b\x81\xf4\x67\
        \x00\x01\x22\x0e\x0c\xde\x8c\x60\x90\x42\x99\x0d\x01\x00\x00\x00\
        \x00\x01\x59\x5a";

    /// Like a distribution's kernel: ext4 built in, others packed in each way there is.
    fn tree() -> Tree {
        Tree(BTreeMap::from([
            (
                "modules.dep",
                b"kernel/fs/erofs/erofs.ko.zst: kernel/lib/libcrc32c.ko\n\
                  kernel/lib/libcrc32c.ko:\n\
                  kernel/crypto/crc32c-intel.ko.gz:\n\
                  kernel/fs/overlayfs/overlay.ko.xz:\n\
                  kernel/drivers/a.ko: kernel/drivers/virtio_blk.ko\n\
                  kernel/drivers/virtio_blk.ko: kernel/drivers/a.ko\n"
                    .to_vec(),
            ),
            ("modules.builtin", b"kernel/fs/ext4/ext4.ko\n".to_vec()),
            (
                "modules.softdep",
                b"# made by depmod\nsoftdep libcrc32c pre: crc32c\n".to_vec(),
            ),
            (
                "modules.alias",
                b"alias crc32c crc32c_intel\nalias crypto-crc32c crc32c_intel\n".to_vec(),
            ),
            (
                "kernel/fs/erofs/erofs.ko.zst",
                zstd::bulk::compress(b"module erofs", 3).unwrap(),
            ),
            ("kernel/lib/libcrc32c.ko", b"module libcrc32c".to_vec()),
            ("kernel/crypto/crc32c-intel.ko.gz", gz(b"module intel")),
            ("kernel/fs/overlayfs/overlay.ko.xz", OVERLAY_XZ.to_vec()),
            ("kernel/drivers/virtio_blk.ko", b"module blk".to_vec()),
            ("kernel/drivers/a.ko", b"module a".to_vec()),
        ]))
    }

    fn input(tree: &Tree) -> InitramfsInput<'_> {
        InitramfsInput {
            release: "6.1.0",
            modules: tree,
            init: b"the program",
        }
    }

    #[test]
    fn dependencies_come_first_and_modules_are_unpacked() {
        let image = build(&input(&tree())).unwrap();
        assert_eq!(build(&input(&tree())).unwrap(), image, "reproducible");
        let archive = zstd::stream::decode_all(&image[..]).unwrap();
        let text = String::from_utf8_lossy(&archive);
        let base = "/usr/lib/modules/6.1.0/kernel";
        let expected = format!(
            "needed {base}/crypto/crc32c-intel.ko\nneeded {base}/lib/libcrc32c.ko\n\
             needed {base}/fs/erofs/erofs.ko\nneeded {base}/fs/overlayfs/overlay.ko\n\
             driver {base}/drivers/a.ko\ndriver {base}/drivers/virtio_blk.ko\n"
        );
        assert!(text.contains(&expected), "{text}");
        for content in ["erofs", "libcrc32c", "intel", "overlay", "blk", "a"] {
            assert!(text.contains(&format!("module {content}")), "{content}");
        }
    }

    #[test]
    fn a_kernel_that_cannot_boot_an_image_is_refused_by_name() {
        let mut without = tree();
        without.0.insert("modules.builtin", Vec::new());
        let error = build(&input(&without)).unwrap_err();
        assert!(
            matches!(error, InitramfsError::Essential { name: "ext4" }),
            "{error}"
        );
        let mut vanished = tree();
        vanished.0.remove("kernel/lib/libcrc32c.ko");
        let error = build(&input(&vanished)).unwrap_err();
        assert!(matches!(error, InitramfsError::Vanished { .. }), "{error}");
        let mut broken = tree();
        broken
            .0
            .insert("kernel/fs/erofs/erofs.ko.zst", b"not zstd".to_vec());
        let error = build(&input(&broken)).unwrap_err();
        assert!(matches!(error, InitramfsError::Unpack { .. }), "{error}");
        without.0.remove("modules.dep");
        let error = build(&input(&without)).unwrap_err();
        assert!(matches!(error, InitramfsError::NoList { .. }), "{error}");
    }

    #[test]
    fn cpio_lists_what_was_put_in() {
        let archive = zstd::stream::decode_all(&build(&input(&tree())).unwrap()[..]).unwrap();
        let spawned = std::process::Command::new("cpio")
            .args(["-t", "--quiet"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn();
        let Ok(mut cpio) = spawned else {
            return; // not every machine has cpio
        };
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        let names = String::from_utf8(output.stdout).unwrap();
        for name in ["init", "dev/console", "etc/bedplate-modules", "usr/lib"] {
            assert!(names.lines().any(|line| line == name), "{names}");
        }
    }
}
