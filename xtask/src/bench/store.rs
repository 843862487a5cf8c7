//! What a store does all day: commit, commit again, images, fsck, diff, gc, and how it grows.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::commit::OSTREE;
use super::report::{Fact, Report, Row, Target};
use super::sample::Samples;
use super::{Bench, NAME, NEXT, allocated, commit_theirs, image, ostree, remove, root_of};
use crate::{programs, run};

/// Numbers of files whose images are written, to see how time and memory grow.
const FILES: [u32; 3] = [10_000, 100_000, 1_000_000];

/// Measures all of it.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let first = vec![
        Target::Wall(0.5),
        Target::Cpu(0.4),
        Target::PeakMegabytes(120),
    ];
    bench.commit_twice(report, bench.rivals()?, [first, vec![Target::Wall(0.03)]])?;
    let (store, repository) = (bench.store(0), bench.fresh("ostree", 0));
    bench.add_next(&store, &repository)?;
    bench.next_image(report, &store, &repository)?;
    bench.fsck(report, &store, &repository)?;
    bench.diff(report, &store, &repository)?;
    disk(report, &store, &repository)?;
    bench.checkout(report, &store)?;
    bench.gc(report, &store, &repository)?;
    bench.import(report)?;
    bench.digest(report)?;
    bench.growth(report)?;
    bench.versions(report)?;
    // A guest takes minutes to boot and work.
    if bench.full {
        bench.sealed(report)?;
    }
    Ok(())
}

impl Bench {
    fn add_next(&self, store: &Path, repository: &Path) -> Result<()> {
        let tree = &self.trees.v2;
        run::output(&mut self.commit_ours(store, tree, NEXT))?;
        run::output(&mut commit_theirs(repository, tree, "v2"))?;
        Ok(())
    }

    /// An image takes the place of a hard-linked checkout.
    fn next_image(&self, report: &mut Report, store: &Path, repository: &Path) -> Result<()> {
        let root = root_of(self, store, NEXT)?;
        let mut theirs = Samples::default();
        for run in 0..self.times {
            let checkout = self.fresh("checkout", run);
            theirs.take(
                "ostree checkout -H",
                &self.place,
                ostree(repository, "checkout")
                    .args(["--require-hardlinks", "v2"])
                    .arg(&checkout),
            )?;
            remove(&checkout)?;
        }
        report.add(Row {
            what: "EROFS image of v2, objects there",
            ours: image::measure(store, &root, self.times)?,
            peer: Some(("ostree checkout -H", theirs)),
            targets: vec![Target::Seconds(0.3), Target::Wall(0.15)],
        });
        Ok(())
    }

    fn fsck(&self, report: &mut Report, store: &Path, repository: &Path) -> Result<()> {
        let (ours, theirs) = self.alternate(
            ("bedplate fsck", &mut || self.ours_with(store, &["fsck"])),
            ("ostree fsck", &mut || ostree(repository, "fsck")),
        )?;
        report.add(Row {
            what: "fsck of both versions",
            ours,
            peer: Some((OSTREE, theirs)),
            targets: vec![Target::Wall(0.35)],
        });
        Ok(())
    }

    fn diff(&self, report: &mut Report, store: &Path, repository: &Path) -> Result<()> {
        let (ours, theirs) = self.alternate(
            ("bedplate diff --files", &mut || {
                self.ours_with(store, &["diff", "--files", NAME, NEXT])
            }),
            ("ostree diff", &mut || {
                let mut command = ostree(repository, "diff");
                command.args(["v1", "v2"]);
                command
            }),
        )?;
        report.add(Row {
            what: "diff v1 v2 --files",
            ours,
            peer: Some((OSTREE, theirs)),
            targets: vec![Target::Wall(0.15)],
        });
        Ok(())
    }

    /// Takes the first version away, from copies.
    fn gc(&self, report: &mut Report, store: &Path, repository: &Path) -> Result<()> {
        let (mut ours, mut theirs) = (Samples::default(), Samples::default());
        for run in 0..self.times.min(3) {
            let copy = self.fresh("store-copy", run);
            copied(store, &copy)?;
            run::output(&mut self.ours_with(&copy, &["untag", NAME]))?;
            self.settle(&self.place.join("nothing"))?;
            ours.take(
                "bedplate gc",
                &self.place,
                &mut self.ours_with(&copy, &["gc"]),
            )?;
            remove(&copy)?;

            let copy = self.fresh("ostree-copy", run);
            copied(repository, &copy)?;
            run::output(ostree(&copy, "refs").args(["--delete", "v1"]))?;
            self.settle(&self.place.join("nothing"))?;
            theirs.take(
                "ostree prune",
                &self.place,
                ostree(&copy, "prune").arg("--refs-only"),
            )?;
            remove(&copy)?;
        }
        report.add(Row {
            what: "gc after dropping v1",
            ours,
            peer: Some((OSTREE, theirs)),
            targets: vec![Target::Wall(0.4)],
        });
        Ok(())
    }

