//! One run of a program, and several of them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::run;

/// What one run took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// Wall time in seconds.
    pub(super) wall: f64,
    /// Processor time in seconds, the program's and the kernel's for it; unknown for work done in-process.
    pub(super) cpu: Option<f64>,
    /// Peak of resident memory in megabytes.
    pub(super) peak: Option<f64>,
}

/// Several runs of the same work.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples(Vec<Sample>);

impl Samples {
    /// Runs `command` and notes what it took.
    pub(super) fn take(&mut self, name: &str, scratch: &Path, command: &mut Command) -> Result<()> {
        self.push(name, measured(scratch, command)?);
        Ok(())
    }

    /// Runs `commands` one after the other and notes what they took together.
    pub(super) fn take_sum(
        &mut self,
        name: &str,
        scratch: &Path,
        commands: &mut [Command],
    ) -> Result<()> {
        let mut sum = Sample {
            wall: 0.0,
            cpu: Some(0.0),
            peak: None,
        };
        for command in commands {
            let one = measured(scratch, command)?;
            sum.wall += one.wall;
            sum.cpu = sum.cpu.zip(one.cpu).map(|(sum, one)| sum + one);
            sum.peak = Some(sum.peak.unwrap_or(0.0).max(one.peak.unwrap_or(0.0)));
        }
        self.push(name, sum);
        Ok(())
    }

    /// Notes the wall time of work done in this process.
    pub(super) fn take_wall(&mut self, took: Duration) {
        self.0.push(Sample {
            wall: took.as_secs_f64(),
            cpu: None,
            peak: None,
        });
    }

    /// Notes what `time` said elsewhere: seconds of wall, user and system time, and the peak in kilobytes.
    pub(super) fn take_told(&mut self, name: &str, said: &str) -> Result<()> {
        let told = || format!("a guest says {said:?} of {name}");
        let (wall, rest) = said.split_once(' ').with_context(told)?;
        let wall: f64 = wall.parse().with_context(told)?;
        let (user, system, peak) = parse(rest).with_context(told)?;
        self.push(
            name,
            Sample {
                wall,
                cpu: Some(user + system),
                peak: Some(peak / 1000.0),
            },
        );
        Ok(())
    }

    /// Notes seconds of wall and processor time that a program took of a part of its work.
    pub(super) fn take_clocked(&mut self, name: &str, said: &str) -> Result<()> {
        let mut numbers = said.split_ascii_whitespace().map(str::parse);
        let mut next = || {
            let number = numbers.next().and_then(Result::ok);
            number.with_context(|| format!("{name} says {said:?}"))
        };
        let (wall, cpu) = (next()?, next()?);
        self.push(
            name,
            Sample {
                wall,
                cpu: Some(cpu),
                peak: None,
            },
        );
        Ok(())
    }

    /// Smallest, median and largest wall time.
    pub(super) fn wall(&self) -> Option<[f64; 3]> {
        spread(self.0.iter().map(|sample| sample.wall).collect())
    }

    /// Smallest, median and largest processor time.
    pub(super) fn cpu(&self) -> Option<[f64; 3]> {
        spread(self.0.iter().filter_map(|sample| sample.cpu).collect())
    }

    /// The largest peak.
    pub(super) fn peak(&self) -> Option<f64> {
        self.0
            .iter()
            .filter_map(|sample| sample.peak)
            .reduce(f64::max)
    }

    fn push(&mut self, name: &str, sample: Sample) {
        println!(
            "  {name}: {:.3} s, {:.2} s CPU, {:.0} MB",
            sample.wall,
            sample.cpu.unwrap_or_default(),
            sample.peak.unwrap_or_default()
        );
        self.0.push(sample);
    }
}

fn spread(mut values: Vec<f64>) -> Option<[f64; 3]> {
    values.sort_by(f64::total_cmp);
    let (first, last) = (*values.first()?, *values.last()?);
    Some([first, values[values.len() / 2], last])
}

/// Runs `command` under `time`, which is told by the kernel what its child used.
fn measured(scratch: &Path, command: &Command) -> Result<Sample> {
    let note = scratch.join("time");
    // What earlier work left to write is not this program's doing.
    run::output(&mut Command::new("sync"))?;
    let mut timed = Command::new("/usr/bin/time");
    timed
        .args(["--quiet", "--format=%U %S %M", "--output"])
        .arg(&note)
        .arg(command.get_program())
        .args(command.get_args())
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    let started = Instant::now();
    run::output(&mut timed)?;
    let wall = started.elapsed().as_secs_f64();
    let text = fs::read_to_string(&note).with_context(|| format!("reading {}", note.display()))?;
    let (user, system, peak) = parse(&text).with_context(|| format!("`time` wrote {text:?}"))?;
    Ok(Sample {
        wall,
        cpu: Some(user + system),
        peak: Some(peak / 1000.0),
    })
}

/// User seconds, system seconds, peak in kilobytes.
fn parse(text: &str) -> Option<(f64, f64, f64)> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    Some((
        numbers.next()?.ok()?,
        numbers.next()?.ok()?,
        numbers.next()?.ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_between_the_extremes() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0]), Some([1.0, 2.0, 3.0]));
        assert_eq!(spread(Vec::new()), None);
    }

    #[test]
    fn what_time_writes_is_understood() {
        assert_eq!(parse("4.20 1.05 52340\n"), Some((4.2, 1.05, 52340.0)));
        assert_eq!(parse("4.20"), None);
    }
}
