//! Carrying a plan out.

use std::io;

use bedplate_model::Sha256;
use sha2::Digest as _;

use super::{Operation, Plan};
use crate::partition::BootPartition;
use crate::{ENTRIES_KIND, ENTRIES_KIND_TEXT, LOADER_CONF};

/// Carries a plan out, one durable step after the other.
///
/// `contents` returns the bytes of a kernel or initramfs by their digest. They are checked before they
/// are written, and so is a file that is there already: it may be what a worn-out disk made of it.
pub fn execute(
    plan: &Plan,
    partition: &mut dyn BootPartition,
    contents: &dyn Fn(&Sha256) -> io::Result<Vec<u8>>,
) -> Result<(), ExecuteError> {
    for operation in &plan.operations {
        let failed = |source| ExecuteError::Failed {
            operation: operation.to_string(),
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
                partition.write(&name.path(), entry.to_string().as_bytes())
            }
            Operation::Kind => partition.write(ENTRIES_KIND, ENTRIES_KIND_TEXT.as_bytes()),
            Operation::Default(conf) => partition.overwrite_sector(LOADER_CONF, &conf.to_sector()),
            Operation::Remove { path } => partition.remove(path),
        }
        .map_err(failed)?;
    }
    Ok(())
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
