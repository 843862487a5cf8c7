//! Developer commands: cargo is all that a fresh machine needs.
//!
//! ```text
//! main ─┬─ demo ────┐
//!       ├─ vm ──────┼─ story ─┬─ images ── apt_sources     two real Debian trees, cached in target/demo
//!       │           │         ├─ programs                  our own binaries, release profile
//!       │           │         └─ testkit::qemu             the machine they run on
//!       ├─ test ────┘
//!       ├─ check
//!       ├─ crash, faults ─ trial ─ testkit::trial      the real program, and what goes wrong at any write
//!       ├─ concurrency ───────────┘                    … and everything at once
//!       ├─ power-cut ─ story::recorded                 a machine's life, cut anywhere, with every write recorded
//!       ├─ fuzz
//!       ├─ campaign ─ trees ─ images                    minimal trees of three releases, in target/trees
//!       └─ bench ─── images                                a pair of 1 GB trees, cached in target/bench
//! ```
//!
//! Each verb lives in a file of its own and names the Debian packages it needs (`packages`).

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "talking to people is what this program is for"
)]

mod apt_sources;
mod bench;
mod campaign;
mod check;
mod concurrency;
mod demo;
mod fuzz;
mod images;
mod namespace;
mod packages;
mod power_cut;
mod programs;
mod registry;
mod run;
mod story;
mod test;
mod trees;
mod trial;
mod vm;
mod vm_verb;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
Usage: cargo xtask VERB [ARGUMENTS]

  demo               build, ship, boot, upgrade and roll back a real Linux system, step by step
  test               every test: unit, integration, documentation, virtual machine, figures on a small tree
  check              format, lints and quick tests
  bench [--smoke]    measure against ostree, skopeo, umoci and others; writes docs/benchmarks.md
  fuzz [PARSER…]     damaged input for every parser that strangers feed, for a bounded time
  crash [OPERATION…] power cuts at any write of an operation on a store, on a real file system
  faults [OPERATION…] death and errors at any system call of it, and a full disk
  power-cut          power cuts anywhere in the life of a machine, examined and booted
  concurrency        everything at once on one store, in processes and threads
  vm smoke           install, boot, upgrade and roll back in QEMU, with asserts
  vm verb            `bedplate vm`: scripts and shells in images, and what happens when a boot fails
  vm boot            boot a Debian tree in QEMU without Bedplate: proves the test bench itself
  campaign NAME      long runs: fuzz, vm, power-cut, crash, faults, concurrency, trees
  images             make the two Debian trees of the demo, and say where they are

Every verb takes --help. Missing Debian packages are installed when this runs as root, and named otherwise.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[&str]) -> Result<()> {
    let (verb, rest) = match arguments {
        [] | ["--help" | "-h" | "help"] => {
            print!("{HELP}");
            return Ok(());
        }
        [verb, rest @ ..] => (*verb, rest),
    };
    match verb {
        "demo" => demo::run(rest),
        "test" => test::run(rest),
        "check" => check::run(rest),
        "bench" => bench::run(rest),
        "campaign" => campaign::run(rest),
        "concurrency" => concurrency::run(rest),
        "crash" => trial::run(trial::Trial::Crash, rest),
        "faults" => trial::run(trial::Trial::Faults, rest),
        "fuzz" => fuzz::run(rest),
        "power-cut" => power_cut::run(rest),
        "vm" => vm::run(rest),
        "images" => images::run(rest),
        unknown => bail!("there is no verb `{unknown}`; `cargo xtask --help` lists them"),
    }
}

/// Whether a verb was asked for its help rather than its work; prints it then.
fn wants_help(arguments: &[&str], help: &str) -> bool {
    let wanted = arguments
        .iter()
        .any(|argument| matches!(*argument, "--help" | "-h"));
    if wanted {
        print!("{help}");
    }
    wanted
}
