//! What an image and an administrator set about a machine: `machine.toml`.
//!
//! ```text
//! /usr/lib/bedplate/machine.toml   the image's      ─┐
//! /etc/bedplate/machine.toml       the machine's    ─┴─ key by key, the machine's last ─→ Config
//! ```
//!
//! Invariant: a machine without such files works; what a file does not say has its default.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bedplate_model::human;
use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

/// The files, below the running system's root, in the order in which they count.
pub const FILES: [&str; 2] = ["usr/lib/bedplate/machine.toml", "etc/bedplate/machine.toml"];

/// What is set about a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// The health gate.
    pub health: HealthConfig,
}

/// What must hold before a deployment counts as proven.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct HealthConfig {
    /// How often a deployment on trial may start before its base boots again.
    pub tries: u32,
    /// For how many seconds a deployment is watched after its checks passed.
    #[serde(deserialize_with = "seconds")]
    pub probation: u64,
    /// After how many seconds a script counts as failed.
    #[serde(deserialize_with = "seconds")]
    pub script_timeout: u64,
    /// Whether units that failed, and had not when the base was proven, fail the gate.
    pub failed_units: FailedUnits,
    /// Units that may fail: names, or patterns with `*`.
    pub ignore_units: Vec<String>,
    /// How often the service manager may restart one service during the probation.
    pub restarts: u32,
}

/// What failed units do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailedUnits {
    /// They fail the gate.
    Fail,
    /// They are named, and no more.
    Note,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            tries: 3,
            probation: 60,
            script_timeout: 300,
            failed_units: FailedUnits::Fail,
            // A network that is away says nothing about the version.
            ignore_units: vec!["*-wait-online.service".into(), "*-wait-online@*".into()],
            restarts: 3,
        }
    }
}

/// Why a configuration could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadConfigError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is no TOML, or sets what there is not.
    #[error("{} is not right: {problem}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// Reads the configuration of the system below `root`.
    pub fn read(root: &Path) -> Result<Self, ReadConfigError> {
        let mut merged = Table::new();
        for name in FILES {
            let path = root.join(name);
            match fs::read_to_string(&path) {
                Ok(text) => {
                    // Each file alone first, so that the error names it.
                    let table = parse(&text).map_err(|problem| ReadConfigError::Parse {
                        path: path.clone(),
                        problem,
                    })?;
                    merge(&mut merged, table);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ReadConfigError::Read { path, source }),
            }
        }
        of_table(merged).map_err(|problem| ReadConfigError::Parse {
            path: root.join(FILES[1]),
            problem,
        })
    }
}

fn parse(text: &str) -> Result<Table, String> {
    let table: Table = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    of_table(table.clone()).map(|_| table)
}

fn of_table(table: Table) -> Result<Config, String> {
    let config: Config = Value::Table(table)
        .try_into()
        .map_err(|error: toml::de::Error| error.message().to_owned())?;
    // The digits of the counter in an entry's name.
    if !(1..=99).contains(&config.health.tries) {
        return Err("`tries` is from 1 to 99".to_owned());
    }
    Ok(config)
}

/// Takes over what `later` sets; tables are joined.
fn merge(into: &mut Table, later: Table) {
    for (key, value) in later {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(known)), Value::Table(more)) => merge(known, more),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    human::seconds(&text).ok_or_else(|| {
        serde::de::Error::custom(format!(
            "`{text}` is no time: a number with s, m, h, d or w behind it"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(image: &str, machine: &str) -> Result<Config, ReadConfigError> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in FILES.iter().zip([image, machine]) {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Config::read(root.path())
    }

    #[test]
    fn the_machines_file_counts_key_by_key() {
        let config = read(
            "[health]\ntries = 5\nprobation = \"10m\"\n",
            "[health]\ntries = 2\n",
        )
        .unwrap();
        assert_eq!((config.health.tries, config.health.probation), (2, 600));
        assert_eq!(config.health.restarts, HealthConfig::default().restarts);
        assert_eq!(
            Config::read(Path::new("/nonexistent")).unwrap(),
            Config::default()
        );
    }

    #[test]
    fn what_is_not_right_is_named_with_its_file() {
        for (image, machine, named) in [
            ("[health]\ntrys = 1\n", "", FILES[0]),
            ("", "[health]\nprobation = \"soon\"\n", FILES[1]),
            ("", "[health]\ntries = 0\n", FILES[1]),
            ("", "health", FILES[1]),
        ] {
            let error = read(image, machine).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