    /// Against a bare program that opens, reads and hashes the same files, and does nothing else.
    fn digest(&self, report: &mut Report) -> Result<()> {
        run::output(programs::cargo().args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "--package=bedplate-store",
            "--example=bare_hash",
        ]))?;
        let bare = self.bedplate.with_file_name("examples").join("bare_hash");
        let tree = &self.trees.v1;
        self.settle(tree)?;
        let (ours, theirs) = self.alternate(
            ("bedplate digest", &mut || {
                let mut command = Command::new(&self.bedplate);
                command.arg("digest").arg(tree);
                command
            }),
            ("bare hashing", &mut || {
                let mut command = Command::new(&bare);
                command.arg(tree);
                command
            }),
        )?;
        report.add(Row {
            what: "digest of v1, files in the page cache",
            ours,
            peer: Some(("a bare program: open, read, SHA-256, all cores", theirs)),
            targets: vec![Target::Wall(1.25)],
        });
        Ok(())
    }

    /// Images of more and more files: time for each file, and the peak of memory.
    fn growth(&self, report: &mut Report) -> Result<()> {
        let sizes = if self.full { &FILES[..] } else { &FILES[..1] };
        let mut each = Vec::new();
        for files in sizes {
            let mut samples = Samples::default();
            let program = std::env::current_exe().context("finding this program")?;
            let mut inside = Command::new(program);
            inside.args(["bench", "inside", "erofs", &files.to_string()]);
            samples.take(&format!("image of {files} files"), &self.place, &mut inside)?;
            let wall = samples.wall().context("nothing was measured")?[1];
            each.push((
                wall * 1e6 / f64::from(*files),
                samples.peak().unwrap_or_default(),
            ));
        }
        let (Some(first), Some(last)) = (each.first(), each.last()) else {
            return Ok(());
        };
        let microseconds: Vec<String> = each.iter().map(|(each, _)| format!("{each:.2}")).collect();
        report.add_fact(Fact {
            goal: "EROFS image of 10,000, 100,000 and 1,000,000 files, made in memory: linear (µs for each file)",
            reached: microseconds.join(", "),
            met: last.0 <= 1.5 * first.0,
        });
        report.add_fact(Fact {
            goal: "EROFS image of 1,000,000 files: peak memory at most 600 MB",
            reached: format!("{:.0} MB", last.1),
            met: last.1 <= 600.0,
        });
        Ok(())
    }

    /// Runs ours and theirs in turn.
    fn alternate(
        &self,
        (our_name, ours): (&str, &mut dyn FnMut() -> Command),
        (their_name, theirs): (&str, &mut dyn FnMut() -> Command),
    ) -> Result<(Samples, Samples)> {
        let (mut our_samples, mut their_samples) = (Samples::default(), Samples::default());
        for _ in 0..self.times {
            our_samples.take(our_name, &self.place, &mut ours())?;
            their_samples.take(their_name, &self.place, &mut theirs())?;
        }
        Ok((our_samples, their_samples))
    }

    pub(super) fn ours_with(&self, store: &Path, arguments: &[&str]) -> Command {
        let mut command = self.ours(store);
        command.args(arguments);
        command
    }
}

fn disk(report: &mut Report, store: &Path, repository: &Path) -> Result<()> {
    let (ours, theirs) = (allocated(store)?, allocated(repository)?);
    let ratio = ours / theirs;
    report.add_fact(Fact {
        goal: "disk for v1 and v2, unsealed: at most the bare ostree repository's",
        reached: format!(
            "{ratio:.3} ({:.0} MB and {:.0} MB)",
            ours / 1e6,
            theirs / 1e6
        ),
        met: ratio <= 1.0,
    });
    Ok(())
}

fn copied(from: &Path, to: &Path) -> Result<()> {
    run::output(
        Command::new("cp")
            .args(["--archive", "--"])
            .args([from, to]),
    )?;
    Ok(())
}
