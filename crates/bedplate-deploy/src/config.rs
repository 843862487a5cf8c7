//! What an image and an administrator set about a machine: `machine.toml`.
//!
//! ```text
//! /usr/lib/bedplate/machine.toml   the image's      ─┐
//! /etc/bedplate/machine.toml       the machine's    ─┴─ key by key, the machine's last ─→ Config
//! ```
//!
//! Invariant: a machine without such files works; what a file does not say has its default. What is wrong is told
//! and left out, and the rest holds: a mistake, or a key that only a later program knows, leaves no machine
//! without its health gate.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bedplate_model::human;
use bedplate_model::record::EtcMode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use crate::automatic::Window;

/// The image's file, below its root.
pub const IMAGE_FILE: &str = "usr/lib/bedplate/machine.toml";
/// The machine's file, below the running system's root.
pub const LOCAL_FILE: &str = "etc/bedplate/machine.toml";
/// More bytes than any such file has.
pub const FILE_MAX: u64 = 1 << 20;

/// What is set about a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The health gate.
    pub health: HealthConfig,
    /// /etc.
    pub etc: EtcConfig,
    /// Upgrades that nobody asks for.
    pub upgrade: UpgradeConfig,
    /// The boot partition.
    pub boot: BootConfig,
    /// What is kept of what it had.
    pub keep: KeepConfig,
    /// What the machine's file says alone: it counts over that of the next image, too.
    pub local: LocalConfig,
}

/// What must hold before a deployment counts as proven.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct HealthConfig {
    /// How often a deployment on trial may start before its base boots again.
    #[serde(deserialize_with = "tries")]
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

/// How deployments come by their /etc.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct EtcConfig {
    /// The mode, for deployments that are made from now on.
    pub mode: EtcMode,
}

/// What a machine does by itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct UpgradeConfig {
    /// How far it goes.
    pub automatic: Automatic,
    /// How many seconds lie between two looks.
    #[serde(deserialize_with = "seconds")]
    pub every: u64,
    /// Over how many seconds machines spread: each has its own share of them, the same for one version.
    #[serde(deserialize_with = "seconds")]
    pub jitter: u64,
    /// When it may restart; at any time where there are none.
    pub windows: Vec<Window>,
}

/// How far a machine goes by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Automatic {
    /// It does nothing.
    #[default]
    Off,
    /// It looks for something newer, and says so.
    Check,
    /// It stages what is newer; that boots at the next reboot.
    Stage,
    /// It restarts into what it staged.
    Apply,
}

impl Default for UpgradeConfig {
    fn default() -> Self {
        Self {
            automatic: Automatic::Off,
            every: 6 * 3600,
            jitter: 3600,
            windows: Vec::new(),
        }
    }
}

/// What is done to the boot partition.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct BootConfig {
    /// Whether the loader follows that of proven images.
    pub update_loader: bool,
}

impl Default for BootConfig {
    fn default() -> Self {
        Self {
            update_loader: true,
        }
    }
}

/// What a machine keeps of what it had, beside what it needs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct KeepConfig {
    /// How many proven deployments there are at least, when it has had as many: the newest. What runs, what boots
    /// next, what a rollback goes to and what is pinned stays whatever this says, and counts.
    pub deployments: usize,
    /// How many images each name of the store keeps; what no name and no deployment has is removed when a new
    /// deployment is proven. 0 removes nothing.
    pub images: u32,
}

impl Default for KeepConfig {
    fn default() -> Self {
        Self {
            deployments: 2,
            images: 1,
        }
    }
}

/// What an image sets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageConfig(Table);

impl Eq for ImageConfig {}

/// What a machine sets over its images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalConfig(Table);

impl Eq for LocalConfig {}

/// What in a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
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
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// Reads the configuration of the system below `root`, and says what of it is not used.
    pub fn read(root: &Path) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut file = |name: &str| {
            let path = root.join(name);
            match fs::read_to_string(&path) {
                Ok(text) => {
                    let (table, wrong) = right(&text);
                    problems.extend(wrong.into_iter().map(|problem| Problem::Wrong {
                        path: path.clone(),
                        problem,
                    }));
                    table
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Table::new(),
                Err(source) => {
                    problems.push(Problem::Read { path, source });
                    Table::new()
                }
            }
        };
        let image = ImageConfig(file(IMAGE_FILE));
        let local = LocalConfig(file(LOCAL_FILE));
        (image.over(&local), problems)
    }
}

impl ImageConfig {
    /// Reads an image's file, as far as it is right.
    pub fn parse(text: &str) -> Self {
        Self(right(text).0)
    }

    /// Returns what holds on a machine that sets something itself.
    pub fn over(&self, local: &LocalConfig) -> Config {
        let mut merged = self.0.clone();
        merge(&mut merged, local.0.clone());
        Config {
            health: section(&merged, HEALTH).unwrap_or_default(),
            etc: section(&merged, ETC).unwrap_or_default(),
            upgrade: section(&merged, UPGRADE).unwrap_or_default(),
            boot: section(&merged, BOOT).unwrap_or_default(),
            keep: section(&merged, KEEP).unwrap_or_default(),
            local: local.clone(),
        }
    }
}

