//! What a machine does with versions: stage, finalize, roll back, say how it is; and the disk that they take.
//!
//! ```text
//! ours     a machine in a directory: store, record, boot partition; each verb a process that calls the library
//! theirs   `ostree admin` on a sysroot in a directory beside it, with the same two trees
//! ```
//!
//! The trees are what our images unpack to, so both have the same kernel and initramfs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::machine::MadeUp;
use super::report::{Fact, Report, Row, Target};
use super::sample::Samples;
use super::sysroot::{self, Sysroot};
use super::{Bench, NAME, NEXT, allocated, remove, root_of};
use crate::run;

/// How many files the administrator added to /etc.
const ETC_FILES: u32 = 1000;

/// How often what takes milliseconds is done.
const QUICK: usize = 11;

/// Measures all of it.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let place = bench.fresh_directory("versions")?;
    let trees = [place.join("tree-1"), place.join("tree-2")];
    let ours = MadeUp::at(&place.join("ours"));
    bench.fill(&ours, &trees)?;
    let contents = Contents::of(&trees)?;
    trees.iter().try_for_each(|tree| sysroot::shape(tree))?;
    let theirs = Sysroot::new(&place, [&trees[0], &trees[1]])?;
    let versions = Versions {
        bench,
        first: root_of(bench, &ours.store_path(), NAME)?,
        etc: trees[0].join("usr/etc"),
        place: place.join("ours"),
        ours,
        theirs,
    };
    versions.stage(report)?;
    if run::is_root() {
        versions.finalize(report)?;
    }
    versions.have_two()?;
    versions.rollback(report)?;
    versions.status(report)?;
    versions.disk(report, &contents)?;
    remove(&place)?;
    report.leave_out(
        "stage v2, sealed: at most 0.25 of `ostree admin deploy`",
        "takes a guest with fs-verity, which this bench does not start yet",
    );
    report.leave_out(
        "disk for two deployments, sealed on ext4: at most 1.18 of the trees' contents",
        "takes a guest with fs-verity, which this bench does not start yet",
    );
    Ok(())
}

/// A machine and a sysroot with the same versions.
struct Versions<'b> {
    bench: &'b Bench,
    ours: MadeUp,
    /// Where ours is.
    place: PathBuf,
    theirs: Sysroot,
    /// The first version's root digest.
    first: String,
    /// The /etc of the first version.
    etc: PathBuf,
}

impl Versions<'_> {
    fn stage(&self, report: &mut Report) -> Result<()> {
        let [mut ours, mut theirs, mut lazy] = <[Samples; 3]>::default();
        for _ in 0..self.bench.times {
            self.install()?;
            self.bench.settle(&self.ours.store_path())?;
            self.take("stage", &mut ours)?;
            for (samples, prunes) in [(&mut theirs, true), (&mut lazy, false)] {
                self.bench.settle(&self.theirs.repository())?;
                let mut deploy = self.theirs.deploy("v2");
                deploy.args((!prunes).then_some("--no-prune"));
                samples.take("ostree admin deploy", &self.bench.place, &mut deploy)?;
                self.theirs.undeploy()?;
            }
        }
        report.add(Row {
            what: "stage v2, its objects there: plan to staged",
            ours: ours.clone(),
            peer: Some(("ostree admin deploy", theirs)),
            targets: vec![Target::Wall(0.25)],
        });
        report.add(Row {
            what: "the same, against a deploy that does not prune its repository",
            ours,
            peer: Some(("ostree admin deploy --no-prune", lazy)),
            targets: vec![Target::Wall(0.25)],
        });
        Ok(())
    }

    /// Stages and finalizes, as a machine does that shuts down.
    fn finalize(&self, report: &mut Report) -> Result<()> {
        add_files(&self.theirs.etc()?)?;
        let [mut stage, mut finalize, mut their_stage, mut their_finalize] =
            <[Samples; 4]>::default();
        for _ in 0..self.bench.times {
            self.install()?;
            add_files(&self.ours.etc_home().join("etc"))?;
            self.bench.settle(&self.ours.store_path())?;
            self.take("stage", &mut stage)?;
            self.take("finalize", &mut finalize)?;
            self.bench.settle(&self.theirs.repository())?;
            self.theirs
                .take_staged(&mut their_stage, &mut their_finalize)?;
            self.theirs.undeploy()?;
        }
        report.add(Row {
            what: "stage v2 with 1,000 more files in /etc",
            ours: stage,
            peer: Some(("ostree admin deploy --stage", their_stage)),
            targets: Vec::new(),
        });
        report.add(Row {
            what: "finalize it: /etc merged, boot partition written",
            ours: finalize,
            peer: Some(("ostree admin finalize-staged", their_finalize)),
            targets: vec![Target::Seconds(1.0), Target::Wall(0.5)],
        });
        Ok(())
    }

    /// Brings both to two deployments that can be swapped.
    fn have_two(&self) -> Result<()> {
        self.install()?;
        for verb in ["stage", "finalize"] {
            run::output(&mut self.verb(verb)?)?;
        }
        self.ours.boot_trial()?;
        run::output(&mut self.theirs.deploy("v2"))?;
        Ok(())
    }

    fn rollback(&self, report: &mut Report) -> Result<()> {
        let [mut ours, mut theirs] = <[Samples; 2]>::default();
        for _ in 0..self.quick_times() {
            self.take("rollback", &mut ours)?;
            self.theirs.take_set_default(&mut theirs)?;
        }
        report.add(Row {
            what: "rollback, and the next one back",
            ours,
            peer: Some((
                "libostree, as `ostree admin set-default 1` calls it, without a program's start",
                theirs,
            )),
            targets: vec![Target::Wall(0.5)],
        });
        Ok(())
    }

    fn status(&self, report: &mut Report) -> Result<()> {
        let mut ours = Samples::default();
        for _ in 0..self.quick_times() {
            self.take("status", &mut ours)?;
        }
        report.add(Row {
            what: "status of two deployments",
            ours,
            peer: None,
            targets: vec![Target::Seconds(0.02)],
        });
        Ok(())
    }

    fn disk(&self, report: &mut Report, contents: &Contents) -> Result<()> {
        let mut ours = 0.0;
        for disk in self.ours.disks() {
            ours += allocated(disk)?;
        }
        let theirs = allocated(self.theirs.disk())?;
        let ratio = ours / contents.bytes;
        report.add_fact(Fact {
            goal: "disk for two deployments of v1 and v2, boot partition included, unsealed: at most 1.06 of the \
                   bytes of the two trees' distinct contents",
            reached: format!(
                "{ratio:.3} ({:.0} MB and {:.0} MB; in whole blocks the contents have {:.0} MB; ostree's sysroot {:.0} MB)",
                ours / 1e6,
                contents.bytes / 1e6,
                contents.blocks / 1e6,
                theirs / 1e6
            ),
            met: ratio <= 1.06,
        });
        Ok(())
    }

    /// A machine that has the first version and its /etc.
    fn install(&self) -> Result<()> {
        self.ours
            .install(self.first.parse().context("reading the root digest")?)?;
        run::output(
            Command::new("cp")
                .args(["--archive", "--"])
                .arg(&self.etc)
                .arg(self.ours.etc_home()),
        )?;
        Ok(())
    }

    fn take(&self, verb: &str, samples: &mut Samples) -> Result<()> {
        let name = format!("bedplate, {verb}");
        samples.take(&name, &self.bench.place, &mut self.verb(verb)?)
    }

    fn verb(&self, verb: &str) -> Result<Command> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(program);
        command
            .args(["bench", "inside", "machine", verb])
            .arg(&self.place);
        Ok(command)
    }

    fn quick_times(&self) -> usize {
        if self.bench.full { QUICK } else { 1 }
    }
}

