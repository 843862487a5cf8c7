//! Upgrades that nobody asks for, with manners: decisions, and what is remembered between two looks.
//!
//! ```text
//! timer ─→ due? ─→ look ─→ newer, and this machine's turn? ─→ stage ─→ window, inhibitors, hooks ─→ restart
//!            └──────────────────── not now: Waits, which `status` shows ──────────────────┘
//! ```
//!
//! Invariant: a machine that was told nothing does nothing by itself. What runs on trial is never upgraded, and
//! nobody who asked for time is interrupted.

mod inhibitors;
mod window;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bedplate_model::record::DeploymentId;
use bedplate_model::{Sha256, layout};
use bedplate_sys::durable;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

pub use inhibitors::{Inhibitor, Inhibitors, Logind};
pub use window::{LocalTime, ParseWindowError, Window};

use crate::config::UpgradeConfig;

/// What is remembered between two looks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// When the source was asked last, in seconds since 1970.
    pub looked: Option<i64>,
    /// What the source had then that this machine has not.
    pub newer: Option<Newer>,
    /// What the machine waits for.
    pub waits: Option<Waits>,
}

/// Something newer, and since when it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newer {
    /// The manifest.
    pub manifest: Sha256,
    /// When it was seen first, in seconds since 1970.
    pub seen: i64,
}

/// What a machine that upgrades by itself waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Waits {
    /// What runs is on trial.
    Trial {
        /// What runs.
        deployment: DeploymentId,
    },
    /// Machines take turns.
    Turn {
        /// When it is this one's, in seconds since 1970.
        at: i64,
    },
    /// Somebody has to say so: it was told only to look.
    Word {
        /// What is newer.
        manifest: Sha256,
    },
    /// It restarts in a window.
    Window {
        /// When the next one opens, in seconds since 1970.
        at: i64,
    },
    /// Somebody asked logind for time.
    Inhibited {
        /// Who.
        by: Inhibitor,
    },
    /// A hook of `pre-reboot.d` was not ready.
    Hook {
        /// Which.
        path: PathBuf,
        /// How it ended.
        failure: String,
        /// What it printed.
        output: String,
    },
    /// A look or an upgrade failed; it is tried again.
    Failed {
        /// Why.
        error: String,
    },
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trial { deployment } => {
                write!(f, "until deployment {deployment}, which runs, is proven")
            }
            Self::Turn { .. } => write!(f, "for this machine's turn"),
            Self::Word { manifest } => {
                write!(
                    f,
                    "for somebody to fetch {manifest}: it is told only to look"
                )
            }
            Self::Window { .. } => write!(f, "for the next window in which it may restart"),
            Self::Inhibited { by } => write!(f, "for {by}"),
            Self::Hook {
                path,
                failure,
                output,
            } => {
                write!(f, "for {}, which {failure}", path.display())?;
                match output.lines().last() {
                    Some(line) => write!(f, ": {line}"),
                    None => Ok(()),
                }
            }
            Self::Failed { error } => write!(f, "until this works again: {error}"),
        }
    }
}

impl Waits {
    /// Returns until when it waits, in seconds since 1970, where that is known.
    pub const fn until(&self) -> Option<i64> {
        match self {
            Self::Turn { at } | Self::Window { at } => Some(*at),
            _ => None,
        }
    }
}

