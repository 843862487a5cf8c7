//! Install: an image becomes a disk that boots.
//!
//! ```text
//! store ─→ InstallPlan::new ─→ Display (--dry-run stops here)
//!                 │
//!                 └─→ execute:  FILE.part ─ ESP ─ root ─ partition table ─ rename to FILE
//! ```
//!
//! | part | made by | from |
//! |---|---|---|
//! | MBR, BIOS boot partition | bedplate-boot's `grub` | the image's GRUB, for a BIOS alone |
//! | ESP | [`esp`] | boot files, rendered by bedplate-boot from the record |
//! | root | [`ext4`] | [`content`]: a store with one image, the record, nothing of one machine |
//! | partition table | [`table`] | [`layout`] |
//!
//! Invariant: the plan knows everything that execution will do; nothing is decided later. A FILE has
//! its name only when it is whole, and a disk has a partition table only when all else is on it.

mod content;
mod dots;
pub mod esp;
pub mod ext4;
mod fat_time;
pub mod layout;
mod plan;
mod staging;
pub mod table;
mod target;

pub use content::ContentError;
pub use ext4::Ext4Error;
pub use fat_time::FatTime;
pub use layout::{Firmware, Layout, LayoutError};
pub use plan::{
    DirectBoot, ExecuteError, InstallEvent, InstallObserver, InstallOptions, InstallPlan,
    Installed, PlanError,
};
pub use staging::StagingError;
pub use table::{Identifiers, TableError};
pub use target::{Target, TargetError};
