//! Looking at a boot partition, as each loader's files are to be read.

use std::io;

use super::Observed;
use crate::entry::{BootEntry, EntryName};
use crate::grub::{self, Environment};
use crate::loader::Loader;
use crate::loader_conf::LoaderConf;
use crate::partition::BootPartition;
use crate::{ENTRIES, FILES};

/// Looks at a boot partition.
pub fn observe(partition: &dyn BootPartition) -> io::Result<Observed> {
    let flavour = Loader::of(partition)?;
    let mut observed = Observed {
        flavour,
        fixed: partition.read(flavour.fixed_path())?.is_some(),
        ..Observed::default()
    };
    match flavour {
        Loader::SystemdBoot => systemd_boot(partition, &mut observed)?,
        Loader::Grub => grub(partition, &mut observed)?,
    }
    for name in partition.list(FILES)? {
        if is_unfinished(&name) {
            observed.unfinished.push(format!("{FILES}/{name}"));
        } else {
            observed.files.push(name);
        }
    }
    Ok(observed)
}

/// Returns whether a name is that of a file while [`BootPartition::write`] writes it.
fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(".new").is_some()
}

fn systemd_boot(partition: &dyn BootPartition, observed: &mut Observed) -> io::Result<()> {
    observed.loader = partition
        .read(observed.flavour.default_path())?
        .and_then(|bytes| LoaderConf::parse(&bytes));
    for name in partition.list(ENTRIES)? {
        if name.starts_with("bedplate-") && is_unfinished(&name) {
            observed.unfinished.push(format!("{ENTRIES}/{name}"));
        } else if let Ok(entry) = name.parse::<EntryName>() {
            let path = observed.flavour.entry_path(&entry);
            if is_whole(partition, &path)? {
                observed.entries.push(entry);
            } else {
                observed.unfinished.push(path);
            }
        } // Entries of others are theirs.
    }
    Ok(())
}

/// Returns whether an entry says what boots. A cut leaves one that is empty: FAT writes the name first.
fn is_whole(partition: &dyn BootPartition, path: &str) -> io::Result<bool> {
    let bytes = partition.read(path)?.unwrap_or_default();
    let entry = std::str::from_utf8(&bytes).ok().map(BootEntry::parse);
    Ok(matches!(entry, Some(Ok(entry)) if entry.linux.is_some()))
}

/// Likewise for a fragment of GRUB's configuration: a text that ends as it should.
fn is_whole_fragment(partition: &dyn BootPartition, path: &str) -> io::Result<bool> {
    Ok(partition
        .read(path)?
        .is_some_and(|bytes| bytes.ends_with(b"\n")))
}

fn grub(partition: &dyn BootPartition, observed: &mut Observed) -> io::Result<()> {
    let environment = partition
        .read(observed.flavour.default_path())?
        .and_then(|bytes| Environment::parse(&bytes));
    observed.loader = environment.map(|environment| environment.loader);
    for name in partition.list(grub::ENTRIES)? {
        let path = format!("{}/{name}", grub::ENTRIES);
        match grub::parse_entry(&name) {
            Some(id) if is_whole_fragment(partition, &path)? => {
                observed.entries.push(EntryName::proven(id));
            }
            found if found.is_some() || is_unfinished(&name) => observed.unfinished.push(path),
            _ => {}
        }
    }
    // A trial is there when both are: its fragment, and its tries.
    let counted = environment.and_then(|environment| environment.trial);
    for name in partition.list(grub::TRIALS)? {
        let found = grub::parse_trial(&name);
        let path = format!("{}/{name}", grub::TRIALS);
        let whole = found.is_some() && is_whole_fragment(partition, &path)?;
        let trial = counted.filter(|trial| whole && found == Some((trial.base, trial.deployment)));
        match trial {
            Some(trial) => observed.entries.push(trial.name()),
            None if found.is_some() || is_unfinished(&name) => {
                observed.unfinished.push(path);
            }
            None => {}
        }
    }
    Ok(())
}
