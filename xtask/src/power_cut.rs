//! `cargo xtask power-cut`: the power is cut anywhere in the life of a machine.
//!
//! ```text
//! recording   the story, once for these programs, with every write of the disk     story::recorded
//! cuts        which are tried, and what is expected of each                        plan
//! wrecks      what each leaves on the disk                                         wreck
//! examined    which deployment boots, is it whole, does its life go on             left, life
//! booted      some of them for real, in QEMU                                       boots
//! ```
//!
//! Needs root (to mount), and works in namespaces of its own: what it mounts goes with it.

mod boots;
mod left;
mod life;
mod plan;
mod wreck;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bedplate_model::ImageName;
use bedplate_model::digest::hex;
use sha2::{Digest as _, Sha256};
use testkit::powercut::cuts::Cut;
use testkit::powercut::log::{self, Entry};
use testkit::trial::mount::Mounted;

use crate::registry::Registry;
use crate::story::recorded::{self, Phase, Recorded};
use crate::{images, packages, programs, run, story, trial, wants_help, workspace};
use left::{Depth, Left};
use life::{Boots, Versions};
use plan::Job;
use wreck::Wrecks;

const HELP: &str = "\
Usage: cargo xtask power-cut [--tries N] [--boots N] [--seed N] [--minutes N] [--phase PHASE] [--whole]
       cargo xtask power-cut --cut POSITION[:CHOICE]

Records the life of a machine in QEMU with every write of its disk (once for each build of the programs):
first boot, upgrade, finalize, boot on trial, prove, rollback, boot. Then cuts the power anywhere in it, and
examines what is left: which deployment boots, whether it is whole, and how its life goes on.

  --tries N     so many cuts, chosen at random [default: 100]
  --whole       every flush, every write while what boots is changed, and so many cuts chosen at random
  --boots N     boots so many of them for real [default: 0]
  --minutes N   begins no more cuts after so many minutes
  --phase P     in one phase alone: first-boot, life, stage, finalize, trial, prove, rollback, shutdown, boot-back
  --cut P[:C]   one cut, at an entry of the log: `all` (default), `none`, or a seed of what was not flushed
";

/// How many wrecks are examined at once.
const WORKERS: usize = 2;
/// After how many cuts it says how far it is.
const PROGRESS: usize = 100;
/// How many violations are looked at before it gives up.
const VIOLATIONS: usize = 8;
/// The room for wrecks; the file is empty where nothing was written.
const SCRATCH: u64 = 16 << 30;

/// What is to be done.
#[derive(Clone, Debug)]
struct Task {
    tries: usize,
    whole: bool,
    boots: usize,
    seed: u64,
    minutes: Option<u64>,
    phase: Option<Phase>,
    cut: Option<Cut>,
    /// The program and the recording, in the process inside the namespaces.
    bedplate: Option<PathBuf>,
    inside: bool,
}

/// `cargo xtask power-cut`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    if wants_help(arguments, HELP) {
        return Ok(());
    }
    let task = Task::parse(arguments)?;
    match &task.bedplate {
        Some(bedplate) if task.inside => task.work(bedplate),
        _ => record_and_enter(arguments),
    }
}

/// Tries `tries` cuts and boots some of them for real.
pub(crate) fn sample(tries: usize, boots: usize, seed: u64) -> Result<()> {
    record_and_enter(&[
        "--tries",
        &tries.to_string(),
        "--boots",
        &boots.to_string(),
        "--seed",
        &seed.to_string(),
    ])
}

/// Tries every cut that matters and `tries` others, and boots some of them for real.
pub(crate) fn campaign(tries: usize, boots: usize, seed: u64) -> Result<()> {
    record_and_enter(&[
        "--whole",
        "--tries",
        &tries.to_string(),
        "--boots",
        &boots.to_string(),
        "--seed",
        &seed.to_string(),
    ])
}

