//! Where things lie on a machine: paths below its physical root, and below an image's root.
//!
//! ```text
//! <physical root>/bedplate/
//!   store/                    objects, images, refs            bedplate-store
//!   record.json               the record                       bedplate-deploy
//!   deployments/<id>/etc      a deployment's /etc              made by early boot or by finalize
//!   deployments/<id>/etc-…    or a layer over the image's, and overlayfs's own directory
//!   machine-id                for an /etc that keeps nothing   made by early boot
//!   var                       the machine's /var               made by early boot, then nobody's
//! ```

/// The directory of everything that is ours, below the physical root.
pub const BEDPLATE: &str = "bedplate";
/// The store, below the physical root.
pub const STORE: &str = "bedplate/store";
/// The record, below the physical root.
pub const RECORD: &str = "bedplate/record.json";
/// The preallocated slot that the next record is written to, below the physical root.
pub const RECORD_NEXT: &str = "bedplate/record.next";
/// What belongs to single deployments, below the physical root: one directory for each id.
pub const DEPLOYMENTS: &str = "bedplate/deployments";
/// A deployment's own /etc, below its directory.
pub const ETC: &str = "etc";
/// A layer of what was changed in a deployment's /etc, below its directory.
pub const ETC_LAYER: &str = "etc-layer";
/// What overlayfs needs beside that layer, below a deployment's directory.
pub const ETC_WORK: &str = "etc-work";
/// The machine's id where its /etc keeps none, below the physical root.
pub const MACHINE_ID: &str = "bedplate/machine-id";
/// The log of what changed, below the physical root: a line for each event.
pub const EVENTS: &str = "bedplate/events.jsonl";
/// The log before that one, below the physical root.
pub const EVENTS_BEFORE: &str = "bedplate/events.1.jsonl";
/// What a machine that upgrades by itself remembers, below the physical root.
pub const AUTOMATIC: &str = "bedplate/automatic.json";
/// The machine's /var, below the physical root.
pub const VAR: &str = "bedplate/var";
/// Says that every object of the store was sealed, below the physical root.
pub const SEALED: &str = "bedplate/store/sealed";

/// Where the physical root is mounted on a running machine.
pub const SYSROOT: &str = "/sysroot";
/// What early boot tells the running system about what it booted: one JSON document.
pub const BOOTED: &str = "/run/bedplate/booted.json";
/// A summary of the machine's state that everyone may read.
pub const STATUS_SUMMARY: &str = "/run/bedplate/status.json";

/// Kernels with their modules, below an image's root: one directory for each release.
pub const MODULES: &str = "usr/lib/modules";
/// The kernel, below its modules directory.
pub const VMLINUZ: &str = "vmlinuz";
/// The initramfs, below its modules directory.
pub const INITRAMFS: &str = "initramfs.img";
/// systemd-boot, below an image's root.
pub const SYSTEMD_BOOT: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";
/// GRUB for a BIOS, below an image's root: a directory.
pub const GRUB: &str = "usr/lib/grub/i386-pc";
/// The early-boot program that `build` put into an image, below its root.
pub const INIT: &str = "usr/lib/bedplate/bedplate-init";
/// The program itself, below an image's root.
pub const PROGRAM: &str = "usr/bin/bedplate";
