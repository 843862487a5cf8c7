//! Standard output, whose failures say that they are its own.
//!
//! Invariant: what could not be written is an error; only a reader that had enough is none. An error of
//! a registry's connection is never taken for one of standard output.

use std::io::{self, StdoutLock, Write};

/// Standard output.
pub(crate) struct Output {
    /// None where the program was started without one.
    stdout: Option<StdoutLock<'static>>,
}

/// Why standard output could not be written to; travels inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub(crate) struct WriteOutputError {
    source: io::Error,
}

impl Output {
    /// Takes the process's standard output.
    pub(crate) fn of_process() -> Self {
        let open = !bedplate_sys::stdio::stdout_was_closed();
        Self {
            stdout: open.then(|| io::stdout().lock()),
        }
    }

    fn of(&mut self) -> io::Result<&mut StdoutLock<'static>> {
        self.stdout
            .as_mut()
            .ok_or_else(|| rustix::io::Errno::BADF.into())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.of()
            .and_then(|stdout| stdout.write(bytes))
            .map_err(failed)
    }

    fn flush(&mut self) -> io::Result<()> {
        // Nothing was written, or the write said that there is no output.
        match &mut self.stdout {
            Some(stdout) => stdout.flush().map_err(failed),
            None => Ok(()),
        }
    }
}

fn failed(source: io::Error) -> io::Error {
    match source.kind() {
        io::ErrorKind::Interrupted => source,
        kind => io::Error::new(kind, WriteOutputError { source }),
    }
}

/// Returns whether an error is that of a reader that had enough, as in `bedplate ls os | head`.
pub(crate) fn is_reader_gone(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>()?.get_ref())
        .filter_map(|inner| inner.downcast_ref::<WriteOutputError>())
        .any(|error| error.source.kind() == io::ErrorKind::BrokenPipe)
}
