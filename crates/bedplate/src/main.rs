//! Bedplate's command line: builds, ships, boots and rolls back whole Linux systems as verified images.
//!
//! ```text
//! main ── cli      what a person typed
//!      ── host     what the surroundings say, read once
//!      ── mounts   what is mounted, for mounts that others took off
//!      ── verbs    one file for each verb: calls the libraries, draws the result
//!      ── render   tables, JSON, progress
//!      ── vm       a virtual machine of one run
//!      ── output   standard output, and what its failures mean
//!      ── blame    who must act when it failed: exit code and hint
//! ```
//!
//! Invariant: what a verb does lives in a library; here is only what it says.

mod blame;
mod cli;
mod context;
mod host;
mod mounts;
mod output;
mod render;
mod verbs;
mod vm;

use std::io::{self, BufWriter, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

use crate::blame::Blame;
use crate::cli::{Cli, Verb};
use crate::context::Context;
use crate::host::Host;
use crate::output::Output;

/// The exit code of [`Blame::Bug`], for a panic.
const BUG: u8 = 70;

/// The exit code of `vm` where it failed itself: all others are those of what ran in the machine.
const VM_FAILED: u8 = 125;

/// How a verb ended when nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Done, or yes.
    Yes,
    /// The answer is no: nothing newer, findings, a difference that was asked about.
    No,
    /// Something is not what its digest says.
    Damage,
    /// What was run in a virtual machine ended with this code.
    Code(u8),
}

fn main() -> ExitCode {
    end_on_panic();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if cli::is_vm(std::env::args_os()) && error.use_stderr() {
                VM_FAILED
            } else {
                error.exit_code() as u8
            };
            // Standard error is the last resort: there is nobody left to tell when it fails.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let host = Host::observe();
    raise_open_files();
    bedplate_sys::signals::ignore_file_size_limit();
    leave_modes_alone();
    let mut out = BufWriter::new(Output::of_process());
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
        Ok(Answer::Code(code)) => ExitCode::from(code),
        Err(error) if matches!(cli.verb, Verb::Vm(_)) => {
            let _ = out.flush();
            let _ = blame::report(&error, &mut io::stderr().lock());
            if let Some(signal) = verbs::vm::interrupted(&error) {
                // Everything was put away: whoever waits learns what ended us.
                bedplate_sys::signals::end_by(signal);
            }
            ExitCode::from(VM_FAILED)
        }
        // The reader of our output had enough: `bedplate ls os | head` is no failure.
        Err(error) if output::is_reader_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // What was written before the failure still belongs in front of the error.
            let _ = out.flush();
            blame::report(&error, &mut io::stderr().lock())
        }
    }
}

/// Has a panic in any thread end the program, with the exit code of a bug: others may wait for that thread for
/// ever. What is in the store is whole at any moment.
fn end_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        let report =
            "this is a bug, or threads cannot be started here (`ulimit -u`, a container's limit)";
        let _ = writeln!(io::stderr(), "error: {report}");
        std::process::exit(BUG.into());
    }));
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

/// Sees to it that files have the modes that are asked for, whatever mask the caller left: one that takes
/// rights from the owner would make a store that its own owner cannot use, and one that takes none would
/// let everybody write. A stricter one (027, 077) stays, for the files that a person names.
fn leave_modes_alone() {
    use rustix::fs::Mode;
    use rustix::process::umask;
    const USUAL: Mode = Mode::WGRP.union(Mode::WOTH);
    let given = umask(USUAL);
    if !given.intersects(Mode::RWXU) {
        umask(given | USUAL);
    }
}
