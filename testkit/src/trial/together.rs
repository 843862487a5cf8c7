//! Everything at once: processes and threads side by side on one store, for as long as one likes.
//!
//! ```text
//! processes  commit · import · pull · push · tag · gc · fsck · ls, cat, diff · checkout · export · mount
//! threads    what the caller brings: the library's own handles in one process
//! then       gc · fsck · nothing staged · every image that is left reads back as its root digest
//! ```
//!
//! Invariant: names that nobody changes read the same at any moment; of those that change, only what
//! changed meanwhile may fail.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::Bench;
use super::check;
use super::mount::{Mounted, make_ext4};
use super::program::{Program, REGISTRY};

/// The size of the disk that the store lies on, in bytes.
const DISK: u64 = 1 << 30;

/// The worker that mounts images, where the kernel lets it.
pub const MOUNT: &str = "mount";

/// What stands for a directory of the worker's own in a command line.
const OWN: &str = "OWN";

/// What a worker does over and over.
struct Job {
    name: &'static str,
    /// Command lines, all of which must succeed.
    lines: &'static [&'static str],
    /// A name that others change: where it did between before and after, a line may fail.
    changing: Option<&'static str>,
    /// What is looked at after each round.
    after: After,
}

/// What must hold after a round.
#[derive(Clone, Copy)]
enum After {
    Nothing,
    /// `OWN/copy` is the image of this name; it is removed.
    IsTree(&'static str),
    /// `OWN/tar` is the tar of tree 1.
    IsTar,
}

const fn job(name: &'static str, lines: &'static [&'static str]) -> Job {
    Job {
        name,
        lines,
        changing: None,
        after: After::Nothing,
    }
}

const JOBS: &[Job] = &[
    job(
        "commit",
        &[
            "commit tree-1 os:a",
            "commit tree-2 os:a",
            "commit --no-cache tree-1 os:b",
        ],
    ),
    job(
        "commit and remove",
        &["commit tree-2 os:d", "commit tree-1 os:d", "untag os:d"],
    ),
    job("import", &["import tree-1.tar os:i", "untag os:i"]),
    job("pull", &["pull REGISTRY/os:v1", "untag REGISTRY/os:v1"]),
    job(
        "pull of another",
        &["pull REGISTRY/os:v2", "untag REGISTRY/os:v2"],
    ),
    job("push", &["push base:1 REGISTRY/os:pushed"]),
    job("tag", &["tag base:1 os:t1 os:t2", "untag os:t1 os:t2"]),
    Job {
        changing: Some("os:a"),
        ..job("tag of what changes", &["tag os:a os:c", "untag os:c"])
    },
    job("gc", &["gc", "gc --keep 1", "gc --dry-run", "gc --keep 2"]),
    job("fsck", &["fsck --quick", "fsck"]),
    job(
        "read",
        &[
            "cat base:1 etc/version",
            "ls -R base:2",
            "images",
            "df",
            "log os:a",
        ],
    ),
    Job {
        changing: Some("os:a"),
        ..job(
            "read what changes",
            &["cat os:a etc/version", "ls -R os:a", "inspect os:a"],
        )
    },
    Job {
        after: After::IsTree("base:2"),
        ..job("checkout", &["checkout base:2 OWN/copy"])
    },
    Job {
        after: After::IsTar,
        ..job("export", &["export base:1 -o OWN/tar"])
    },
];

/// A thread's work in the caller's process: one round of it, on the store at this path.
pub type Round<'a> = (&'a str, &'a (dyn Fn(&Path) -> Result<()> + Sync));

/// How often each worker went round, and how often what it named was changed meanwhile.
pub type Rounds = BTreeMap<String, (u64, u64)>;

/// Lets everybody work on one store for some time, and checks what they leave.
pub fn together(bench: &Bench, time: Duration, threads: &[Round<'_>]) -> Result<Rounds> {
    let place = bench.memory.path().join("together");
    fs::create_dir_all(&place).context("making a directory for the disk")?;
    let disk = place.join("disk.raw");
    make_ext4(&disk, DISK)?;
    let mounted = Mounted::disk(&disk, &place.join("mnt"), false)?;
    let root = mounted.path().to_owned();
    let program = &bench.program;
    program.run(program.directory(), "commit tree-2 os:v2")?;
    program.run(program.directory(), &format!("push os:v2 {REGISTRY}/os:v2"))?;
    for line in [
        "commit tree-1 base:1",
        "commit tree-2 base:2",
        "tag base:1 os:a os:b",
    ] {
        program.run(&root, line)?;
    }
    let all = Everybody {
        program,
        root: &root,
        place: &place,
        expected: check::refs(program, &root)?,
        end: Instant::now() + time,
        stop: AtomicBool::new(false),
        rounds: Mutex::default(),
    };
    let mounts = all.can_mount()?;
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for job in JOBS {
            workers.push(scope.spawn(|| all.work(job.name, |own| all.round(job, own))));
        }
        if mounts {
            workers.push(scope.spawn(|| all.work(MOUNT, |own| all.mount(own))));
        }
        for (name, round) in threads {
            let store = root.join("store");
            let all = &all;
            workers.push(scope.spawn(move || all.work(name, |_| round(&store).map(|()| true))));
        }
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
            // All of them end before the first failure is told.
            .fold(Ok(()), Result::and)
    })?;
    all.leave().context("after all of them ended")?;
    let rounds = std::mem::take(
        &mut *all
            .rounds
            .lock()
            .expect("no worker panics while it holds the rounds"),
    );
    mounted.unmount()?;
    Ok(rounds)
}

/// What all workers share.
struct Everybody<'a> {
    program: &'a Program,
    root: &'a Path,
    place: &'a Path,
    /// What the names that nobody changes lead to.
    expected: check::Refs,
    end: Instant,
    stop: AtomicBool,
    rounds: Mutex<Rounds>,
}

