//! Pins of mounts: they outlive their process, and have to be given up when the mount is gone, whoever
//! took it off.
//!
//! ```text
//! pin ─→ mount ─→ pin with the device     a gc in between sees a mount that may be being made
//! ```
//!
//! Invariant: a pin is given up only where its mount cannot be there any more.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::document::PinDocument;
use super::{Pin, RefsError};
use crate::store::Store;

/// What it takes to know later whether a mount is still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountHold {
    /// Which boot it was made in, as the kernel names it.
    pub boot: String,
    /// Which machine, where it has a number: others may use the same store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The device number of the mounted file system, as a list of mounts has it (`0:57`); `None` until it
    /// is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// The mounts of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenMounts {
    /// See [`MountHold::boot`].
    pub boot: String,
    /// See [`MountHold::machine`].
    pub machine: Option<String>,
    /// The device numbers of everything that is mounted anywhere; `None` where not all can be seen.
    pub devices: Option<BTreeSet<String>>,
}

/// What became of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountState {
    /// It is gone.
    Over,
    /// It is there, or something that has got its number.
    Mounted,
    /// It cannot be told.
    Unknown,
}

impl MountHold {
    /// Returns what became of the mount.
    pub fn state(&self, seen: &SeenMounts) -> MountState {
        if self.machine != seen.machine {
            return MountState::Unknown;
        }
        if self.boot != seen.boot {
            return MountState::Over;
        }
        match (&self.device, &seen.devices) {
            (Some(device), Some(devices)) if devices.contains(device) => MountState::Mounted,
            (Some(_), Some(_)) => MountState::Over,
            (None, _) | (_, None) => MountState::Unknown,
        }
    }
}

impl Store {
    /// Keeps the image of a mount from garbage collection, durably, until the mount is gone.
    pub fn pin_mount(&self, pin: &Pin, hold: &MountHold) -> Result<(), RefsError> {
        self.write_pin(&PinDocument::new(pin, Some(hold)))
    }

    /// Returns the pins of mounts with what is known of these; one that cannot be read is none.
    pub fn mount_pins(&self) -> Result<Vec<(Pin, MountHold)>, RefsError> {
        let pins = self.each_pin_document()?.into_iter().flatten();
        Ok(pins
            .filter_map(|document| Some((document.pin, document.mount?)))
            .collect())
    }

    /// Gives up the pin of a mount that is gone, unless somebody mounted there again meanwhile; returns
    /// whether it did.
    pub fn give_up_mount(&self, name: &str, hold: &MountHold) -> Result<bool, RefsError> {
        let locked = self
            .lock_for_collecting()
            .map_err(|source| RefsError::Write {
                path: self.path().join("pins"),
                source,
            })?;
        let same = |(pin, found): &(Pin, MountHold)| pin.name == name && found == hold;
        let is_same = self.mount_pins()?.iter().any(same);
        if is_same {
            self.unpin(name)?;
        }
        drop(locked);
        Ok(is_same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_over_only_where_it_cannot_be_there() {
        let hold = |device: Option<&str>| MountHold {
            boot: "one".into(),
            machine: Some("m".into()),
            device: device.map(str::to_owned),
        };
        let seen = |boot: &str, machine: &str, devices: Option<&[&str]>| SeenMounts {
            boot: boot.into(),
            machine: Some(machine.into()),
            devices: devices.map(|list| list.iter().map(ToString::to_string).collect()),
        };
        let there: Option<&[&str]> = Some(&["0:1", "0:57"]);
        let mounted = hold(Some("0:57"));
        for (hold, seen, state) in [
            (&mounted, seen("one", "m", there), MountState::Mounted),
            (&mounted, seen("one", "m", Some(&["0:1"])), MountState::Over),
            (&mounted, seen("two", "m", there), MountState::Over),
            (&mounted, seen("one", "m", None), MountState::Unknown),
            (&mounted, seen("two", "other", there), MountState::Unknown),
            // It is being made.
            (&hold(None), seen("one", "m", there), MountState::Unknown),
            (&hold(None), seen("two", "m", None), MountState::Over),
        ] {
            assert_eq!(hold.state(&seen), state, "{hold:?} {seen:?}");
        }
    }
}
