//! Which loader a machine has, and so how its boot partition is read and written.
//!
//! | | systemd-boot (UEFI) | GRUB (BIOS) |
//! |---|---|---|
//! | an entry | `loader/entries/bedplate-….conf` | `bedplate/entries/…cfg`, `bedplate/trials/…cfg` |
//! | what boots | `loader/loader.conf` | `bedplate/grubenv` |
//! | tries | in the entry's name | in `bedplate/grubenv` |
//!
//! Invariant: the files themselves say which loader reads them; nothing else is asked.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::entry::EntryName;
use crate::grub;
use crate::partition::BootPartition;
use crate::{ENTRIES, ENTRIES_KIND, LOADER_CONF};

/// A loader that we write entries for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loader {
    /// systemd-boot, which UEFI firmware starts.
    #[default]
    SystemdBoot,
    /// GRUB, which a BIOS starts.
    Grub,
}

impl Loader {
    /// Finds out whose files lie on a boot partition.
    pub fn of(partition: &dyn BootPartition) -> io::Result<Self> {
        let names = partition.list(grub::DIRECTORY)?;
        let ours = |name: &String| {
            let path = format!("{}/{name}", grub::DIRECTORY);
            path == grub::CONFIG || path == grub::ENVIRONMENT
        };
        Ok(if names.iter().any(ours) {
            Self::Grub
        } else {
            Self::SystemdBoot
        })
    }

    /// Returns the path of an entry's file.
    pub fn entry_path(self, name: &EntryName) -> String {
        match self {
            Self::SystemdBoot => format!("{ENTRIES}/{name}"),
            Self::Grub => grub::entry_path(name),
        }
    }

    /// Returns the path of the file of one sector that says what boots.
    pub const fn default_path(self) -> &'static str {
        match self {
            Self::SystemdBoot => LOADER_CONF,
            Self::Grub => grub::ENVIRONMENT,
        }
    }

    /// Returns the path of the file that is the same on every machine, and never changes.
    pub const fn fixed_path(self) -> &'static str {
        match self {
            Self::SystemdBoot => ENTRIES_KIND,
            Self::Grub => grub::CONFIG,
        }
    }

    /// Says whether the loader can hand an argument to the kernel as it is meant.
    pub fn check_argument(self, argument: &str) -> Result<(), ArgumentError> {
        match self {
            Self::SystemdBoot => Ok(()),
            Self::Grub => grub::plain_word(argument).map(drop),
        }
    }
}

impl fmt::Display for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SystemdBoot => "systemd-boot",
            Self::Grub => "GRUB",
        })
    }
}

/// A kernel argument that GRUB would hand over otherwise than it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("GRUB cannot hand `{0}` to the kernel: it has a backslash or a single quote")]
pub struct ArgumentError(pub(crate) String);
