//! Peers that do a part of what the store does: the composefs tool, casync, umoci, mkfs.erofs.
//!
//! Most of them leave it to somebody else to make their work durable, so a sync is a part of their time,
//! and of ours where we leave it, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::report::{Report, Row, Target};
use super::sample::Samples;
use super::{Bench, NAME, remove};
use crate::{run, workspace};

/// The version of the crate `composefs-ctl`.
const CFSCTL: &str = "0.9.4";

/// What is measured of a rival, in a directory.
type Work = dyn Fn(&Path) -> Result<Command>;

/// Somebody who makes something of v1 as well, beside our commit.
pub(super) struct Rival {
    /// The title of the row.
    pub(super) what: &'static str,
    /// Who it is, and what it does.
    pub(super) name: &'static str,
    /// Takes so long that one run says enough.
    pub(super) slow: bool,
    pub(super) targets: Vec<Target>,
    /// Gets an empty directory of its own, and returns the work.
    work: Box<Work>,
}

impl Bench {
    /// Those whose work can be compared with commit's.
    pub(super) fn rivals(&self) -> Result<Vec<Rival>> {
        let tree = || self.trees.v1.clone();
        let (for_casync, for_erofs) = (tree(), tree());
        let mut rivals = vec![
            Rival {
                what: "the same, against chunks compressed with zstd (one run of theirs)",
                name: "casync make, then sync",
                slow: true,
                targets: Vec::new(),
                work: Box::new(move |place| {
                    let mut make = casync("make", place);
                    make.arg(&for_casync);
                    Ok(then_synced(place, &make))
                }),
            },
            Rival {
                what: "the same, against an EROFS image with all contents, uncompressed and with no digests",
                name: "mkfs.erofs, then sync",
                slow: false,
                targets: Vec::new(),
                work: Box::new(move |place| {
                    let mut make = Command::new("mkfs.erofs");
                    make.arg("--quiet");
                    make.arg(place.join("image")).arg(&for_erofs);
                    Ok(then_synced(place, &make))
                }),
            },
        ];
        if self.full {
            let (program, tree) = (cfsctl()?, tree());
            rivals.push(Rival {
                what: "the same image, against the composefs tool",
                name: "cfsctl create-image, no fs-verity",
                slow: false,
                targets: vec![Target::Wall(0.8)],
                work: Box::new(move |place| {
                    let repository = place.join("repository");
                    let on_it = || {
                        let mut command = Command::new(&program);
                        command.arg("--repo").arg(&repository);
                        command
                    };
                    run::output(on_it().args([
                        "init",
                        "--insecure",
                        "--algorithm",
                        "fsverity-sha256-12",
                    ]))?;
                    let mut create = on_it();
                    create.args(["create-image", "--no-propagate-usr-to-root"]);
                    create.arg(&tree).arg("v1");
                    Ok(create)
                }),
            });
        }
        Ok(rivals)
    }

    /// One run of a rival.
    pub(super) fn take_turn(&self, rival: &Rival, samples: &mut Samples) -> Result<()> {
        let place = self.fresh_directory("rival")?;
        let mut work = (rival.work)(&place)?;
        self.settle(&self.trees.v1)?;
        samples.take(rival.name, &self.place, &mut work)?;
        remove(&place)
    }

    /// v1 out of a store, into a directory: against casync.
    pub(super) fn checkout(&self, report: &mut Report, store: &Path) -> Result<()> {
        let chunks = self.fresh_directory("casync")?;
        run::output(casync("make", &chunks).arg(&self.trees.v1))?;
        let (mut ours, mut theirs) = (Samples::default(), Samples::default());
        let out = self.place.join("checkout");
        // Once: a second run would begin with the removal of 30,000 files.
        let mut checkout = self.ours(store);
        checkout.args(["checkout", NAME]).arg(&out);
        if !run::is_root() {
            checkout.arg("--unprivileged");
        }
        self.settle(store)?;
        ours.take(
            "bedplate checkout",
            &self.place,
            &mut then_synced(&self.place, &checkout),
        )?;
        remove(&out)?;
        let mut extract = casync("extract", &chunks);
        extract.arg(&out);
        self.settle(&chunks)?;
        theirs.take(
            "casync extract",
            &self.place,
            &mut then_synced(&self.place, &extract),
        )?;
        remove(&out)?;
        remove(&chunks)?;
        report.add(Row {
            what: "v1 out of the store into a directory, contents checked (one run)",
            ours,
            peer: Some(("casync extract, then sync", theirs)),
            targets: Vec::new(),
        });
        Ok(())
    }