fn record_and_enter(arguments: &[&str]) -> Result<()> {
    if !run::is_root() {
        println!("  left out: this is not root, and disks have to be mounted");
        return Ok(());
    }
    story::require_packages()?;
    packages::require(&[packages::CLONES])?;
    let bedplate = programs::build()?;
    recording(&bedplate)?;
    trial::enter("power-cut", arguments, &bedplate)
}

/// The recording of these very programs, made where there is none yet; older ones go.
fn recording(bedplate: &Path) -> Result<Recorded> {
    let mut hash = Sha256::new();
    for name in ["bedplate", "bedplate-init"] {
        let program = bedplate.with_file_name(name);
        hash.update(fs::read(&program).with_context(|| format!("reading {}", program.display()))?);
    }
    let key = hex(&hash.finalize()[..8]);
    let all = workspace::target("powercut/recordings");
    let place = all.join(key);
    if place.is_dir() {
        return Recorded::read(&place);
    }
    let recorded = recorded::record(&place)?;
    for entry in fs::read_dir(&all).with_context(|| format!("listing {}", all.display()))? {
        let other = entry.context("listing the recordings")?.path();
        if other != place {
            images::remove(&other)?;
        }
    }
    Ok(recorded)
}

impl Task {
    fn parse(arguments: &[&str]) -> Result<Self> {
        let mut task = Self {
            tries: 100,
            whole: false,
            boots: 0,
            seed: 1,
            minutes: None,
            phase: None,
            cut: None,
            bedplate: None,
            inside: false,
        };
        let mut words = arguments.iter().copied();
        while let Some(word) = words.next() {
            let mut value = || {
                let value = words.next();
                value.with_context(|| format!("{word} takes a value"))
            };
            match word {
                "--tries" => task.tries = value()?.parse().context("reading --tries")?,
                "--boots" => task.boots = value()?.parse().context("reading --boots")?,
                "--seed" => task.seed = value()?.parse().context("reading --seed")?,
                "--minutes" => {
                    task.minutes = Some(value()?.parse().context("reading --minutes")?);
                }
                "--phase" => task.phase = Some(plan::parse_phase(value()?)?),
                "--cut" => task.cut = Some(plan::parse_cut(value()?)?),
                "--whole" => task.whole = true,
                "--bedplate" => task.bedplate = Some(value()?.into()),
                "--inside" => task.inside = true,
                other => bail!("power-cut takes no `{other}`; see --help"),
            }
        }
        Ok(task)
    }

    fn work(&self, bedplate: &Path) -> Result<()> {
        let recorded = recording(bedplate)?;
        let log = log::read(&recorded.log())?;
        let jobs = self.jobs(&recorded, &log)?;
        let place = workspace::target("powercut");
        // In memory: a real disk's flushes take most of the time, and nobody keeps these.
        let memory = Mounted::memory(&place.join("memory"), "8g")?;
        let cloning = Mounted::cloning(
            &memory.path().join("scratch.xfs"),
            SCRATCH,
            &memory.path().join("scratch"),
        )?;
        // It serves nobody else meanwhile.
        let registry = if jobs.iter().any(|(_, job)| job.again) {
            Some(Registry::start(
                Command::new(bedplate)
                    .arg("--store")
                    .arg(place.join("registry-store")),
                &recorded.registry(),
                &place.join("registry.log"),
            )?)
        } else {
            None
        };
        let session = Session {
            recorded: &recorded,
            log: &log,
            bedplate,
            registry: registry.as_ref(),
            scratch: cloning.path(),
            versions: Versions {
                first: recorded.first.parse().context("reading the story")?,
                second: recorded.second.parse().context("reading the story")?,
            },
            until: self
                .minutes
                .map(|minutes| Instant::now() + Duration::from_secs(minutes * 60)),
            found: Mutex::default(),
        };
        let outcome = session.all(jobs, self.boots, self.seed);
        drop(registry);
        cloning.unmount()?;
        memory.unmount()?;
        outcome
    }

