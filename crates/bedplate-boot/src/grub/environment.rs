//! GRUB's environment block: what boots and how often it is tried, and with it the commit point of every
//! change of what boots.
//!
//! ```text
//! # GRUB Environment Block
//! bedplate_timeout=0
//! bedplate_default=<B>      the deployment that boots, unless
//! bedplate_base=<B>         this one is the same, and
//! bedplate_trial=<D>        this one, on trial, has
//! bedplate_tries=110        a `1` for each try that is left; a `0` stands for each that was
//! #…                        padding, to exactly 512 bytes
//! ```
//!
//! Invariant: it is exactly [`SECTOR`] bytes long and only ever overwritten in place, by us and by GRUB: a
//! disk writes a sector whole or not at all, and nothing is allocated.

use bedplate_model::record::DeploymentId;

use crate::entry::{EntryName, Tries};
use crate::loader_conf::{LoaderConf, SECTOR};

/// What GRUB looks for at the beginning.
const SIGNATURE: &str = "# GRUB Environment Block\n";
/// The most tries: with them the text is 270 bytes long.
const TRIES_MAX: u32 = 99;

/// What GRUB is told, and what it counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Environment {
    /// What boots.
    pub loader: LoaderConf,
    /// What is tried before.
    pub trial: Option<Trial>,
}

/// A deployment on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// What boots when no try is left. While another one is the default, nothing is tried.
    pub base: DeploymentId,
    /// What is tried.
    pub deployment: DeploymentId,
    /// How often it still is.
    pub left: u32,
    /// How often it was.
    pub done: u32,
}

impl Trial {
    /// Returns the trial of an entry's name, or `None` where it has no base.
    pub fn of(name: &EntryName) -> Option<Self> {
        let tries = name.tries?;
        Some(Self {
            base: name.base?,
            deployment: name.deployment,
            left: tries.left.min(TRIES_MAX),
            done: tries.done.unwrap_or(0),
        })
    }

    /// Returns whether an entry's name is that of the same trial, however often it was tried.
    pub fn is(&self, name: &EntryName) -> bool {
        name.base == Some(self.base) && name.deployment == self.deployment
    }

    /// Returns the name that its entry would have if the loader counted there.
    pub fn name(&self) -> EntryName {
        EntryName {
            base: Some(self.base),
            deployment: self.deployment,
            tries: Some(Tries {
                done: (self.done > 0).then_some(self.done),
                ..Tries::new(self.left)
            }),
        }
    }
}

impl Environment {
    /// Prints it, padded to its sector.
    pub fn to_sector(&self) -> [u8; SECTOR] {
        let LoaderConf { timeout, default } = self.loader;
        let mut text = format!(
            "{SIGNATURE}# Made by bedplate, exactly one sector.\n\
             bedplate_timeout={timeout}\nbedplate_default={default}\n"
        );
        if let Some(trial) = self.trial {
            let left = trial.left.min(TRIES_MAX);
            let done = trial.done.min(TRIES_MAX - left);
            text.push_str(&format!(
                "bedplate_base={}\nbedplate_trial={}\nbedplate_tries={}{}\n",
                trial.base,
                trial.deployment,
                "1".repeat(left as usize),
                "0".repeat(done as usize),
            ));
        }
        let mut sector = [b'#'; SECTOR];
        sector[..text.len()].copy_from_slice(text.as_bytes());
        sector
    }

    /// Parses it, or returns `None` where it is not ours. A trial that cannot be read is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes.get(..SECTOR.min(bytes.len()))?).ok()?;
        let lines = text.strip_prefix(SIGNATURE)?.lines();
        // Of a name that stands there several times, GRUB takes the last.
        let value = |name: &str| {
            let values = lines.clone().filter_map(|line| line.split_once('='));
            values.rev().find(|(key, _)| *key == name).map(|(_, v)| v)
        };
        let timeout = match value("bedplate_timeout") {
            Some(text) => text.parse().ok()?,
            None => 0,
        };
        let default = value("bedplate_default")?.parse().ok()?;
        let trial = || {
            let tries = value("bedplate_tries")?;
            let left = tries.trim_end_matches('0');
            let only_ones = left.bytes().all(|byte| byte == b'1');
            (only_ones && tries.len() <= TRIES_MAX as usize).then_some(())?;
            Some(Trial {
                base: value("bedplate_base")?.parse().ok()?,
                deployment: value("bedplate_trial")?.parse().ok()?,
                left: left.len() as u32,
                done: (tries.len() - left.len()) as u32,
            })
        };
        Some(Self {
            loader: LoaderConf { timeout, default },
            trial: trial(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(digit: u8) -> DeploymentId {
        DeploymentId([digit; 4])
    }

    fn environment(left: u32, done: u32) -> Environment {
        Environment {
            loader: LoaderConf {
                timeout: u32::MAX,
                default: id(0x11),
            },
            trial: Some(Trial {
                base: id(0x11),
                deployment: id(0x22),
                left,
                done,
            }),
        }
    }

    #[test]
    fn it_prints_as_it_parses_and_fills_its_sector() {
        let none = Environment {
            trial: None,
            ..environment(0, 0)
        };
        for wanted in [
            none,
            environment(99, 0),
            environment(0, 99),
            environment(2, 1),
        ] {
            let sector = wanted.to_sector();
            assert_eq!(Environment::parse(&sector), Some(wanted));
            assert!(sector.is_ascii() && sector.ends_with(b"####"));
        }
    }

    #[test]
    fn a_trial_has_the_name_that_the_other_loader_would_give_its_entry() {
        for (left, done, name) in [
            (3, 0, "bedplate-11111111-22222222+3.conf"),
            (1, 2, "bedplate-11111111-22222222+1-2.conf"),
            (0, 3, "bedplate-11111111-22222222+0-3.conf"),
        ] {
            let trial = environment(left, done).trial.unwrap();
            assert_eq!(trial.name().to_string(), name);
            assert_eq!(Trial::of(&trial.name()), Some(trial));
        }
    }

    #[test]
    fn more_tries_than_fit_are_the_most_that_do() {
        let sector = environment(1000, 1000).to_sector();
        let trial = Environment::parse(&sector).unwrap().trial.unwrap();
        assert_eq!((trial.left, trial.done), (99, 0));
    }

    #[test]
    fn a_trial_that_cannot_be_read_is_none_and_a_default_that_cannot_is_not_ours() {
        let text = String::from_utf8(environment(2, 1).to_sector().to_vec()).unwrap();
        for (from, to) in [("=110", "=101"), ("=110", "=x"), ("trial=2", "trial=x")] {
            let changed = text.replace(from, to);
            let parsed = Environment::parse(changed.as_bytes()).unwrap();
            assert_eq!(
                (parsed.trial, parsed.loader.default),
                (None, id(0x11)),
                "{to}"
            );
        }
        for (from, to) in [("default=1", "default=x"), ("# GRUB", "# grub")] {
            assert_eq!(Environment::parse(text.replace(from, to).as_bytes()), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Environment::parse(&bytes);
            let _ = Environment::parse(&[SIGNATURE.as_bytes(), &bytes].concat());
        }
    }
}
