//! `cargo xtask bench`: our figures and the peers', taken in the same run on the same trees.
//!
//! ```text
//! bench ─┬─ whole_way  suite: commit, image, pull, against ostree, skopeo, umoci
//!        ├─ store      suite: what a store does all day, against ostree, cfsctl, casync, umoci, mkfs.erofs
//!        │  ├─ commit      … and commit, which both suites measure
//!        │  ├─ peers       those who do a part of it
//!        │  ├─ sealed      the same with fs-verity, in a guest
//!        │  ├─ versions    stores of up to 100 versions: what grows with them
//!        │  └─ machine     … and a machine that they belong to
//!        ├─ deployments  suite: what a machine does with versions, against ostree admin
//!        │  ├─ machine     … ours, made up in a directory
//!        │  └─ sysroot     … and ostree's
//!        ├─ boot       suite: our early boot, against initramfs-tools and dracut
//!        ├─ trees      what is measured on: two versions of a real system of 1 GB, or small made-up trees
//!        ├─ image      the figures that are taken inside: writing EROFS images
//!        ├─ sample     one run of a program: wall time, processor time, peak memory
//!        └─ report     medians, ranges, targets, and whether they were met
//! ```
//!
//! Ours and the peer's runs alternate, so that a noisy moment hits both. Each suite owns one section of
//! `docs/benchmarks.md`, and leaves the others alone.

mod boot;
mod commit;
mod deployments;
mod image;
mod machine;
mod peers;
mod report;
mod sample;
mod sealed;
mod store;
mod sysroot;
mod trees;
mod versions;
mod whole_way;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{packages, programs, run, wants_help, workspace};

use report::Report;
use trees::Trees;

const HELP: &str = "\
Usage: cargo xtask bench [SUITE] [--smoke]

Measures Bedplate against its peers on a real system of about 1 GB and 30,000 entries, prints tables and
writes them to docs/benchmarks.md. The first run makes the trees (some minutes); they are kept in
target/bench. --smoke runs everything once on small trees, and writes and judges nothing.

Suites (all of them where none is named):
  way      commit, EROFS image and pull, against ostree, skopeo and umoci
  store    what the store does all day, against ostree, cfsctl, casync, umoci and mkfs.erofs; how it grows
  machine  stage, finalize, rollback, status and disk, against ostree admin; and boot
  boot     from the initramfs's start to the system's, against initramfs-tools and dracut
";

/// What the image is called in our stores.
const NAME: &str = "localhost/bench:v1";

/// What the second version is called there.
const NEXT: &str = "localhost/bench:v2";

/// Figures that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suite {
    WholeWay,
    Store,
    Machine,
    Boot,
}

impl Suite {
    const ALL: [Self; 4] = [Self::WholeWay, Self::Store, Self::Machine, Self::Boot];

    /// Those that a name means.
    fn named(name: &str) -> Vec<Self> {
        match name {
            "way" => vec![Self::WholeWay],
            "store" => vec![Self::Store],
            "machine" => vec![Self::Machine, Self::Boot],
            "boot" => vec![Self::Boot],
            _ => Vec::new(),
        }
    }

    /// The title of its section.
    fn title(self) -> &'static str {
        match self {
            Self::WholeWay => "The whole way",
            Self::Store => "The store",
            Self::Machine => "The machine",
            Self::Boot => "The boot",
        }
    }

    /// How often each thing is measured.
    fn times(self) -> usize {
        match self {
            Self::WholeWay | Self::Machine | Self::Boot => 3,
            Self::Store => 5,
        }
    }
}

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
    if let ["inside", "machine", rest @ ..] = arguments {
        return machine::inside(rest);
    }
    if let ["inside", work, rest @ ..] = arguments {
        return image::inside(work, rest);
    }
    let (mut suites, mut extent) = (Vec::new(), Extent::Full);
    for argument in arguments {
        match (Suite::named(argument), *argument) {
            (named, _) if !named.is_empty() => suites.extend(named),
            (_, "--smoke") => extent = Extent::Small,
            (_, other) => {
                bail!("`bench` takes no `{other}`; see `cargo xtask bench --help`")
            }
        }
    }
    if suites.is_empty() {
        suites.extend(Suite::ALL);
    }
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
    suites
        .into_iter()
        .try_for_each(|suite| measure_suite(suite, extent))
}

