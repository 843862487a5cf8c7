//! Which cuts are tried, and what is expected of each.

use anyhow::{Context as _, Result, bail};
use testkit::powercut::cuts::{Choice, Cut, Random};
use testkit::powercut::log::Entry;

use super::left::Depth;
use super::life::Expected;
use crate::story::recorded::{Phase, Recorded};

/// What is done with one wreck.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) expected: Expected,
    /// How much of the store is read.
    pub(super) depth: Depth,
    /// Version 2 is pulled again where the store has not all of it.
    pub(super) again: bool,
}

/// Phases in which what boots is changed: each write counts.
const CRITICAL: [Phase; 4] = [Phase::Finalize, Phase::Trial, Phase::Prove, Phase::Rollback];

/// Says what is expected of a cut.
pub(super) fn job(recorded: &Recorded, cut: Cut, depth: Depth) -> Job {
    let marks = &recorded.marks;
    let phase = marks
        .iter()
        .find(|mark| mark.end >= cut.position)
        .or(marks.last());
    // At the end of a phase whoever asked for it had been answered: it is over.
    let phase = phase.map_or(Phase::BootBack, |mark| mark.phase);
    Job {
        expected: Expected { phase },
        depth,
        again: phase == Phase::Stage && depth == Depth::Contents || phase == Phase::Trial,
    }
}

/// Returns every flush, and every write while what boots is changed.
pub(super) fn every(recorded: &Recorded, log: &[Entry]) -> Vec<(Cut, Job)> {
    let mut jobs = Vec::new();
    for (index, entry) in log.iter().enumerate() {
        let cut = Cut {
            position: index + 1,
            choice: Choice::Everything,
        };
        match entry {
            Entry::Flush => jobs.push((cut, job(recorded, cut, Depth::Contents))),
            Entry::Write { .. } => {
                let job = job(recorded, cut, Depth::Names);
                if CRITICAL.contains(&job.expected.phase) {
                    jobs.push((cut, job));
                }
            }
        }
    }
    jobs
}

/// Returns `count` cuts at random: each phase has the same chance, and within it half lie right before a
/// flush, where most is at stake. Of what was not flushed, they leave some, and now and then all or nothing.
pub(super) fn sampled(
    recorded: &Recorded,
    log: &[Entry],
    count: usize,
    seed: u64,
) -> Vec<(Cut, Job)> {
    let mut random = Random::new(seed);
    let mut windows = Vec::new();
    let mut begin = 0;
    for mark in &recorded.marks {
        let flushes: Vec<usize> = (begin..mark.end)
            .filter(|index| log[*index] == Entry::Flush)
            .collect();
        windows.push((begin, mark.end, flushes));
        begin = mark.end;
    }
    let mut jobs = Vec::with_capacity(count);
    while jobs.len() < count {
        let (begin, end, flushes) = &windows[random.below(windows.len())];
        if begin == end {
            continue;
        }
        let position = match random.below(2) {
            0 if !flushes.is_empty() => flushes[random.below(flushes.len())],
            _ => begin + 1 + random.below(end - begin),
        };
        let choice = match random.below(8) {
            0 => Choice::Nothing,
            1 => Choice::Everything,
            _ => Choice::Some {
                seed: random.number(),
            },
        };
        let depth = match random.below(4) {
            0 => Depth::Contents,
            _ => Depth::Names,
        };
        let cut = Cut { position, choice };
        jobs.push((cut, job(recorded, cut, depth)));
    }
    jobs
}

/// Sorts jobs as the log has them, each cut once.
pub(super) fn put_in_order(jobs: &mut Vec<(Cut, Job)>) {
    // Of two alike the one that reads more stays.
    jobs.sort_by_key(|(cut, job)| (*cut, job.depth == Depth::Names));
    jobs.dedup_by_key(|(cut, _)| *cut);
}

/// Prints a cut as [`parse_cut`] reads it.
pub(super) fn named(cut: Cut) -> String {
    let position = cut.position;
    match cut.choice {
        Choice::Everything => format!("{position}:all"),
        Choice::Nothing => format!("{position}:none"),
        Choice::Some { seed } => format!("{position}:{seed:#x}"),
    }
}

pub(super) fn parse_cut(text: &str) -> Result<Cut> {
    let (position, choice) = text.split_once(':').unwrap_or((text, "all"));
    let choice = match choice {
        "all" => Choice::Everything,
        "none" => Choice::Nothing,
        seed => Choice::Some {
            seed: u64::from_str_radix(seed.trim_start_matches("0x"), 16)
                .context("reading the seed of a cut")?,
        },
    };
    Ok(Cut {
        position: position.parse().context("reading the position of a cut")?,
        choice,
    })
}

pub(super) fn parse_phase(text: &str) -> Result<Phase> {
    let Ok(phase) = serde_json::from_value(serde_json::Value::from(text)) else {
        bail!("there is no phase `{text}`");
    };
    Ok(phase)
}
