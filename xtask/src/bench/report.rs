//! Medians, ranges, targets, and whether they were met.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::sample::Samples;
use super::trees::Trees;
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

/// A figure that is no run of a program: a size, a growth.
pub(super) struct Fact {
    /// What was to be reached.
    pub(super) goal: &'static str,
    /// What was.
    pub(super) reached: String,
    pub(super) met: bool,
}

/// All figures of one suite.
pub(super) struct Report {
    header: String,
    rows: Vec<Row>,
    facts: Vec<Fact>,
    unmeasured: Vec<(&'static str, String)>,
}

impl Report {
    pub(super) fn new(trees: &Trees, times: usize) -> Result<Self> {
        Ok(Self {
            header: header(trees, times)?,
            rows: Vec::new(),
            facts: Vec::new(),
            unmeasured: Vec::new(),
        })
    }

    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(super) fn add_fact(&mut self, fact: Fact) {
        self.facts.push(fact);
    }

    /// Says of a target that it was not measured, and why.
    pub(super) fn leave_out(&mut self, goal: &'static str, why: impl Into<String>) {
        self.unmeasured.push((goal, why.into()));
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
        for fact in &self.facts {
            let _ = writeln!(
                text,
                "| {} | {} | {} |",
                fact.goal,
                fact.reached,
                verdict(fact.met)
            );
        }
        for (goal, why) in &self.unmeasured {
            let _ = writeln!(text, "| {goal} | not measured: {why} | – |");
        }
        text
    }
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "**MISSED**" }
}

fn figures(samples: &Samples) -> String {
    let wall = samples.wall().map_or_else(dash, |[least, median, most]| {
        // Hundredths say nothing of what takes a few of them.
        let digits = if median < 0.1 { 3 } else { 2 };
        format!("{median:.digits$} ({least:.digits$}–{most:.digits$})")
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
    Some(format!(
        "| {}: {goal} | {reached} | {} |\n",
        row.what,
        verdict(met)
    ))
}

/// What every section is said under.
const PREAMBLE: &str = "\
# Benchmarks

Written by `cargo xtask bench`; how and why is in `xtask/src/bench/`. Ours and the peers' runs alternate,
with the page cache warm; wall time includes making it durable. Before each run the caches are dropped and
its input is read again, so that none pays for the removal of another's output.
";

/// Puts `text` in the place of the section `title` of the file at `path`, or behind the last one.
pub(super) fn write_section(path: &Path, title: &str, text: &str) -> Result<()> {
    let old = fs::read_to_string(path).unwrap_or_default();
    fs::write(path, with_section(&old, title, text))
        .with_context(|| format!("writing {}", path.display()))
}

fn with_section(old: &str, title: &str, text: &str) -> String {
    let heading = |section: &str| section.lines().next().unwrap_or_default().to_owned();
    let mut sections: Vec<String> = old.split("\n## ").skip(1).map(str::to_owned).collect();
    let new = format!("{title}\n\n{}", text.trim_end());
    match sections
        .iter_mut()
        .find(|section| heading(section) == title)
    {
        Some(section) => *section = new,
        None => sections.push(new),
    }
    let mut out = PREAMBLE.to_owned();
    for section in sections {
        let _ = write!(out, "\n## {}\n", section.trim_end());
    }
    out
}

/// What a tree is made of.
fn described(tree: &Path) -> Result<String> {
    let entries = run::output(
        Command::new("find")
            .arg("-H")
            .arg(tree)
            .args(["-printf", "%y\n"]),
    )?;
    let count = |kind: &str| entries.lines().filter(|line| *line == kind).count();
    let bytes = run::output(
        Command::new("du")
            .args([
                "--summarize",
                "--apparent-size",
                "--bytes",
                "--dereference-args",
            ])
            .arg(tree),
    )?;
    let bytes: u64 = bytes
        .split_ascii_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .context("reading what du said")?;
    Ok(format!(
        "{} files, {} directories, {} symlinks, {} MB",
        count("f"),
        count("d"),
        count("l"),
        bytes / 1_000_000
    ))
}

/// What was measured, where, and with which versions.
fn header(trees: &Trees, times: usize) -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    // Others may be at work: ratios of one run still tell, seconds alone less.
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
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
        "- tree v1: {}\n\
         - tree v2: {}\n\
         - machine: {cores} cores, {model}\n\
         - load average at the beginning: {load}\n\
         - each {times} times\n\
         - Bedplate at {commit}; ostree {}; {}; {}; {}; {}\n\n",
        described(&trees.v1)?,
        described(&trees.v2)?,
        version(Command::new("ostree").arg("--version"), "Version").trim_start_matches("Version: "),
        version(Command::new("skopeo").arg("--version"), "skopeo"),
        version(Command::new("umoci").arg("--version"), "umoci"),
        version(Command::new("casync").arg("--version"), "casync"),
        // Its mkfs.erofs has no way to say its version that every release knows.
        version(
            Command::new("dpkg-query").args([
                "--show",
                "--showformat=${Package} ${Version}",
                "erofs-utils",
            ]),
            "erofs-utils",
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_the_others_stay() {
        let first = with_section("", "One", "1\n");
        let both = with_section(&first, "Two", "2\n");
        assert_eq!(both, format!("{PREAMBLE}\n## One\n\n1\n\n## Two\n\n2\n"));
        let changed = with_section(&both, "One", "1a\n");
        assert_eq!(
            changed,
            format!("{PREAMBLE}\n## One\n\n1a\n\n## Two\n\n2\n")
        );
    }
}
