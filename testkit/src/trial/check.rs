//! What must hold after a cut.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::operations::Operation;
use super::program::Program;

/// Each name, and the root digest of the image that it names.
pub(crate) type Refs = BTreeMap<String, String>;

/// What may be found.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) old: &'a Refs,
    pub(crate) new: &'a Refs,
    /// The program had ended when the power was cut: what it did stays.
    pub(crate) done: bool,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Old,
    New,
}

/// Checks the store below `root`, then runs the operation again, and checks again.
pub(crate) fn check(
    operation: &Operation,
    expected: &Expected<'_>,
    program: &Program,
    root: &Path,
    place: &Path,
) -> Result<Seen> {
    if !operation.repairs && !operation.overtaken {
        whole(program, root).context("after the cut")?;
    }
    let found = refs(program, root)?;
    let seen = judge(&found, expected)?;
    if !operation.repairs {
        read_back(program, root, &found, place)?;
    }

    if operation.again || seen != Seen::New {
        program
            .run(root, operation.command)
            .context("running it again")?;
    }
    program.run(root, "gc").context("after it was run again")?;
    if operation.overtaken {
        // It is there for people to look at, and fsck says so until they took it away.
        fs::remove_file(root.join("store/journal.stale")).context("taking the journal away")?;
    }
    whole(program, root).context("after it was run again")?;
    let found = refs(program, root)?;
    ensure!(
        found == *expected.new,
        "after it was run again, there is {found:?} instead of {:?}",
        expected.new
    );
    read_back(program, root, &found, place).context("after it was run again")?;
    for place in ["tmp", "trash"] {
        let mut left = fs::read_dir(root.join("store").join(place))
            .with_context(|| format!("listing {place}/"))?;
        ensure!(left.next().is_none(), "gc left something in {place}/");
    }
    Ok(seen)
}

/// Says whether the refs are the old or the new ones: all of them, however many an operation changes.
fn judge(found: &Refs, expected: &Expected<'_>) -> Result<Seen> {
    let Expected { old, new, done } = expected;
    if found == *new {
        return Ok(Seen::New);
    }
    ensure!(
        !done,
        "the program had ended well, and the refs are {found:?} instead of {new:?}"
    );
    if found == *old {
        return Ok(Seen::Old);
    }
    bail!("the refs are {found:?}: neither the old ones, {old:?}, nor the new ones, {new:?}")
}

/// Whether there is a store at all: while the first one is made, there may be none.
fn is_store(root: &Path) -> bool {
    root.join("store/format.json").exists()
}

fn whole(program: &Program, root: &Path) -> Result<()> {
    if is_store(root) {
        program.run(root, "fsck")?;
    }
    Ok(())
}

/// Reads which refs the store has.
pub(crate) fn refs(program: &Program, root: &Path) -> Result<Refs> {
    #[derive(Deserialize)]
    struct Image {
        name: String,
        root_digest: String,
    }
    if !is_store(root) {
        return Ok(Refs::new());
    }
    let printed = program.run(root, "images --json")?;
    let images: Vec<Image> = serde_json::from_str(&printed).context("reading `images --json`")?;
    Ok(images
        .into_iter()
        .map(|image| (image.name, image.root_digest))
        .collect())
}

/// Checks every image out, and compares what lies there with its root digest.
pub(crate) fn read_back(program: &Program, root: &Path, refs: &Refs, place: &Path) -> Result<()> {
    let one_name_each: BTreeMap<&String, &String> =
        refs.iter().map(|(name, digest)| (digest, name)).collect();
    for (digest, name) in one_name_each {
        let copy = place.join("copy");
        program.run(root, &format!("checkout {name} {}", copy.display()))?;
        let found = program.run(root, &format!("digest {}", copy.display()))?;
        fs::remove_dir_all(&copy).context("removing what was checked out")?;
        ensure!(
            found == *digest,
            "{name} reads back as {found}, not {digest}"
        );
    }
    Ok(())
}
