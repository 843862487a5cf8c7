//! `cargo xtask bench`: our figures and the peers', taken in the same run on the same trees.
//!
//! ```text
//! bench ─┬─ trees    what is measured on: a real system of 1 GB, or a small made-up tree
//!        ├─ image    the one figure that is taken inside: writing an EROFS image
//!        ├─ sample   one run of a program: wall time, processor time, peak memory
//!        └─ report   medians, ranges, targets, and whether they were met
//! ```
//!
//! Ours and the peer's runs alternate, so that a noisy moment hits both.

mod image;
mod report;
mod sample;
mod trees;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::registry::Registry;
use crate::{packages, programs, run, wants_help, workspace};

use report::{Report, Row, Target};
use sample::Samples;

const HELP: &str = "\
Usage: cargo xtask bench [--smoke]

Measures Bedplate against ostree, skopeo and umoci on a real system of about 1 GB and 30,000 entries, prints
a table and writes it to docs/benchmarks.md. The first run makes the trees (some minutes); they are kept in
target/bench. --smoke runs everything once on a small tree, and writes and judges nothing.
";

/// What the image is called in our stores.
const NAME: &str = "localhost/bench:v1";

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// A real system, several times, judged and written down.
    Full,
    /// A small tree, once: shows that everything runs.
    Small,
}

/// `cargo xtask bench`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    if wants_help(arguments, HELP) {
        return Ok(());
    }
    let extent = match arguments {
        [] => Extent::Full,
        ["--smoke"] => Extent::Small,
        other => bail!(
            "`bench` takes no `{}`; see `cargo xtask bench --help`",
            other.join(" ")
        ),
    };
    packages::require(&[packages::BUILD, packages::BENCH])?;
    if extent == Extent::Full {
        packages::require(&[packages::IMAGES])?;
        // Owners and device nodes can be stored and unpacked by root alone.
        if !run::is_root() {
            bail!(
                "`bench` measures a whole system with its owners, which takes root; `bench --smoke` does not"
            );
        }
    }
    measure(extent)
}

/// Measures, prints, and writes `docs/benchmarks.md` where the extent is full.
pub(crate) fn measure(extent: Extent) -> Result<()> {
    let tree = trees::open_or_make(extent)?;
    let bedplate = programs::build()?;
    let place = workspace::target("bench/run");
    let bench = Bench {
        bedplate,
        tree,
        place,
        times: if extent == Extent::Full { 3 } else { 1 },
        settles: extent == Extent::Full,
    };
    remove(&bench.place)?;
    fs::create_dir_all(&bench.place)
        .with_context(|| format!("creating {}", bench.place.display()))?;

    let mut report = Report::new(&bench.tree, bench.times)?;
    bench.commit(&mut report)?;
    bench.image(&mut report)?;
    bench.pull(&mut report)?;
    remove(&bench.place)?;

    let judged = extent == Extent::Full;
    let text = report.markdown(judged);
    println!("\n{text}");
    if judged {
        let path = workspace::root().join("docs/benchmarks.md");
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        println!("written to {}", path.display());
    }
    Ok(())
}

struct Bench {
    bedplate: PathBuf,
    tree: PathBuf,
    place: PathBuf,
    times: usize,
    /// Whether runs are kept apart, as [`Bench::settle`] says; one run of each needs it not.
    settles: bool,
}

impl Bench {
    /// A directory as an image, into an empty store, and once more with everything there.
    fn commit(&self, report: &mut Report) -> Result<()> {
        let (mut ours, mut theirs) = (Samples::default(), Samples::default());
        let (mut ours_again, mut theirs_again) = (Samples::default(), Samples::default());
        for run in 0..self.times {
            let (store, repository) = (self.store(run), self.fresh("ostree", run));
            self.settle(&self.tree)?;
            ours.take(
                "bedplate commit",
                &self.place,
                &mut self.commit_ours(&store),
            )?;
            ours_again.take(
                "bedplate commit, again",
                &self.place,
                &mut self.commit_ours(&store),
            )?;
            run::output(
                Command::new("ostree")
                    .arg("init")
                    .arg(format!(
                        "--mode={}",
                        if run::is_root() { "bare" } else { "bare-user" }
                    ))
                    .arg(format!("--repo={}", repository.display())),
            )?;
            self.settle(&self.tree)?;
            theirs.take(
                "ostree commit",
                &self.place,
                &mut self.commit_theirs(&repository),
            )?;
            theirs_again.take(
                "ostree commit, again",
                &self.place,
                &mut self.commit_theirs(&repository),
            )?;
            remove(&repository)?;
            // The first store serves the parts that follow.
            if run > 0 {
                remove(&store)?;
            }
        }
        report.add(Row {
            what: "commit v1 into an empty store",
            ours,
            peer: Some(("ostree commit, bare repository", theirs)),
            targets: vec![
                Target::Wall(0.6),
                Target::Cpu(0.5),
                Target::PeakMegabytes(200),
            ],
        });
        report.add(Row {
            what: "commit v1 again, nothing changed",
            ours: ours_again,
            peer: Some(("ostree commit, bare repository", theirs_again)),
            targets: Vec::new(),
        });
        Ok(())
    }

    fn commit_ours(&self, store: &Path) -> Command {
        let mut command = self.ours(store);
        command.arg("commit").arg(&self.tree).arg(NAME);
        command
    }

