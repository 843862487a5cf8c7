//! Carrying a plan out.

use std::io;

use bedplate_model::Sha256;
use sha2::Digest as _;

use super::{Operation, Plan};
use crate::ENTRIES_KIND_TEXT;
use crate::entry::{BootEntry, EntryName};
use crate::grub::{self, CONFIG_TEXT, Environment, Trial};
use crate::loader::Loader;
use crate::loader_conf::{LoaderConf, SECTOR};
use crate::partition::BootPartition;

/// Carries a plan out, one durable step after the other.
///
/// `contents` returns the bytes of a kernel or initramfs by their digest. They are checked before they
/// are written, and so is a file that is there already: it may be what a worn-out disk made of it.
pub fn execute(
    plan: &Plan,
    partition: &mut dyn BootPartition,
    contents: &dyn Fn(&Sha256) -> io::Result<Vec<u8>>,
) -> Result<(), ExecuteError> {
    let mut begun = None;
    for operation in &plan.operations {
        let failed = |source| ExecuteError::Failed {
            operation: operation.describe(plan.flavour),
            source,
        };
        match operation {
            Operation::Store { path, content } => {
                let there = partition.read(path).map_err(failed)?;
                if there.is_some_and(|bytes| sha256(&bytes) == *content) {
                    continue;
                }
                let bytes = contents(content).map_err(failed)?;
                if sha256(&bytes) != *content {
                    return Err(ExecuteError::Content {
                        path: path.clone(),
                        expected: *content,
                    });
                }
                partition.write(path, &bytes)
            }
            Operation::Entry { name, entry } => {
                // GRUB learns of a trial by the sector that is written next.
                begun = Trial::of(name).or(begun);
                text_of(plan.flavour, entry).and_then(|text| {
                    partition.write(&plan.flavour.entry_path(name), text.as_bytes())
                })
            }
            Operation::Fixed => {
                let text = match plan.flavour {
                    Loader::SystemdBoot => ENTRIES_KIND_TEXT,
                    Loader::Grub => CONFIG_TEXT,
                };
                partition.write(plan.flavour.fixed_path(), text.as_bytes())
            }
            Operation::Default(conf) => {
                let path = plan.flavour.default_path();
                let sector = match plan.flavour {
                    Loader::SystemdBoot => Ok(conf.to_sector()),
                    Loader::Grub => environment(partition, *conf, begun),
                };
                sector.and_then(|sector| partition.overwrite_sector(path, &sector))
            }
            Operation::Remove { path } => partition.remove(path),
        }
        .map_err(failed)?;
    }
    Ok(())
}

/// Prints an entry as a loader reads it.
fn text_of(flavour: Loader, entry: &BootEntry) -> io::Result<String> {
    match flavour {
        Loader::SystemdBoot => Ok(entry.to_string()),
        // A plan has no such entry.
        Loader::Grub => grub::fragment(entry).map_err(io::Error::other),
    }
}

/// Makes GRUB's sector. A trial that it counts already goes on as it is: tries left are never written anew.
fn environment(
    partition: &dyn BootPartition,
    loader: LoaderConf,
    begun: Option<Trial>,
) -> io::Result<[u8; SECTOR]> {
    let before = partition
        .read(grub::ENVIRONMENT)?
        .and_then(|bytes| Environment::parse(&bytes));
    let counted = before.and_then(|before| before.trial);
    let is_counted = |name: &EntryName| counted.is_some_and(|trial| trial.is(name));
    let trial = match begun {
        Some(begun) if !is_counted(&begun.name()) => Some(begun),
        Some(_) | None => counted,
    };
    Ok(Environment { loader, trial }.to_sector())
}

fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256(sha2::Sha256::digest(bytes).into())
}

/// Why a plan could not be carried out to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// A step failed; those before it were done.
    #[error("cannot {operation} on the boot partition")]
    Failed {
        /// The step.
        operation: String,
        /// Why.
        source: io::Error,
    },
    /// The bytes for a file are not what its name says.
    #[error("the content for {path} is not {expected}")]
    Content {
        /// The file.
        path: String,
        /// Its digest.
        expected: Sha256,
    },
}