impl Bench {
    /// Puts both versions into the machine's store, and what they unpack to beside it.
    fn fill(&self, machine: &MadeUp, trees: &[PathBuf; 2]) -> Result<()> {
        let store = machine.store_path();
        fs::create_dir_all(store.parent().context("a store lies in a directory")?)
            .context("making the machine's root")?;
        for ((source, name), tree) in [(&self.trees.v1, NAME), (&self.trees.v2, NEXT)]
            .into_iter()
            .zip(trees)
        {
            if self.full {
                run::output(
                    self.ours(&store)
                        // It is installed nowhere: it needs no loader, and may have keys of its own.
                        .args(["build", "--skip-lint=boot-loader", "--skip-lint=identity"])
                        .args(["--tag", name, "--rootfs"])
                        .arg(source),
                )?;
                run::output(self.ours(&store).args(["checkout", name]).arg(tree))?;
            } else {
                run::output(
                    Command::new("cp")
                        .args(["--archive", "--"])
                        .args([source, tree]),
                )?;
                make_bootable(tree, name)?;
                run::output(&mut self.commit_ours(&store, tree, name))?;
            }
        }
        Ok(())
    }
}

/// Gives a small tree what a machine wants of one.
fn make_bootable(tree: &Path, name: &str) -> Result<()> {
    for (path, text) in [
        (
            "usr/lib/modules/6.1.0/vmlinuz",
            format!("the kernel of {name}"),
        ),
        (
            "usr/lib/modules/6.1.0/initramfs.img",
            format!("the initramfs of {name}"),
        ),
        (
            "usr/lib/os-release",
            "ID=small\nVERSION_ID=1\nPRETTY_NAME=Small\n".to_owned(),
        ),
        ("etc/hostname", "small\n".to_owned()),
    ] {
        let path = tree.join(path);
        let parent = path.parent().context("a file lies in a directory")?;
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    // ostree runs in it with the host's /usr, which has the programs and libraries.
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), tree.join(name))
            .with_context(|| format!("linking /{name}"))?;
    }
    Ok(())
}

/// Adds an administrator's files to an /etc.
fn add_files(etc: &Path) -> Result<()> {
    for number in 0..ETC_FILES {
        let directory = etc.join(format!("local-{}.d", number % 20));
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        let line = format!("setting {number}\n");
        let text = line.repeat(1 + (number as usize * 7) % 200);
        let path = directory.join(format!("{number}.conf"));
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// The distinct contents of several trees.
struct Contents {
    bytes: f64,
    /// The same, each in whole blocks of 4096 bytes.
    blocks: f64,
}

impl Contents {
    /// Counts them with other programs than ours.
    fn of(trees: &[PathBuf]) -> Result<Self> {
        let listed = run::output(Command::new("find").args(trees).args([
            "-type",
            "f",
            "-exec",
            "sha256sum",
            "--zero",
            "{}",
            "+",
        ]))?;
        let mut sizes = BTreeMap::new();
        for line in listed.split_terminator('\0') {
            let (digest, path) = line
                .split_once("  ")
                .with_context(|| format!("sha256sum said {line:?}"))?;
            let about = fs::metadata(path).with_context(|| format!("looking at {path}"))?;
            sizes.insert(digest.to_owned(), about.len());
        }
        let sum = |size: fn(u64) -> u64| sizes.values().map(|bytes| size(*bytes)).sum::<u64>();
        #[expect(
            clippy::cast_precision_loss,
            reason = "a figure for people, of some gigabytes"
        )]
        Ok(Self {
            bytes: sum(|bytes| bytes) as f64,
            blocks: sum(|bytes| bytes.next_multiple_of(4096)) as f64,
        })
    }
}
