//! What early boot says, and to whom: the kernel's log, which is also the console's and the journal's.

use std::error::Error;
use std::fmt::{self, Display};
use std::io::Write as _;

/// Says something that a person should see even on a quiet console.
pub(crate) fn error(text: &str) {
    write(3, text);
}

/// Says something that belongs into the log.
pub(crate) fn note(text: &str) {
    write(6, text);
}

fn write(level: u8, text: &str) {
    let log = std::fs::File::options().write(true).open("/dev/kmsg");
    // Without a log there is nobody to tell that there is no log.
    let _ = log
        .and_then(|mut log| log.write_all(format!("<{level}>bedplate-init: {text}\n").as_bytes()));
}

/// What could not be done, and why. The one thing to do about it is to show it.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    why: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// Says what was attempted, with what it was attempted on, and why it failed.
    pub(crate) fn new(
        what: impl Into<String>,
        why: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.what, self.why)?;
        let mut cause = self.why.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl Error for Failure {}