    fn commit_theirs(&self, repository: &Path) -> Command {
        let mut command = Command::new("ostree");
        command
            .args(["commit", "--branch=v1", "--subject=v1"])
            .arg(format!("--repo={}", repository.display()))
            .arg(format!("--tree=dir={}", self.tree.display()));
        command
    }

    /// The EROFS image of a tree whose objects are all in the store.
    fn image(&self, report: &mut Report) -> Result<()> {
        let path = self.store(0);
        let about = run::output(self.ours(&path).args(["inspect", "--json", NAME]))?;
        let about: Value = serde_json::from_str(&about).context("reading what inspect said")?;
        let root = about["root_digest"]
            .as_str()
            .context("inspect names no root digest")?;
        report.add(Row {
            what: "EROFS image of v1, objects present",
            ours: image::measure(&path, root, self.times.max(3))?,
            peer: None,
            targets: vec![Target::Seconds(0.5)],
        });
        Ok(())
    }

    /// An image from a registry on the loopback: for us into an empty store, for the peers into an OCI
    /// layout and from there to a directory.
    fn pull(&self, report: &mut Report) -> Result<()> {
        let registry = Registry::start(
            &mut self.ours(&self.store(0)),
            &self.registry(),
            &self.place.join("registry.log"),
        )?;
        let names = ["gzip", "zstd"].map(|compression| {
            (
                compression,
                format!("127.0.0.1:{}/bench/{compression}:v1", registry.port()),
            )
        });
        for (compression, name) in &names {
            run::output(
                self.ours(&self.store(0))
                    .args(["push", "--tls-verify=false"])
                    .arg(format!("--compression={compression}"))
                    .args([NAME, name]),
            )?;
        }
        let [(_, gzip), (_, zstd)] = names;
        let (mut same, mut own, mut theirs) =
            (Samples::default(), Samples::default(), Samples::default());
        for run in 0..self.times {
            for (samples, name) in [(&mut same, &gzip), (&mut own, &zstd)] {
                let compression = if name == &gzip { "gzip" } else { "zstd" };
                let store = self.fresh(compression, run);
                let mut pull = self.ours(&store);
                pull.args(["pull", "--tls-verify=false", name]);
                self.settle(&self.registry())?;
                samples.take("bedplate pull", &self.place, &mut pull)?;
                remove(&store)?;
            }
            self.pull_theirs(&mut theirs, run, &gzip)?;
        }
        let peer = || Some(("skopeo copy + umoci unpack, gzip", theirs.clone()));
        let targets = || vec![Target::Wall(0.3), Target::PeakMegabytes(200)];
        report.add(Row {
            what: "pull v1 over loopback, the very same gzip image",
            ours: same,
            peer: peer(),
            targets: targets(),
        });
        report.add(Row {
            what: "pull v1 over loopback, as Bedplate makes it (zstd)",
            ours: own,
            peer: peer(),
            targets: targets(),
        });
        Ok(())
    }

    fn pull_theirs(&self, samples: &mut Samples, run: usize, name: &str) -> Result<()> {
        let [layout, bundle] = ["layout", "bundle"].map(|what| self.fresh(what, run));
        let mut copy = Command::new("skopeo");
        copy.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--src-tls-verify=false",
        ])
        .arg(format!("docker://{name}"))
        .arg(format!("oci:{}:v1", layout.display()));
        let mut unpack = Command::new("umoci");
        unpack
            .args(["unpack", "--image"])
            .arg(format!("{}:v1", layout.display()));
        if !run::is_root() {
            unpack.arg("--rootless");
        }
        unpack.arg(&bundle);
        self.settle(&self.registry())?;
        samples.take_sum(
            "skopeo copy, umoci unpack",
            &self.place,
            &mut [copy, unpack],
        )?;
        remove(&layout)?;
        remove(&bundle)
    }

    /// The store of one run.
    fn store(&self, run: usize) -> PathBuf {
        self.fresh("store", run)
    }

    fn fresh(&self, what: &str, run: usize) -> PathBuf {
        self.place.join(format!("{what}-{run}"))
    }

    fn registry(&self) -> PathBuf {
        self.place.join("registry")
    }

    /// Lets no run pay for the removal of the one before, and reads `input` into the page cache.
    ///
    /// For each new file ext4 looks at the inodes near it that were removed in the last minutes, as long
    /// as their blocks are cached: measured, the second of two pulls took twice the wall time and four
    /// times the system time of the first. So the caches are dropped, where this process may.
    fn settle(&self, input: &Path) -> Result<()> {
        if !self.settles {
            return Ok(());
        }
        run::output(&mut Command::new("sync"))?;
        if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "1") {
            eprintln!("bench: caches are not dropped between runs: {error}");
        }
        for program in [
            self.bedplate.as_os_str(),
            "ostree".as_ref(),
            "skopeo".as_ref(),
            "umoci".as_ref(),
        ] {
            run::output(Command::new(program).arg("--version"))?;
        }
        run::output(
            Command::new("find")
                .arg(input)
                .args(["-type", "f", "-exec", "cksum", "{}", "+"]),
        )?;
        Ok(())
    }

    fn ours(&self, store: &Path) -> Command {
        let mut command = Command::new(&self.bedplate);
        command.arg("--quiet").arg("--store").arg(store);
        command
    }
}

fn remove(path: &Path) -> Result<()> {
    if path.exists() {
        run::output(Command::new("rm").args(["-rf", "--"]).arg(path))?;
        run::output(&mut Command::new("sync"))?;
    }
    Ok(())
}
