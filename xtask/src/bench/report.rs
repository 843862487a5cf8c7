//! Medians, ranges, targets, and whether they were met.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::sample::Samples;
use crate::{run, workspace};

/// One kind of work.
pub(super) struct Row {
    pub(super) what: &'static str,
    pub(super) ours: Samples,
    /// Whose work it is compared with.
    pub(super) peer: Option<(&'static str, Samples)>,
    pub(super) targets: Vec<Target>,
}

/// What a figure has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    /// Our median wall time, as a part of the peer's.
    Wall(f64),
    /// Our median processor time, as a part of the peer's.
    Cpu(f64),
    /// Our median wall time, in seconds.
    Seconds(f64),
    /// Our largest peak of memory.
    PeakMegabytes(u32),
}

/// All figures of one run.
pub(super) struct Report {
    header: String,
    rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(tree: &Path, times: usize) -> Result<Self> {
        Ok(Self {
            header: header(tree, times)?,
            rows: Vec::new(),
        })
    }

    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// The report as it stands in `docs/benchmarks.md`; `judged` compares with the targets.
    pub(super) fn markdown(&self, judged: bool) -> String {
        let mut text = self.header.clone();
        text.push_str(
            "| work | who | wall s (median, range) | CPU s | peak MB |\n|---|---|---|---|---|\n",
        );
        for Row {
            what, ours, peer, ..
        } in &self.rows
        {
            let _ = writeln!(text, "| {what} | **Bedplate** | {} |", figures(ours));
            if let Some((name, samples)) = peer {
                let _ = writeln!(text, "| | {name} | {} |", figures(samples));
            }
        }
        if !judged {
            return text;
        }
        text.push_str("\n| target | reached | |\n|---|---|---|\n");
        for row in &self.rows {
            for target in &row.targets {
                if let Some(line) = judge(row, *target) {
                    text.push_str(&line);
                }
            }
        }
        text
    }
}

fn figures(samples: &Samples) -> String {
    let wall = samples.wall().map_or_else(dash, |[least, median, most]| {
        format!("{median:.2} ({least:.2}–{most:.2})")
    });
    let cpu = samples
        .cpu()
        .map_or_else(dash, |[_, median, _]| format!("{median:.2}"));
    let peak = samples
        .peak()
        .map_or_else(dash, |peak| format!("{peak:.0}"));
    format!("{wall} | {cpu} | {peak}")
}

fn dash() -> String {
    "–".to_owned()
}

/// A line of the second table; `None` where nothing was measured.
fn judge(row: &Row, target: Target) -> Option<String> {
    let peer = row.peer.as_ref().map(|(_, samples)| samples);
    let median = |spread: [f64; 3]| spread[1];
    let (goal, reached, met) = match target {
        Target::Wall(limit) => {
            let ratio = median(row.ours.wall()?) / median(peer?.wall()?);
            let goal = format!("at most {limit} of the peer's wall time");
            (goal, format!("{ratio:.2}"), ratio <= limit)
        }
        Target::Cpu(limit) => {
            let ratio = median(row.ours.cpu()?) / median(peer?.cpu()?);
            let goal = format!("at most {limit} of the peer's CPU time");
            (goal, format!("{ratio:.2}"), ratio <= limit)
        }
        Target::Seconds(limit) => {
            let seconds = median(row.ours.wall()?);
            let goal = format!("under {limit} s");
            (goal, format!("{seconds:.3} s"), seconds < limit)
        }
        Target::PeakMegabytes(limit) => {
            let peak = row.ours.peak()?;
            let goal = format!("peak memory at most {limit} MB");
            (goal, format!("{peak:.0} MB"), peak <= f64::from(limit))
        }
    };
    let verdict = if met { "met" } else { "**MISSED**" };
    Some(format!(
        "| {}: {goal} | {reached} | {verdict} |\n",
        row.what
    ))
}

/// What was measured, where, and with which versions.
fn header(tree: &Path, times: usize) -> Result<String> {
    let entries = run::output(Command::new("find").arg(tree).args(["-printf", "%y\n"]))?;
    let count = |kind: &str| entries.lines().filter(|line| *line == kind).count();
    let bytes = run::output(
        Command::new("du")
            .args(["--summarize", "--apparent-size", "--bytes"])
            .arg(tree),
    )?;
    let bytes: u64 = bytes
        .split_ascii_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .context("reading what du said")?;
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let version = |command: &mut Command, line: &str| {
        run::output(command)
            .ok()
            .and_then(|text| {
                let found = text.lines().find(|candidate| candidate.contains(line))?;
                Some(found.trim().replace(['\'', '"'], ""))
            })
            .unwrap_or_else(|| "unknown".to_owned())
    };
    let commit = version(
        Command::new("git")
            .current_dir(workspace::root())
            .args(["describe", "--always", "--dirty"]),
        "",
    );
    Ok(format!(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench`; how and why is in `xtask/src/bench.rs`. Ours and the peers' runs\n\
         alternate, each {times} times, with the page cache warm; wall time includes making it durable.\n\
         Before each run the caches are dropped and its input is read again, so that none pays for the removal\n\
         of another's output.\n\n\
         - tree v1: Debian 12 with a server's packages: {} files, {} directories, {} symlinks, {} MB\n\
         - machine: {cores} cores, {model}\n\
         - Bedplate at {commit}; ostree {}; {}; {}\n\n",
        count("f"),
        count("d"),
        count("l"),
        bytes / 1_000_000,
        version(Command::new("ostree").arg("--version"), "Version").trim_start_matches("Version: "),
        version(Command::new("skopeo").arg("--version"), "skopeo"),
        version(Command::new("umoci").arg("--version"), "umoci"),
    ))
}
