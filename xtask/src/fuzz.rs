//! `cargo xtask fuzz`: every parser that strangers feed, with damaged input, for a bounded time.
//!
//! ```text
//! seeds (made by our own writers, and testdata/fuzz/<parser>/)
//!    └─ mutate ─ repair checksums ─ parse, in a child with little memory and a clock beside it
//!                                      └─ panic · endless loop · too much memory: the input is kept
//! ```
//!
//! Nothing is needed beyond cargo, and a seed number repeats a run exactly. An input that once broke a
//! parser goes to `testdata/fuzz/<parser>/`, where every later run begins with it.

mod mutate;
mod parsers;

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{wants_help, workspace};
use mutate::Mutator;
use parsers::{PARSERS, Parser};

const HELP: &str = "\
Usage: cargo xtask fuzz [PARSER…] [--seconds N] [--seed N]

Feeds damaged input to every parser of strangers' bytes (or to those named), N seconds each [default: 10].
An input that breaks one is kept in target/fuzz, and the run fails.
";

/// How long one parser is tried where nothing else was asked for.
const SECONDS: u64 = 10;

/// What the address space of a child may grow to: far above what small inputs need.
const MEMORY: &str = "--as=4294967296";

/// How long one input may take. They are small; a second is a thousand times too long.
const LIMIT: Duration = Duration::from_secs(5);

/// The exit code of a child that found something.
const FOUND: i32 = 3;

/// `cargo xtask fuzz`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    if wants_help(arguments, HELP) {
        return Ok(());
    }
    if let ["--worker", name, seed, seconds, trace @ ..] = arguments {
        let limit = Duration::from_secs(seconds.parse().context("reading the seconds")?);
        let seed = seed.parse().context("reading the seed")?;
        return work(find(name)?, seed, limit, trace == ["--trace"]);
    }
    let (mut seconds, mut seed) = (SECONDS, 1);
    let mut chosen = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64> {
            let text = words
                .next()
                .with_context(|| format!("{word} takes a number"))?;
            text.parse()
                .with_context(|| format!("{word} takes a number, not `{text}`"))
        };
        match *word {
            "--seconds" => seconds = number()?,
            "--seed" => seed = number()?,
            name => chosen.push(find(name)?),
        }
    }
    if chosen.is_empty() {
        chosen.extend(PARSERS);
    }
    sample(&chosen, seed, seconds)
}

/// Every parser, some seconds each.
pub(crate) fn sample_all(seed: u64, seconds: u64) -> Result<()> {
    sample(&PARSERS.iter().collect::<Vec<_>>(), seed, seconds)
}

fn sample(chosen: &[&Parser], seed: u64, seconds: u64) -> Result<()> {
    let mut broken = Vec::new();
    for parser in chosen {
        let status = child(parser, seed, seconds, false)?;
        if status.success() {
            continue;
        }
        if status.code() != Some(FOUND) {
            // Killed, or out of memory: it could not say on what. The same seed leads there again, with
            // each input written down before it is tried.
            child(parser, seed, seconds.saturating_mul(4), true)?;
        }
        broken.push(format!("{} ({status})", parser.name));
    }
    if broken.is_empty() {
        return Ok(());
    }
    bail!(
        "broken: {}; the inputs are in {}",
        broken.join(", "),
        kept().display()
    )
}

fn child(parser: &Parser, seed: u64, seconds: u64, trace: bool) -> Result<ExitStatus> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new("prlimit");
    command
        .arg(MEMORY)
        .arg(program)
        .args(["fuzz", "--worker", parser.name])
        .arg(seed.to_string())
        .arg(seconds.to_string());
    if trace {
        command.arg("--trace");
    }
    command.status().context("starting prlimit")
}

fn find(name: &str) -> Result<&'static Parser> {
    PARSERS
        .iter()
        .find(|parser| parser.name == name)
        .with_context(|| {
            let names: Vec<&str> = PARSERS.iter().map(|parser| parser.name).collect();
            format!(
                "there is no parser `{name}`; there are {}",
                names.join(", ")
            )
        })
}

/// What runs in the child: tries inputs until the time is over.
fn work(parser: &'static Parser, seed: u64, limit: Duration, trace: bool) -> Result<()> {
    let seeds = seeds(parser)?;
    let mut mutator = Mutator::new(seed);
    let watched = Arc::new(Watched::default());
    watch(parser, &watched);
    // What a parser panics with is printed once, with the input; not by the default hook as well.
    panic::set_hook(Box::new(|_| {}));
    let started = Instant::now();
    let mut tried: u64 = 0;
    while started.elapsed() < limit {
        // The seeds themselves come first: among them is what broke the parser before.
        let input = usize::try_from(tried)
            .ok()
            .and_then(|index| seeds.get(index).cloned())
            .unwrap_or_else(|| {
                let mut input = mutator.next(&seeds);
                (parser.repair)(&mut input);
                input
            });
        if trace {
            keep(parser, "killed", &input)?;
        }
        watched.begin(&input);
        let result = panic::catch_unwind(AssertUnwindSafe(|| (parser.parse)(&input)));
        watched.end();
        if let Err(panic) = result {
            let path = keep(parser, "panic", &input)?;
            let said = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            eprintln!(
                "{}: panic: {said}\n  input: {}",
                parser.name,
                path.display()
            );
            std::process::exit(FOUND);
        }
        tried += 1;
    }
    println!(
        "  {:<12} {tried} inputs in {} s",
        parser.name,
        started.elapsed().as_secs()
    );
    Ok(())
}

/// The input at work, for the thread that looks at the clock.
#[derive(Default)]
struct Watched {
    input: Mutex<Option<Vec<u8>>>,
    count: AtomicU64,
}

impl Watched {
    fn begin(&self, input: &[u8]) {
        self.count.fetch_add(1, Ordering::Relaxed);
        *self.input.lock().unwrap_or_else(PoisonError::into_inner) = Some(input.to_vec());
    }

    fn end(&self) {
        *self.input.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn watch(parser: &'static Parser, watched: &Arc<Watched>) {
    let watched = Arc::clone(watched);
    thread::spawn(move || {
        loop {
            let before = watched.count.load(Ordering::Relaxed);
            thread::sleep(LIMIT);
            let stuck = watched.count.load(Ordering::Relaxed) == before;
            let input = watched.input.lock().unwrap_or_else(PoisonError::into_inner);
            if let (true, Some(input)) = (stuck, input.as_ref()) {
                let path = keep(parser, "endless", input);
                eprintln!(
                    "{}: one input took more than {} s: {path:?}",
                    parser.name,
                    LIMIT.as_secs()
                );
                std::process::exit(FOUND);
            }
        }
    });
}

/// Our own writers' output, and what is kept in the repository.
fn seeds(parser: &Parser) -> Result<Vec<Vec<u8>>> {
    let mut seeds = (parser.seeds)()?;
    let corpus = workspace::root().join("testdata/fuzz").join(parser.name);
    if let Ok(entries) = fs::read_dir(&corpus) {
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(
                entry
                    .with_context(|| format!("listing {}", corpus.display()))?
                    .path(),
            );
        }
        // In the same order everywhere, so that a seed number repeats a run.
        paths.sort();
        for path in paths {
            seeds.push(fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
        }
    }
    Ok(seeds)
}

fn keep(parser: &Parser, how: &str, input: &[u8]) -> Result<PathBuf> {
    let directory = kept();
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let path = Path::new(&directory).join(format!("{}-{how}", parser.name));
    fs::write(&path, input).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

fn kept() -> PathBuf {
    workspace::target("fuzz")
}
