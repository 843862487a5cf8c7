//! How a machine comes to boot what it should: boot entries, boot counting, the loader's default, the
//! kernel command line and the initramfs.
//!
//! ```text
//! Record ─┬─ render ─→ Plan ─→ BootPartition     what lies on the boot partition
//!         └─ what was observed there
//! modules + bedplate-init ─→ initramfs           what the loader loads
//! command line ─→ cmdline ─→ BootArguments       what early boot is told
//! kargs.d of an image ─→ kargs                   what goes onto the command line
//! local changes of it ─→ local_kargs              and what this machine changes of that
//! copies of systemd-boot ─→ loader_update        which of them follows the image's
//! boot options found ─→ firmware                 what starts the loader, and starts it again
//! frames ─→ guest                                what a virtual machine is told while it runs
//! ```
//!
//! Invariant: decisions are pure functions of the record and of what was observed; a boot partition is
//! changed by executing a plan, and by nothing else. `docs/format/boot.md` is normative.

pub mod cmdline;
pub mod entry;
pub mod firmware;
pub mod grub;
pub mod guest;
pub mod initramfs;
pub mod kargs;
pub mod loader;
pub mod loader_conf;
pub mod loader_update;
pub mod local_kargs;
pub mod partition;
pub mod render;

/// The directory of boot entries, on the boot partition.
pub const ENTRIES: &str = "loader/entries";
/// The file that says what kind of entries there are, on the boot partition.
pub const ENTRIES_KIND: &str = "loader/entries.srel";
/// What [`ENTRIES_KIND`] holds.
pub const ENTRIES_KIND_TEXT: &str = "type1\n";
/// The loader's configuration, on the boot partition.
pub const LOADER_CONF: &str = "loader/loader.conf";
/// The directory of kernels and initramfs images, on the boot partition.
pub const FILES: &str = "EFI/bedplate";