    /// A layer, compressed with gzip, into an empty store: against umoci, which unpacks it to a directory.
    pub(super) fn import(&self, report: &mut Report) -> Result<()> {
        let layout = self.place.join("layout");
        let image = format!("{}:v1", layout.display());
        run::output(
            Command::new("umoci")
                .args(["init", "--layout"])
                .arg(&layout),
        )?;
        run::output(Command::new("umoci").args(["new", "--image", &image]))?;
        let rootless = (!run::is_root()).then_some("--rootless");
        run::output(
            Command::new("umoci")
                .args(["insert", "--image", &image])
                .args(rootless)
                .arg(&self.trees.v1)
                .arg("/"),
        )?;
        let blob = largest(&layout.join("blobs/sha256"))?;
        // umoci leaves out the end of the tar, without which an archive is taken for a cut one.
        let layer = self.place.join("layer.tar.gz");
        let append = r#"cp "$1" "$2" && head -c 1024 /dev/zero | gzip >>"$2""#;
        run::output(
            Command::new("sh")
                .args(["-c", append, "sh"])
                .args([&blob, &layer]),
        )?;
        let (store, bundle) = (self.place.join("imported"), self.place.join("bundle"));
        let (mut ours, mut theirs) = (Samples::default(), Samples::default());
        self.settle(&layer)?;
        let mut import = self.ours(&store);
        import.arg("import").arg(&layer).arg(NAME);
        ours.take("bedplate import", &self.place, &mut import)?;
        remove(&store)?;
        let mut unpack = Command::new("umoci");
        unpack.args(["unpack", "--image", &image]).args(rootless);
        unpack.arg(&bundle);
        self.settle(&layer)?;
        theirs.take(
            "umoci unpack",
            &self.place,
            &mut then_synced(&self.place, &unpack),
        )?;
        remove(&bundle)?;
        remove(&layout)?;
        remove(&layer)?;
        report.add(Row {
            what: "import v1 as one layer, gzip, into an empty store (one run)",
            ours,
            peer: Some(("umoci unpack to a directory, then sync", theirs)),
            targets: Vec::new(),
        });
        Ok(())
    }

    pub(super) fn fresh_directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.place.join(name);
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }
}

/// A verb of casync on the archive of a directory.
fn casync(verb: &str, place: &Path) -> Command {
    let mut command = Command::new("casync");
    command.arg(verb);
    command.arg(format!("--store={}", place.join("chunks").display()));
    command.arg(place.join("archive.caidx"));
    command
}

/// The command, and after it a sync of the file system that it wrote to.
fn then_synced(place: &Path, command: &Command) -> Command {
    let mut both = Command::new("sh");
    both.args(["-c", r#""$@" && sync --file-system "$0""#])
        .arg(place)
        .arg(command.get_program())
        .args(command.get_args());
    both
}

/// Builds the composefs tool from its crate, or finds it built.
fn cfsctl() -> Result<PathBuf> {
    let root = workspace::target("bench/tools");
    let program = root.join("bin/cfsctl");
    if !program.exists() {
        println!("  building cfsctl {CFSCTL} (some minutes) …");
        run::output(
            Command::new("cargo")
                .args(["install", "--locked", "composefs-ctl", "--version", CFSCTL])
                .args(["--no-default-features", "--features", "pre-6.15", "--root"])
                .arg(&root),
        )?;
    }
    Ok(program)
}

fn largest(directory: &Path) -> Result<PathBuf> {
    let listed =
        fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()));
    let mut files = Vec::new();
    for entry in listed? {
        let entry = entry?;
        files.push((entry.metadata()?.len(), entry.path()));
    }
    let (_, path) = files.into_iter().max().context("the layout has no blobs")?;
    Ok(path)
}