const HEALTH: &str = "health";
const ETC: &str = "etc";
const UPGRADE: &str = "upgrade";
const BOOT: &str = "boot";
const KEEP: &str = "keep";

/// Returns what of a file is right, key by key, and what is not.
fn right(text: &str) -> (Table, Vec<String>) {
    let table: Table = match toml::from_str(text) {
        Ok(table) => table,
        Err(error) => return (Table::new(), vec![error.message().to_owned()]),
    };
    let (mut kept, mut wrong) = (Table::new(), Vec::new());
    for (name, value) in table {
        let Value::Table(keys) = value else {
            wrong.push(format!("`{}` stands in no section", shown(&name)));
            continue;
        };
        let mut section = Table::new();
        for (key, value) in keys {
            let alone = Table::from_iter([(
                name.clone(),
                Value::Table(Table::from_iter([(key.clone(), value.clone())])),
            )]);
            match check(&alone, &name) {
                Ok(()) => {
                    section.insert(key, value);
                }
                Err(problem) => wrong.push(format!("{}.{}: {problem}", shown(&name), shown(&key))),
            }
        }
        kept.insert(name, Value::Table(section));
    }
    (kept, wrong)
}

/// A name from a file, as it can stand in a message.
fn shown(name: &str) -> impl fmt::Display + use<> {
    bedplate_model::name::shown(name.as_bytes())
}

fn check(table: &Table, name: &str) -> Result<(), String> {
    match name {
        HEALTH => section::<HealthConfig>(table, name).map(drop),
        ETC => section::<EtcConfig>(table, name).map(drop),
        UPGRADE => section::<UpgradeConfig>(table, name).map(drop),
        BOOT => section::<BootConfig>(table, name).map(drop),
        KEEP => section::<KeepConfig>(table, name).map(drop),
        _ => Err(format!("there is no section `{}`", shown(name))),
    }
}

fn section<T: DeserializeOwned + Default>(table: &Table, name: &str) -> Result<T, String> {
    match table.get(name) {
        None => Ok(T::default()),
        Some(value) => value
            .clone()
            .try_into()
            .map_err(|error: toml::de::Error| error.message().to_owned()),
    }
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

fn tries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let tries = u32::deserialize(deserializer)?;
    // The digits of the counter in an entry's name.
    if (1..=99).contains(&tries) {
        return Ok(tries);
    }
    Err(serde::de::Error::custom("`tries` is from 1 to 99"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(image: &str, machine: &str) -> (Config, Vec<String>) {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [(IMAGE_FILE, image), (LOCAL_FILE, machine)] {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let (config, problems) = Config::read(root.path());
        (config, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_machines_file_counts_key_by_key() {
        let (config, problems) = read(
            "[health]\ntries = 5\nprobation = \"10m\"\n[etc]\nmode = \"transient\"\n",
            "[health]\ntries = 2\n[upgrade]\nautomatic = \"apply\"\nwindows = [\"Sat 02:00-04:00\"]\n",
        );
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!((config.health.tries, config.health.probation), (2, 600));
        assert_eq!(config.health.restarts, HealthConfig::default().restarts);
        assert_eq!(config.etc.mode, EtcMode::Transient);
        assert_eq!(config.upgrade.automatic, Automatic::Apply);
        assert_eq!(config.upgrade.windows.len(), 1);
        // The next image says nothing of /etc.
        let next = ImageConfig::parse("[health]\nprobation = \"1m\"\n").over(&config.local);
        assert_eq!((next.health.tries, next.health.probation), (2, 60));
        assert_eq!(next.etc.mode, EtcMode::Merged);
        let (nothing, problems) = Config::read(Path::new("/nonexistent"));
        assert!(problems.is_empty() && nothing == Config::default());
    }

    #[test]
    fn what_is_not_right_is_named_with_its_file_and_the_rest_holds() {
        for (image, machine, file, named) in [
            (
                "[health]\ntrys = 1\ntries = 7\n",
                "",
                IMAGE_FILE,
                "health.trys",
            ),
            (
                "[health]\ntries = 7\n",
                "[health]\nprobation = \"soon\"\n",
                LOCAL_FILE,
                "soon",
            ),
            (
                "[health]\ntries = 7\n",
                "[health]\ntries = 0\n",
                LOCAL_FILE,
                "1 to 99",
            ),
            ("[health]\ntries = 7\n", "health", LOCAL_FILE, ""),
            (
                "[health]\ntries = 7\n",
                "[magic]\nlevel = 3\n",
                LOCAL_FILE,
                "no section",
            ),
            (
                "[health]\ntries = 7\n",
                "[etc]\nmode = \"often\"\n",
                LOCAL_FILE,
                "often",
            ),
            (
                "[health]\ntries = 7\n",
                "[upgrade]\nwindows = [\"at night\"]\n",
                LOCAL_FILE,
                "at night",
            ),
        ] {
            let (config, problems) = read(image, machine);
            assert_eq!(config.health.tries, 7, "{problems:?}");
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(
                problems[0].contains(file) && problems[0].contains(named),
                "{problems:?}"
            );
        }
    }
}