    fn jobs(&self, recorded: &Recorded, log: &[Entry]) -> Result<Vec<(Cut, Job)>> {
        if let Some(cut) = self.cut {
            ensure!(
                cut.position <= log.len(),
                "the log has {} entries",
                log.len()
            );
            return Ok(vec![(cut, plan::job(recorded, cut, Depth::Contents))]);
        }
        let mut jobs = plan::sampled(recorded, log, self.tries, self.seed);
        if self.whole {
            jobs.extend(plan::every(recorded, log));
        }
        if let Some(phase) = self.phase {
            jobs.retain(|(_, job)| job.expected.phase == phase);
        }
        plan::put_in_order(&mut jobs);
        Ok(jobs)
    }
}

/// What became of the cuts in one phase.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    tries: usize,
    old: usize,
    new: usize,
    violations: usize,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Found {
    tallies: BTreeMap<Phase, Tally>,
    violations: Vec<String>,
    left_out: usize,
}

/// Everything that a worker needs.
struct Session<'a> {
    recorded: &'a Recorded,
    log: &'a [Entry],
    bedplate: &'a Path,
    /// Where version 2 is, where a cut may need it.
    registry: Option<&'a Registry>,
    scratch: &'a Path,
    versions: Versions,
    until: Option<Instant>,
    found: Mutex<Found>,
}

