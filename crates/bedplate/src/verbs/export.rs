//! `export`: writes an image as a tar file or stream, with every attribute; contents are checked.
//!
//! A file that is there is replaced, as `tar -cf` does it, but only once the new one is whole.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use bedplate_store::layer::{TarKind, write_tar};
use bedplate_sys::durable::Whole;

use crate::Answer;
use crate::blame::{Blame, Refusal};
use crate::cli::Export;
use crate::context::{Context, find_image};
use crate::output::is_reader_gone;
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
    let mut write_into = |file: &File| -> anyhow::Result<()> {
        let mut out = BufWriter::with_capacity(BUFFER, file);
        left_out = write_tar(&tree, kind, &open, &mut out)?;
        Ok(out.flush()?)
    };
    // As everywhere, a dash is standard output.
    let output = export
        .output
        .as_ref()
        .filter(|path| path.as_os_str() != "-");
    match output {
        // A device or a pipe is written to: a rename would put a file in its place.
        Some(path) if is_special(path) => {
            let mut write =
                || -> anyhow::Result<()> { write_into(&File::options().write(true).open(path)?) };
            write()
                .with_context(|| format!("cannot write {}", path.display()))
                .with_context(attempted)?;
        }
        Some(path) => {
            let mut write = || -> anyhow::Result<()> {
                let whole = Whole::create(path)?;
                write_into(whole.file())?;
                Ok(whole.finish()?)
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
            let mut write = || -> anyhow::Result<()> {
                left_out = write_tar(&tree, kind, &open, &mut context.out)?;
                Ok(context.out.flush()?)
            };
            // Of a listing its reader may have had enough; half an archive is none.
            write().map_err(|error| {
                if is_reader_gone(&error) {
                    cut_short()
                } else {
                    error.context(attempted())
                }
            })?;
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

/// Says that the reader of a pipe ended before the archive did.
fn cut_short() -> anyhow::Error {
    Refusal {
        blame: Blame::Host,
        message:
            "the reader of the tar ended before the tar did: what it has is not the whole image"
                .into(),
        hint: None,
    }
    .into()
}

/// Enough that small files cost no system call each.
const BUFFER: usize = 1 << 20;