impl Memory {
    /// Reads what a machine remembers. What cannot be read is forgotten: it is a matter of manners alone.
    pub fn read(root: &Path) -> Self {
        fs::read(root.join(layout::AUTOMATIC))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Writes it down.
    pub fn write(&self, root: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        text.push(b'\n');
        durable::replace(&root.join(layout::AUTOMATIC), &text, 0o600)
    }

    /// Returns whether the source is to be asked now. A clock that was put back does not stop it.
    pub fn is_due(&self, config: &UpgradeConfig, now: i64) -> bool {
        self.looked.is_none_or(|looked| {
            let every = i64::try_from(config.every).unwrap_or(i64::MAX);
            now < looked || now - looked >= every
        })
    }

    /// Takes in what the source has: nothing, or something that this machine has not.
    pub fn saw(&mut self, manifest: Option<Sha256>, now: i64) {
        self.looked = Some(now);
        let known = self.newer.filter(|newer| Some(newer.manifest) == manifest);
        self.newer = known.or_else(|| {
            manifest.map(|manifest| Newer {
                manifest,
                seen: now,
            })
        });
    }
}

/// Returns when it is a machine's turn to take something newer: its share of the jitter after it saw it.
///
/// The share is that of machine and version: no machine is always the first.
pub fn turn(config: &UpgradeConfig, machine: &[u8], newer: &Newer) -> i64 {
    let digest = sha2::Sha256::new()
        .chain_update(machine)
        .chain_update(newer.manifest.0)
        .finalize();
    let mut eight = [0; 8];
    eight.copy_from_slice(&digest[..8]);
    let share = u64::from_le_bytes(eight) % config.jitter.saturating_add(1).max(1);
    newer
        .seen
        .saturating_add(i64::try_from(share).unwrap_or(i64::MAX))
}

/// Decides whether windows and people let the machine restart now.
pub fn may_restart(
    config: &UpgradeConfig,
    now: i64,
    local: LocalTime,
    inhibitors: &[Inhibitor],
) -> Result<(), Waits> {
    let opens = config.windows.iter().map(|window| window.opens_in(local));
    match opens.min() {
        None | Some(0) => {}
        Some(minutes) => {
            return Err(Waits::Window {
                at: now.saturating_add(i64::from(minutes) * 60),
            });
        }
    }
    match inhibitors.first() {
        None => Ok(()),
        Some(by) => Err(Waits::Inhibited { by: by.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newer(byte: u8) -> Newer {
        Newer {
            manifest: Sha256([byte; 32]),
            seen: 1000,
        }
    }

    #[test]
    fn machines_spread_over_the_jitter_and_not_always_in_the_same_order() {
        let config = UpgradeConfig {
            jitter: 100,
            ..UpgradeConfig::default()
        };
        let turns = |version: u8| -> Vec<i64> {
            (0..50_u8)
                .map(|machine| turn(&config, &[machine], &newer(version)))
                .collect()
        };
        let (first, second) = (turns(1), turns(2));
        assert!(first.iter().all(|at| (1000..=1100).contains(at)));
        assert_eq!(first, turns(1), "a machine keeps its turn");
        assert_ne!(first, second);
        assert!(
            first
                .iter()
                .collect::<std::collections::BTreeSet<_>>()
                .len()
                > 25
        );
        let at_once = UpgradeConfig {
            jitter: 0,
            ..config
        };
        assert_eq!(turn(&at_once, b"x", &newer(1)), 1000);
    }

    #[test]
    fn it_looks_again_when_it_is_time_or_the_clock_was_put_back() {
        let config = UpgradeConfig {
            every: 60,
            ..UpgradeConfig::default()
        };
        let mut memory = Memory::default();
        assert!(memory.is_due(&config, 5));
        memory.saw(Some(Sha256([1; 32])), 100);
        assert!(
            !memory.is_due(&config, 159)
                && memory.is_due(&config, 160)
                && memory.is_due(&config, 99)
        );
        memory.saw(Some(Sha256([1; 32])), 200);
        assert_eq!(memory.newer.unwrap().seen, 100, "it is known since then");
        memory.saw(Some(Sha256([2; 32])), 300);
        assert_eq!(memory.newer.unwrap().seen, 300);
        memory.saw(None, 400);
        assert_eq!(memory.newer, None);
    }

    #[test]
    fn it_waits_for_its_window_and_for_those_who_ask_for_time() {
        let mut config = UpgradeConfig::default();
        let noon = LocalTime::new(0, 12 * 60);
        assert_eq!(may_restart(&config, 0, noon, &[]), Ok(()));
        let by = Inhibitor {
            who: "backup".into(),
            why: "runs".into(),
        };
        let waits = may_restart(&config, 0, noon, std::slice::from_ref(&by)).unwrap_err();
        assert_eq!(waits, Waits::Inhibited { by });
        config.windows = vec![
            "Sat 01:00-02:00".parse().unwrap(),
            "13:00-14:00".parse().unwrap(),
        ];
        let waits = may_restart(&config, 7, noon, &[]).unwrap_err();
        assert_eq!(waits.until(), Some(3607));
        assert_eq!(
            may_restart(&config, 7, LocalTime::new(0, 13 * 60), &[]),
            Ok(())
        );
    }

    #[test]
    fn what_cannot_be_read_is_forgotten_and_what_was_written_is_read() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Memory::read(root.path()), Memory::default());
        fs::create_dir(root.path().join(layout::BEDPLATE)).unwrap();
        fs::write(root.path().join(layout::AUTOMATIC), "{\"looked\":").unwrap();
        assert_eq!(Memory::read(root.path()), Memory::default());
        let memory = Memory {
            looked: Some(7),
            newer: Some(newer(3)),
            waits: Some(Waits::Hook {
                path: "/etc/bedplate/pre-reboot.d/10-drain".into(),
                failure: "ended with 1".into(),
                output: "two\nsessions left".into(),
            }),
        };
        memory.write(root.path()).unwrap();
        assert_eq!(Memory::read(root.path()), memory);
        let told = memory.waits.unwrap().to_string();
        assert!(
            told.ends_with("10-drain, which ended with 1: sessions left"),
            "{told}"
        );
    }
}