impl Everybody<'_> {
    /// Goes round until the time is over, or somebody failed.
    fn work(&self, name: &str, round: impl Fn(&Path) -> Result<bool>) -> Result<()> {
        let own = self.place.join(name.replace(' ', "-"));
        fs::create_dir_all(&own).context("making a directory for a worker")?;
        while Instant::now() < self.end && !self.stop.load(Ordering::Relaxed) {
            let stood = round(&own)
                .inspect_err(|_| self.stop.store(true, Ordering::Relaxed))
                .with_context(|| format!("`{name}`, while all others were at work"))?;
            let mut rounds = self
                .rounds
                .lock()
                .expect("no worker panics while it holds the rounds");
            let (done, changed) = rounds.entry(name.to_owned()).or_default();
            *done += 1;
            *changed += u64::from(!stood);
        }
        Ok(())
    }

    /// Does all of a job once; `false` where what it named was changed under it.
    fn round(&self, job: &Job, own: &Path) -> Result<bool> {
        let shown = own.display().to_string();
        let mut stood = true;
        for line in job.lines {
            let line = line.replace(OWN, &shown);
            let before = self.identity(job.changing)?;
            if let Err(error) = self.program.run(self.root, &line) {
                if before.is_some() && before == self.identity(job.changing)? {
                    return Err(error);
                }
                if job.changing.is_none() {
                    return Err(error);
                }
                stood = false;
            }
        }
        match job.after {
            After::Nothing => {}
            After::IsTree(name) => {
                self.compare(name, &own.join("copy"))?;
                fs::remove_dir_all(own.join("copy")).context("removing what was checked out")?;
            }
            After::IsTar => {
                let read = |path: PathBuf| {
                    fs::read(&path).with_context(|| format!("reading {}", path.display()))
                };
                let wanted = read(self.program.directory().join("tree-1.tar"))?;
                ensure!(
                    read(own.join("tar"))? == wanted,
                    "another tar was exported than before"
                );
            }
        }
        Ok(stood)
    }

    /// What a name that changes leads to, and when that was set: an image may come back.
    fn identity(&self, name: Option<&str>) -> Result<Option<String>> {
        name.map(|name| self.program.run(self.root, &format!("log --json {name}")))
            .transpose()
    }

    fn compare(&self, name: &str, directory: &Path) -> Result<()> {
        let found = self
            .program
            .run(self.root, &format!("digest {}", directory.display()))?;
        let wanted = self
            .expected
            .iter()
            .find(|(full, _)| full.ends_with(name))
            .map(|(_, digest)| digest);
        ensure!(
            Some(&found) == wanted,
            "{name} reads as {found}, not {wanted:?}"
        );
        Ok(())
    }

    /// Returns whether this kernel lets us mount an image at all.
    fn can_mount(&self) -> Result<bool> {
        let own = self.place.join(MOUNT);
        fs::create_dir_all(&own).context("making a directory to mount on")?;
        let line = format!("mount base:1 {}", own.display());
        let mounted = self.program.try_run(self.root, &line)?.status.success();
        if mounted {
            self.program
                .run(self.root, &format!("umount {}", own.display()))?;
        }
        Ok(mounted)
    }

    fn mount(&self, own: &Path) -> Result<bool> {
        let own_shown = own.display();
        for name in ["base:1", "base:2"] {
            self.program
                .run(self.root, &format!("mount {name} {own_shown}"))?;
            let compared = self.compare(name, own);
            self.program
                .run(self.root, &format!("umount {own_shown}"))?;
            compared?;
        }
        Ok(true)
    }

    /// Checks what all of them leave.
    fn leave(&self) -> Result<()> {
        self.program.run(self.root, "fsck")?;
        let refs = check::refs(self.program, self.root)?;
        check::read_back(self.program, self.root, &refs, self.place)?;
        self.program.run(self.root, "gc --keep 1")?;
        self.program.run(self.root, "fsck")?;
        check::read_back(self.program, self.root, &refs, self.place)?;
        for name in ["tmp", "trash", "pins"] {
            let mut left = fs::read_dir(self.root.join("store").join(name))
                .with_context(|| format!("listing {name}/"))?;
            ensure!(left.next().is_none(), "something is left in {name}/");
        }
        Ok(())
    }
}
