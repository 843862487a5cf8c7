//! Runs the program under strace, which makes one of its calls fail.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::trial::Operation;
use crate::trial::program::Program;

/// What strace is to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Injection<'a> {
    /// Which calls are traced.
    pub(super) calls: &'static str,
    /// What goes wrong, and where; otherwise the calls are counted.
    pub(super) what: Option<(&'static str, &'a Point)>,
}

/// The n-th call of one kind, in each thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Point {
    /// The system call.
    pub(super) call: String,
    /// Which, from 1. strace counts each kind of call of each thread for itself.
    pub(super) number: u64,
}

/// How the program ended.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// Its exit code, unless it was killed.
    pub(super) code: Option<i32>,
    /// What it wrote to standard error.
    pub(super) said: String,
    /// The calls that failed, as strace shows them.
    pub(super) injected: Vec<String>,
    /// Every point at which a fault can be injected.
    pub(super) points: Vec<Point>,
}

impl Outcome {
    /// Whether a call failed at all: threads come to another number of calls in each run.
    pub(super) fn was_hit(&self) -> bool {
        self.code.is_none() || !self.injected.is_empty()
    }

    /// Whether what failed cannot: threads wake each other by a counter that is always there.
    pub(super) fn was_absurd(&self) -> bool {
        self.injected
            .iter()
            .any(|call| call.contains("<anon_inode:"))
    }

    /// Whether it could not even say what failed.
    pub(super) fn was_silenced(&self) -> bool {
        let prints = |call: &String| call.starts_with("write(1<") || call.starts_with("write(2<");
        self.injected.iter().any(prints)
    }

    /// Whether a call failed that removes something, or finds what is to be removed.
    pub(super) fn hindered_removal(&self) -> bool {
        let removes = |call: &String| {
            ["unlink", "rmdir", "getdents", "open"]
                .iter()
                .any(|name| call.starts_with(name))
        };
        self.injected.iter().any(removes)
    }
}

/// Runs an operation on the store below `root`; the trace is written below `place`.
pub(super) fn run(
    program: &Program,
    root: &Path,
    operation: &Operation,
    injection: &Injection<'_>,
    place: &Path,
) -> Result<Outcome> {
    let trace = place.join("trace");
    let mut command = Command::new("taskset");
    // Not with --seccomp-bpf: strace 6.1 does not inject signals then.
    command
        .args(["--cpu-list", "0", "strace", "-f", "-y", "-s", "80"])
        .arg("-o")
        .arg(&trace)
        .arg(format!("--trace={}", injection.calls));
    if let Some((what, Point { call, number })) = injection.what {
        command.arg(format!("--inject={call}:{what}:when={number}"));
    }
    let output = program
        .wrapped(command, root, operation.command)
        .output()
        .context("starting taskset and strace")?;
    let trace = fs::read_to_string(&trace).context("reading what strace wrote")?;
    let killed = output.status.signal().is_some() || trace.contains("+++ killed by SIGKILL");
    let said = String::from_utf8_lossy(&output.stderr)
        .trim_end()
        .to_owned();
    ensure!(
        !trace.is_empty() && !said.starts_with("strace: "),
        "strace does not work: {said}"
    );
    let mut each: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let mut injected = Vec::new();
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        if let Some((name, _)) = call.split_once('(')
            && name.starts_with(|first: char| first.is_ascii_lowercase())
        {
            *each.entry((name, thread)).or_default() += 1;
        }
        if call.contains("(INJECTED)") || call.ends_with(" = ?") {
            injected.push(call.to_owned());
        }
    }
    Ok(Outcome {
        code: if killed { None } else { output.status.code() },
        said,
        injected,
        points: points(&each),
    })
}

/// Every call of the thread that made most of its kind.
fn points(each: &BTreeMap<(&str, &str), u64>) -> Vec<Point> {
    let mut most: BTreeMap<&str, u64> = BTreeMap::new();
    for ((call, _), count) in each {
        let most = most.entry(call).or_default();
        *most = (*most).max(*count);
    }
    let of_one = |(call, count): (&str, u64)| {
        let call = call.to_owned();
        (1..=count).map(move |number| Point {
            call: call.clone(),
            number,
        })
    };
    most.into_iter().flat_map(of_one).collect()
}
