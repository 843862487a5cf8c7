//! Bedplate's command line: builds, ships, boots and rolls back whole Linux systems as verified images.
//!
//! ```text
//! main ── cli      what a person typed
//!      ── host     what the surroundings say, read once
//!      ── verbs    one file for each verb: calls the libraries, draws the result
//!      ── render   tables, JSON, progress
//!      ── blame    who must act when it failed: exit code and hint
//! ```
//!
//! Invariant: what a verb does lives in a library; here is only what it says.

mod blame;
mod cli;
mod context;
mod host;
mod render;
mod verbs;

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use clap::Parser as _;

use crate::blame::Blame;
use crate::cli::Cli;
use crate::context::Context;
use crate::host::Host;

/// How a verb ended when nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Done, or yes.
    Yes,
    /// The answer is no: nothing newer, findings, a difference that was asked about.
    No,
    /// Something is not what its digest says.
    Damage,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let host = Host::observe();
    raise_open_files();
    let mut out = BufWriter::new(io::stdout().lock());
    let result = {
        let mut context = Context::new(&cli, &host, &mut out);
        verbs::run(&cli.verb, &mut context)
    };
    let result = result.and_then(|answer| {
        out.flush()?;
        Ok(answer)
    });
    match result {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Ok(Answer::Damage) => Blame::Damage.exit_code(),
        // The reader of our output had enough: `bedplate ls os | head` is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // What was written before the failure still belongs in front of the error.
            let _ = out.flush();
            blame::report(&error, &mut io::stderr().lock())
        }
    }
}

/// Permits as many open files as the system lets this process have: a scan holds one for each level of
/// the directories that it is in, and shells hand out 1024.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Where it is refused, the limit that was there holds, and deep directories fail with its error.
    let _ = setrlimit(Resource::Nofile, raised);
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
