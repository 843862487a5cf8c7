//! `cargo xtask concurrency`: everything at once on one store, in processes and in threads.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bedplate_model::{ImageName, RuleSet};
use bedplate_store::{GcPolicy, RefTarget, Store, scan};
use testkit::trial::{self, Bench};

use crate::trial::enter;
use crate::{programs, run, wants_help, workspace};

const HELP: &str = "\
Usage: cargo xtask concurrency [--seconds N] [--bedplate FILE]

Commits, imports, pulls, pushes, tags, gc, fsck, reads and mounts, all at once on one store, each in a process
or thread of its own, for N seconds [default: 20]; then fsck, and a full read of every image that is left.
--bedplate takes another program than the workspace's. Needs root.
";

const VERB: &str = "concurrency";

/// How long, where nothing else was asked for.
const SECONDS: u64 = 20;

/// `cargo xtask concurrency`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    if wants_help(arguments, HELP) {
        return Ok(());
    }
    let (mut seconds, mut bedplate, mut inside) = (SECONDS, None, false);
    let mut words = arguments.iter().copied();
    while let Some(word) = words.next() {
        let mut value = || {
            let value = words.next();
            value.with_context(|| format!("{word} takes a value"))
        };
        match word {
            "--seconds" => seconds = value()?.parse().context("reading --seconds")?,
            "--bedplate" => bedplate = Some(Path::new(value()?)),
            "--inside" => inside = true,
            other => bail!("`{VERB}` takes no `{other}`; see `cargo xtask {VERB} --help`"),
        }
    }
    match bedplate {
        Some(bedplate) if inside => work(bedplate, Duration::from_secs(seconds)),
        Some(bedplate) => enter(VERB, arguments, bedplate),
        None => all(seconds),
    }
}

/// Everything at once, for so many seconds.
pub(crate) fn all(seconds: u64) -> Result<()> {
    if !run::is_root() {
        println!("  left out: this is not root, and disks have to be mounted");
        return Ok(());
    }
    let seconds = seconds.to_string();
    enter(VERB, &["--seconds", &seconds], &programs::build()?)
}

fn work(bedplate: &Path, time: Duration) -> Result<()> {
    let bench =
        Bench::prepare(bedplate, &workspace::target("trial")).context("preparing what is tried")?;
    let trees = workspace::target("trial");
    let (first, second) = (trees.join("tree-1"), trees.join("tree-2"));
    let committing = |store: &Path| -> Result<()> {
        commit(store, &first, "thread:a")?;
        commit(store, &second, "thread:a")
    };
    let renaming = |store: &Path| -> Result<()> {
        commit(store, &second, "thread:b")?;
        untag(store, "thread:b")
    };
    let rounds = trial::together(
        &bench,
        time,
        &[
            ("thread: commit", &committing),
            ("thread: commit and remove", &renaming),
            ("thread: gc", &collect),
            ("thread: fsck", &check),
        ],
    )?;
    let mut total = 0;
    for (name, (done, changed)) in &rounds {
        let meanwhile = match changed {
            0 => String::new(),
            _ => format!(", {changed} with a name that was changed meanwhile"),
        };
        println!("  {name:<28} {done:>6} rounds{meanwhile}");
        total += done;
    }
    if !rounds.contains_key(trial::MOUNT) {
        println!("  mounts left out: this kernel does not let us");
    }
    println!(
        "  {} workers, {total} rounds in {} s; then all was whole",
        rounds.len(),
        time.as_secs()
    );
    Ok(())
}

fn name(text: &str) -> Result<ImageName> {
    text.parse().with_context(|| format!("reading `{text}`"))
}

fn commit(store: &Path, tree: &Path, to: &str) -> Result<()> {
    let store = Store::open(store)?;
    let transaction = store.begin()?;
    let tree = scan(tree, &transaction, &())?;
    let root = transaction.put_image(&tree, RuleSet::Exact1)?;
    transaction.set_ref(&name(to)?, RefTarget::new(root, 1))?;
    Ok(transaction.commit()?)
}

fn untag(store: &Path, what: &str) -> Result<()> {
    let store = Store::open(store)?;
    let transaction = store.begin()?;
    transaction.remove_ref(&name(what)?);
    Ok(transaction.commit()?)
}

fn collect(store: &Path) -> Result<()> {
    Store::open(store)?.gc(&GcPolicy::default(), false)?;
    Ok(())
}

fn check(store: &Path) -> Result<()> {
    let mut findings = Vec::new();
    Store::open(store)?.fsck(&mut |finding| findings.push(finding.to_string()))?;
    ensure!(findings.is_empty(), "fsck found {findings:?}");
    Ok(())
}