impl Session<'_> {
    fn all(&self, jobs: Vec<(Cut, Job)>, boots: usize, seed: u64) -> Result<()> {
        println!(
            "  {} cuts in a log of {} entries, {} of them flushes",
            jobs.len(),
            self.log.len(),
            self.log
                .iter()
                .filter(|entry| **entry == Entry::Flush)
                .count()
        );
        let real = boots::choose(&jobs, boots, seed);
        let started = Instant::now();
        self.examine_all(jobs)?;
        println!("  examined in {} s", started.elapsed().as_secs());
        if !real.is_empty() {
            self.boot_all(real)?;
        }
        self.sum_up()
    }

    fn examine_all(&self, jobs: Vec<(Cut, Job)>) -> Result<()> {
        let wrecks = Wrecks::new(&self.recorded.before(), self.log, self.scratch, jobs)?;
        thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS)
                .map(|number| {
                    scope.spawn({
                        let wrecks = &wrecks;
                        move || self.examine_some(wrecks, number)
                    })
                })
                .collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
        })
    }

    fn examine_some(&self, wrecks: &Wrecks<'_, Job>, number: usize) -> Result<()> {
        let place = self.scratch.join(format!("worker-{number}"));
        fs::create_dir_all(&place).context("making a directory for a wreck")?;
        let (wreck, disk) = (place.join("wreck.img"), place.join("disk.img"));
        while let Some((cut, job)) = wrecks.next(&wreck)? {
            if self.is_over() {
                self.note(|found| found.left_out += 1)?;
                continue;
            }
            wreck::clone(&wreck, &disk)?;
            match self.examine(&disk, &place, job) {
                Ok(boots) => self.count(job.expected.phase, Some(boots))?,
                Err(error) => self.violation(cut, job, &wreck, &error)?,
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let late = self.until.is_some_and(|until| Instant::now() > until);
        late || self
            .found
            .lock()
            .is_ok_and(|found| found.violations.len() >= VIOLATIONS)
    }

    /// Examines one wreck; says what boots.
    fn examine(&self, disk: &Path, place: &Path, job: Job) -> Result<Boots> {
        let mut left = Left::power_on(disk, place).context("powering on")?;
        let boots = job.expected.check(&left, &self.versions)?;
        left.check_whole(job.depth)
            .and_then(|()| left.check_sealed())
            .context("what boots is not whole")?;
        let pull = |left: &Left| self.pull(left);
        let pull: Option<life::Pull<'_>> = if job.again { Some(&pull) } else { None };
        life::go_on(&mut left, &self.versions, pull).context("its life does not go on")?;
        if job.depth == Depth::Contents {
            life::swap_twice(&mut left)?;
            left.check_whole(Depth::Names)
                .context("what boots at last is not whole")?;
        }
        Ok(boots)
    }

    /// Pulls version 2 again.
    fn pull(&self, left: &Left) -> Result<ImageName> {
        let registry = self.registry.context("version 2 is nowhere")?;
        let name = format!("127.0.0.1:{}/{}", registry.port(), story::IMAGE);
        run::output(
            Command::new(self.bedplate)
                .arg("--quiet")
                .arg("--store")
                .arg(left.store.path())
                .args(["pull", "--tls-verify=false", &name]),
        )?;
        name.parse().context("reading the image's name")
    }

    fn boot_all(&self, jobs: Vec<(Cut, Job)>) -> Result<()> {
        let wrecks = Wrecks::new(&self.recorded.before(), self.log, self.scratch, jobs)?;
        let place = self.scratch.join("real");
        fs::create_dir_all(&place).context("making a directory for a machine")?;
        let (wreck, disk) = (place.join("wreck.img"), place.join("disk.img"));
        while let Some((cut, job)) = wrecks.next(&wreck)? {
            if self.is_over() {
                self.note(|found| found.left_out += 1)?;
                continue;
            }
            wreck::clone(&wreck, &disk)?;
            match boots::boot(&disk, &place, job.expected, &self.versions) {
                Ok(told) => println!("  {:?}, {}: {told}", job.expected.phase, plan::named(cut)),
                Err(error) => self.violation(cut, job, &wreck, &error)?,
            }
        }
        Ok(())
    }

    fn violation(&self, cut: Cut, job: Job, wreck: &Path, error: &anyhow::Error) -> Result<()> {
        let kept = workspace::target("powercut/kept");
        fs::create_dir_all(&kept).context("making a directory for disks that are kept")?;
        let kept = kept.join(format!("{}.img", plan::named(cut).replace(':', "-")));
        run::output(
            Command::new("cp")
                .arg("--sparse=always")
                .args([wreck, &kept]),
        )?;
        let text = format!(
            "{:?}, --cut {}: {error:#}\n    the disk: {}",
            job.expected.phase,
            plan::named(cut),
            kept.display()
        );
        println!("  VIOLATION: {text}");
        self.count(job.expected.phase, None)?;
        self.note(|found| found.violations.push(text))
    }

    fn count(&self, phase: Phase, boots: Option<Boots>) -> Result<()> {
        self.note(|found| {
            let tries: usize = found.tallies.values().map(|tally| tally.tries).sum();
            if (tries + 1).is_multiple_of(PROGRESS) {
                println!("  … {} cuts, now in {phase:?}", tries + 1);
            }
            let tally = found.tallies.entry(phase).or_default();
            tally.tries += 1;
            match boots {
                Some(Boots::Old) => tally.old += 1,
                Some(Boots::New) => tally.new += 1,
                None => tally.violations += 1,
            }
        })
    }

    fn note(&self, note: impl FnOnce(&mut Found)) -> Result<()> {
        let mut found = self.found.lock().ok().context("a worker panicked")?;
        note(&mut found);
        Ok(())
    }

    fn sum_up(&self) -> Result<()> {
        let found = self.found.lock().ok().context("a worker panicked")?;
        let mut total = 0;
        for (phase, tally) in &found.tallies {
            let Tally {
                tries,
                old,
                new,
                violations,
            } = tally;
            println!(
                "  {:<12} {tries:>5} cuts: version 1 boots {old:>5} times, version 2 {new:>5} times; \
                 {violations} violations",
                format!("{phase:?}")
            );
            total += tries;
        }
        if found.left_out > 0 {
            println!("  {} cuts left out: the time was over", found.left_out);
        }
        ensure!(
            found.violations.is_empty(),
            "{} of {total} cuts left a machine that is not whole",
            found.violations.len()
        );
        println!("  {total} cuts, all whole");
        Ok(())
    }
}
