//! Looking at a boot partition, as each loader's files are to be read.

use std::io;

use super::Observed;
use crate::entry::EntryName;
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
        } else {
            // Entries of others are theirs.
            observed.entries.extend(name.parse::<EntryName>());
        }
    }
    Ok(())
}

fn grub(partition: &dyn BootPartition, observed: &mut Observed) -> io::Result<()> {
    let environment = partition
        .read(observed.flavour.default_path())?
        .and_then(|bytes| Environment::parse(&bytes));
    observed.loader = environment.map(|environment| environment.loader);
    for name in partition.list(grub::ENTRIES)? {
        if is_unfinished(&name) {
            let path = format!("{}/{name}", grub::ENTRIES);
            observed.unfinished.push(path);
        } else {
            let entry = grub::parse_entry(&name).map(EntryName::proven);
            observed.entries.extend(entry);
        }
    }
    // A trial is there when both are: its fragment, and its tries.
    let counted = environment.and_then(|environment| environment.trial);
    for name in partition.list(grub::TRIALS)? {
        let found = grub::parse_trial(&name);
        let trial = counted.filter(|trial| found == Some((trial.base, trial.deployment)));
        match trial {
            Some(trial) => observed.entries.push(trial.name()),
            None if found.is_some() || is_unfinished(&name) => {
                observed.unfinished.push(format!("{}/{name}", grub::TRIALS));
            }
            None => {}
        }
    }
    Ok(())
}
