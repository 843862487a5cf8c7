//! What systemd-boot does with a boot partition, as far as [docs/format/boot.md] relies on it.
//!
//! ```text
//! loader/entries/*.conf ─ those whose kernel is there ─ hopeful first, by falling version
//!                       ─ the first that loader.conf's default matches, else the first of all
//!                       ─ counted by a rename ─→ its command line
//! ```
//!
//! [docs/format/boot.md]: ../../../docs/format/boot.md

use std::cmp::Reverse;
use std::io;

use anyhow::{Context as _, Result, ensure};
use bedplate_boot::cmdline::{BootArguments, Cmdline};
use bedplate_boot::entry::{BootEntry, EntryName};
use bedplate_boot::loader::Loader;
use bedplate_boot::loader_conf::LoaderConf;
use bedplate_boot::partition::BootPartition;

/// Where the entries are.
const ENTRIES: &str = "loader/entries";
/// What says which of them is the default.
const LOADER_CONF: &str = "loader/loader.conf";

/// What the loader starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The entry's name, before it is counted.
    pub name: EntryName,
    /// What it says.
    pub entry: BootEntry,
}

impl Chosen {
    /// Returns what early boot is told.
    pub fn arguments(&self) -> Result<BootArguments> {
        let line = Cmdline::parse(&self.entry.command_line());
        BootArguments::of(&line).context("reading the command line of what boots")
    }

    /// Returns the files that the loader and the kernel read, as paths on the boot partition.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let paths = self.entry.linux.iter().chain(&self.entry.initrd);
        paths.map(|path| path.trim_start_matches('/'))
    }
}

/// Chooses what boots.
pub fn choose(partition: &dyn BootPartition) -> Result<Chosen> {
    let mut entries = Vec::new();
    for file in partition.list(ENTRIES).context("listing the entries")? {
        let Ok(name) = file.parse::<EntryName>() else {
            continue;
        };
        let path = format!("{ENTRIES}/{file}");
        let bytes = partition
            .read(&path)
            .with_context(|| format!("reading {path}"))?;
        let bytes = bytes.with_context(|| format!("{path} is listed and not there"))?;
        let Some(entry) = std::str::from_utf8(&bytes)
            .ok()
            .and_then(|text| BootEntry::parse(text).ok())
        else {
            continue;
        };
        let Some(kernel) = &entry.linux else { continue };
        if !is_there(partition, kernel.trim_start_matches('/'))? {
            continue; // the loader passes over it without a word
        }
        entries.push(Chosen { name, entry });
    }
    entries.sort_by_key(|Chosen { name, entry }| {
        let version = entry
            .version
            .as_deref()
            .and_then(|text| text.parse::<u64>().ok());
        (!name.is_hopeful(), Reverse(version))
    });
    ensure!(!entries.is_empty(), "no entry can be booted");
    let configured = partition.read(LOADER_CONF).context("reading loader.conf")?;
    let default = configured.and_then(|bytes| LoaderConf::parse(&bytes));
    let pattern = default.map(|conf| format!("bedplate-{}", conf.default));
    let chosen = entries.iter().position(|Chosen { name, .. }| {
        pattern
            .as_ref()
            .is_some_and(|pattern| name.to_string().starts_with(pattern))
    });
    Ok(entries.swap_remove(chosen.unwrap_or(0)))
}

/// Counts the try, as the loader does before it starts the kernel.
pub fn count(partition: &mut dyn BootPartition, chosen: &Chosen) -> io::Result<()> {
    let Some(tries) = chosen.name.tries else {
        return Ok(());
    };
    let counted = EntryName {
        tries: Some(tries.tried()),
        ..chosen.name
    };
    let path = Loader::SystemdBoot.entry_path(&chosen.name);
    let bytes = partition.read(&path)?.ok_or(io::ErrorKind::NotFound)?;
    if counted != chosen.name {
        partition.remove(&path)?;
        partition.write(&Loader::SystemdBoot.entry_path(&counted), &bytes)?;
    }
    Ok(())
}

fn is_there(partition: &dyn BootPartition, path: &str) -> Result<bool> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let names = partition
        .list(directory)
        .with_context(|| format!("listing {directory}"))?;
    Ok(names.iter().any(|found| found.eq_ignore_ascii_case(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bedplate_boot::partition::DirectoryPartition;
    use bedplate_model::record::DeploymentId;

    const BASE: DeploymentId = DeploymentId([0x11; 4]);
    const NEW: DeploymentId = DeploymentId([0x22; 4]);

    #[test]
    fn a_trial_boots_while_it_has_tries_and_a_kernel() {
        let directory = tempfile::tempdir().unwrap();
        let mut boot = DirectoryPartition::new(directory.path());
        let entry = |version: u8| format!("version {version}\nlinux /EFI/bedplate/k{version}\n");
        let conf = LoaderConf {
            timeout: 0,
            default: BASE,
        };
        boot.overwrite_sector(LOADER_CONF, &conf.to_sector())
            .unwrap();
        let trial = EntryName::trial(BASE, NEW, 2);
        for (name, version) in [(EntryName::proven(BASE), 1), (trial, 2)] {
            boot.write(
                &Loader::SystemdBoot.entry_path(&name),
                entry(version).as_bytes(),
            )
            .unwrap();
            boot.write(&format!("EFI/bedplate/k{version}"), b"kernel")
                .unwrap();
        }
        for expected in [NEW, NEW, BASE, BASE] {
            let chosen = choose(&boot).unwrap();
            assert_eq!(chosen.name.deployment, expected);
            count(&mut boot, &chosen).unwrap();
        }
        for left in ["", &entry(3)] {
            // An empty entry, and one whose kernel is not there.
            boot.write(&Loader::SystemdBoot.entry_path(&trial), left.as_bytes())
                .unwrap();
            assert_eq!(choose(&boot).unwrap().name.deployment, BASE);
        }
    }
}