/// Measures everything, prints it, and writes `docs/benchmarks.md` where the extent is full.
pub(crate) fn measure(extent: Extent) -> Result<()> {
    Suite::ALL
        .into_iter()
        .try_for_each(|suite| measure_suite(suite, extent))
}

fn measure_suite(suite: Suite, extent: Extent) -> Result<()> {
    let full = extent == Extent::Full;
    let bench = Bench {
        trees: Trees::open_or_make(extent)?,
        bedplate: programs::build()?,
        place: workspace::target("bench/run"),
        times: if full { suite.times() } else { 1 },
        full,
    };
    remove(&bench.place)?;
    fs::create_dir_all(&bench.place)
        .with_context(|| format!("creating {}", bench.place.display()))?;

    let mut report = Report::new(&bench.trees, bench.times)?;
    match suite {
        Suite::WholeWay => whole_way::measure(&bench, &mut report)?,
        Suite::Store => store::measure(&bench, &mut report)?,
        Suite::Machine => deployments::measure(&bench, &mut report)?,
        // Each of ten boots takes a quarter of a minute or more.
        Suite::Boot if full => boot::measure(&bench, &mut report)?,
        Suite::Boot => return Ok(()),
    }
    remove(&bench.place)?;

    let text = report.markdown(full);
    println!("\n{text}");
    if full {
        let path = workspace::root().join("docs/benchmarks.md");
        report::write_section(&path, suite.title(), &text)?;
        println!("written to {}", path.display());
    }
    Ok(())
}

struct Bench {
    bedplate: PathBuf,
    trees: Trees,
    place: PathBuf,
    times: usize,
    /// Real trees, and what only they are worth: runs kept apart as [`Bench::settle`] says, peers that
    /// take minutes to build.
    full: bool,
}

impl Bench {
    fn commit_ours(&self, store: &Path, tree: &Path, name: &str) -> Command {
        let mut command = self.ours(store);
        command.arg("commit").arg(tree).arg(name);
        command
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
        if !self.full {
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
            "casync".as_ref(),
            "mkfs.erofs".as_ref(),
        ] {
            run::output(Command::new(program).arg("--help"))?;
        }
        if !input.exists() {
            return Ok(());
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

/// The root digest of an image in one of our stores.
fn root_of(bench: &Bench, store: &Path, name: &str) -> Result<String> {
    let about = run::output(bench.ours(store).args(["inspect", "--json", name]))?;
    let about: Value = serde_json::from_str(&about).context("reading what inspect said")?;
    let root = about["root_digest"].as_str();
    Ok(root.context("inspect names no root digest")?.to_owned())
}

fn commit_theirs(repository: &Path, tree: &Path, branch: &str) -> Command {
    let mut command = ostree(repository, "commit");
    command
        .arg(format!("--branch={branch}"))
        .arg("--subject=bench")
        .arg(format!("--tree=dir={}", tree.display()));
    command
}

fn make_repository(path: &Path) -> Result<()> {
    // Only root can keep owners.
    let mode = if run::is_root() { "bare" } else { "bare-user" };
    run::output(ostree(path, "init").arg(format!("--mode={mode}")))?;
    Ok(())
}

/// A verb of ostree on a repository.
fn ostree(repository: &Path, verb: &str) -> Command {
    let mut command = Command::new("ostree");
    command
        .arg(verb)
        .arg(format!("--repo={}", repository.display()));
    command
}

fn remove(path: &Path) -> Result<()> {
    if path.exists() {
        run::output(Command::new("rm").args(["-rf", "--"]).arg(path))?;
        run::output(&mut Command::new("sync"))?;
    }
    Ok(())
}

/// Bytes of disk that a directory takes.
fn allocated(path: &Path) -> Result<f64> {
    let said = run::output(
        Command::new("du")
            .args(["--summarize", "--block-size=1"])
            .arg(path),
    )?;
    said.split_ascii_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .context("reading what du said")
}
