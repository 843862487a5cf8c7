//! `export`: writes an image as a tar file or stream, with every attribute; contents are checked.
//!
//! A file that is there is replaced, as `tar -cf` does it, but only once the new one is whole.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bedplate_store::layer::{TarKind, write_tar};
use bedplate_sys::durable;

use crate::Answer;
use crate::blame::Refusal;
use crate::cli::Export;
use crate::context::{Context, find_image};
use crate::render::note;

pub(super) fn run(export: &Export, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let target = find_image(&store, &export.name)?.target;
    let attempted = || format!("cannot export {}", export.name);
    let tree = store.tree(&target.root).with_context(attempted)?;
    let open = |content: &_| -> io::Result<Box<dyn io::Read + '_>> {
        match store.read_content(content) {
            Ok(reader) => Ok(reader),
            Err(error) => Err(io::Error::other(error)),
        }
    };
    let kind = TarKind::RootFileSystem;
    let mut left_out = Vec::new();
    let mut write_into = |file: File| -> anyhow::Result<File> {
        let mut out = BufWriter::with_capacity(BUFFER, file);
        left_out = write_tar(&tree, kind, &open, &mut out)?;
        Ok(out.into_inner().map_err(io::IntoInnerError::into_error)?)
    };
    // As everywhere, a dash is standard output.
    let output = export
        .output
        .as_ref()
        .filter(|path| path.as_os_str() != "-");
    match output {
        // A device or a pipe is written to: a rename would put a file in its place.
        Some(path) if is_special(path) => {
            let mut write = || -> anyhow::Result<()> {
                write_into(File::options().write(true).open(path)?)?;
                Ok(())
            };
            write()
                .with_context(|| format!("cannot write {}", path.display()))
                .with_context(attempted)?;
        }
        Some(path) => {
            // The file has its name only when it is whole; what a failure leaves says so by its name.
            let part = part_of(path);
            let mut write = || -> anyhow::Result<()> {
                write_into(File::create(&part)?)?.sync_all()?;
                Ok(durable::rename(&part, path)?)
            };
            write()
                .with_context(|| format!("cannot write {}", path.display()))
                .with_context(attempted)?;
        }
        None if io::stdout().is_terminal() => {
            return Err(Refusal::usage(
                "a tar stream is not for a terminal",
                "name a file with --output, or pipe it somewhere",
            )
            .into());
        }
        None => {
            left_out = write_tar(&tree, kind, &open, &mut context.out).with_context(attempted)?;
        }
    }
    for path in left_out {
        note(&format!(
            "{path} is a socket, which a tar cannot hold; left out"
        ));
    }
    Ok(Answer::Yes)
}

/// Returns whether something is there that is neither a file nor a directory.
fn is_special(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// Returns the name that a file has while it is written.
fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// Enough that small files cost no system call each.
const BUFFER: usize = 1 << 20;
