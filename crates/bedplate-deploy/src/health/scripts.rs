//! Health scripts in greenboot's directories.
//!
//! ```text
//! {/usr/lib,/etc}/greenboot/check/required.d   must pass; the first that fails is the last that runs
//! {/usr/lib,/etc}/greenboot/check/wanted.d     ought to pass
//! {/usr/lib,/etc}/greenboot/green.d, red.d     told of the result
//! {/usr/lib,/etc}/bedplate/pre-reboot.d        must pass before an upgrade restarts the machine
//! ```
//!
//! Scripts run in the order of their names. One in /etc stands for one of the same name in /usr/lib, and a
//! link to /dev/null for none. `DISABLED_HEALTHCHECKS` of greenboot.conf is heeded.
//!
//! Invariant: a script ends, or is ended with all that it started; of its output the end is kept, in bounded
//! memory.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io::{self, PipeReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

/// The directories of health scripts, below the running system's root.
const GREENBOOT: [&str; 2] = ["usr/lib/greenboot", "etc/greenboot"];
/// The directories of our own hooks, below the running system's root.
const HOOKS: [&str; 2] = ["usr/lib/bedplate", "etc/bedplate"];
/// greenboot's configuration, below the running system's root.
const GREENBOOT_CONF: &str = "etc/greenboot/greenboot.conf";
/// How many bytes of a script's output are kept.
pub(super) const OUTPUT_MAX: usize = 1024;
/// How often it is looked whether a script has ended.
const POLL: Duration = Duration::from_millis(20);

/// What scripts are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They must pass.
    Required,
    /// They ought to pass.
    Wanted,
    /// They are told that the deployment is healthy.
    Green,
    /// They are told that it is not.
    Red,
    /// They must pass before the machine restarts by itself.
    PreReboot,
}

impl Kind {
    fn directory(self) -> &'static str {
        match self {
            Self::Required => "check/required.d",
            Self::Wanted => "check/wanted.d",
            Self::Green => "green.d",
            Self::Red => "red.d",
            Self::PreReboot => "pre-reboot.d",
        }
    }

    fn bases(self) -> [&'static str; 2] {
        match self {
            Self::PreReboot => HOOKS,
            _ => GREENBOOT,
        }
    }
}

/// What came of a script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The script.
    pub path: PathBuf,
    /// `None` where it passed; else how it ended.
    pub failure: Option<String>,
    /// The end of what it printed.
    pub output: String,
}

/// Finds the scripts of a kind, in the order in which they run.
pub(super) fn find(system: &Path, kind: Kind) -> io::Result<Vec<PathBuf>> {
    let disabled = match fs::read_to_string(system.join(GREENBOOT_CONF)) {
        Ok(text) => disabled(&text),
        Err(_) => Vec::new(), // greenboot's file, and nothing that it says is needed
    };
    let mut scripts: BTreeMap<OsString, Option<PathBuf>> = BTreeMap::new();
    for base in kind.bases() {
        let directory = system.join(base).join(kind.directory());
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            scripts.insert(entry.file_name(), is_script(&path).then_some(path));
        }
    }
    scripts.retain(|name, _| !disabled.iter().any(|other| name == other.as_str()));
    Ok(scripts.into_values().flatten().collect())
}

/// A file that may be executed, or whose name ends in `.sh`.
fn is_script(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| {
        let runs = metadata.permissions().mode() & 0o111 != 0;
        metadata.is_file() && (runs || path.extension().is_some_and(|end| end == "sh"))
    })
}

/// Reads the names in `DISABLED_HEALTHCHECKS=(…)` of greenboot's configuration, which is a shell script.
fn disabled(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim_start);
    let code: Vec<&str> = lines.filter(|line| !line.starts_with('#')).collect();
    let code = code.join("\n");
    let list = code
        .split_once("DISABLED_HEALTHCHECKS=(")
        .and_then(|(_, rest)| rest.split_once(')'));
    let names = list
        .map(|(list, _)| list)
        .unwrap_or_default()
        .split_whitespace();
    names
        .map(|name| name.trim_matches(['"', '\'']).to_owned())
        .collect()
}

/// Runs a script for at most `limit`.
pub(super) fn run(path: &Path, limit: Duration) -> Outcome {
    let (failure, output) = match start(path) {
        Ok((child, output)) => watch(child, output, limit),
        Err(error) => (Some(format!("could not be started: {error}")), Vec::new()),
    };
    Outcome {
        path: path.to_owned(),
        failure,
        output: readable(&output),
    }
}

fn start(path: &Path) -> io::Result<(Child, PipeReader)> {
    let runs = fs::metadata(path)?.permissions().mode() & 0o111 != 0;
    let mut command = if runs {
        Command::new(path)
    } else {
        let mut shell = Command::new("bash");
        shell.arg(path);
        shell
    };
    let (output, input) = io::pipe()?;
    // The command, which goes with this function, keeps the pipe's other end open, and with it the reader.
    let child = command
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input)
        .process_group(0)
        .spawn()?;
    Ok((child, output))
}

/// Waits for a script, and ends it when the time is over. What it leaves behind in the background does not
/// hold it up.
fn watch(mut child: Child, mut output: PipeReader, limit: Duration) -> (Option<String>, Vec<u8>) {
    let started = Instant::now();
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = output.read(&mut chunk) {
            if send.send(chunk[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut kept: VecDeque<u8> = VecDeque::new();
    let mut take = |wait: Duration| {
        let mut more = receive.recv_timeout(wait).ok();
        while let Some(bytes) = more {
            kept.extend(bytes);
            let surplus = kept.len().saturating_sub(OUTPUT_MAX);
            kept.drain(..surplus);
            more = receive.try_recv().ok();
        }
    };
    let failure = loop {
        match child.try_wait() {
            Ok(Some(status)) => break how_it_ended(status),
            Ok(None) if started.elapsed() < limit => {
                take(POLL);
                thread::sleep(POLL / 4);
            }
            Ok(None) => {
                end(&mut child);
                break Some(format!("did not end within {} s", limit.as_secs()));
            }
            Err(error) => break Some(format!("was lost: {error}")),
        }
    };
    take(POLL);
    (failure, kept.into())
}

/// Ends a script and all that it started.
fn end(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // It fails only where all of them ended meanwhile.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

fn how_it_ended(status: ExitStatus) -> Option<String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("ended with {code}")),
        (None, Some(signal)) => Some(format!("was ended by signal {signal}")),
        (None, None) => Some("ended in an unknown way".to_owned()),
    }
}

/// Keeps of an output what a terminal and the record may have: text and line feeds.
fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let clean = |character: char| match character {
        '\n' => '\n',
        other if other.is_control() => ' ',
        other => other,
    };
    text.trim().chars().map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(system: &Path, path: &str, text: &str, mode: u32) -> PathBuf {
        let path = system.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn scripts_of_etc_stand_for_those_of_the_image() {
        let system = tempfile::tempdir().unwrap();
        let add = |path: &str, mode| script(system.path(), path, "true\n", mode);
        let image = add("usr/lib/greenboot/check/required.d/20-image.sh", 0o644);
        add("usr/lib/greenboot/check/required.d/30-both.sh", 0o755);
        let both = add("etc/greenboot/check/required.d/30-both.sh", 0o755);
        let program = add("etc/greenboot/check/required.d/10-program", 0o755);
        add("etc/greenboot/check/required.d/README", 0o644);
        add("usr/lib/greenboot/check/required.d/40-masked.sh", 0o755);
        let masked = "etc/greenboot/check/required.d/40-masked.sh";
        std::os::unix::fs::symlink("/dev/null", system.path().join(masked)).unwrap();
        add("usr/lib/greenboot/check/required.d/50-off.sh", 0o755);
        let conf =
            "# DISABLED_HEALTHCHECKS=(30-both.sh)\nDISABLED_HEALTHCHECKS=(\n  \"50-off.sh\"\n)\n";
        script(system.path(), GREENBOOT_CONF, conf, 0o644);
        assert_eq!(
            find(system.path(), Kind::Required).unwrap(),
            [program, image, both]
        );
        assert!(find(system.path(), Kind::Red).unwrap().is_empty());
    }

    #[test]
    fn a_script_that_fails_says_why() {
        let system = tempfile::tempdir().unwrap();
        let failing = "echo first; printf '\\033[1mno disk\\n' >&2; exit 3\n";
        let path = script(system.path(), "a.sh", failing, 0o644);
        let outcome = run(&path, LIMIT);
        assert_eq!(outcome.failure.as_deref(), Some("ended with 3"));
        assert_eq!(outcome.output, "first\n [1mno disk");
        let path = script(system.path(), "b", "#!/bin/sh\nexit 0\n", 0o755);
        assert_eq!(run(&path, LIMIT).failure, None);
        let path = script(system.path(), "c", "#!/no/such/program\n", 0o755);
        assert!(
            run(&path, LIMIT)
                .failure
                .unwrap()
                .starts_with("could not be started")
        );
    }

    #[test]
    fn a_script_that_hangs_is_ended_with_its_children() {
        let system = tempfile::tempdir().unwrap();
        let path = script(
            system.path(),
            "a.sh",
            "echo waiting; sleep 1000 & sleep 1000\n",
            0o644,
        );
        let outcome = run(&path, Duration::from_millis(300));
        assert!(outcome.failure.unwrap().starts_with("did not end"));
        assert_eq!(outcome.output, "waiting");
    }

    #[test]
    fn what_stays_in_the_background_holds_nobody_up() {
        let system = tempfile::tempdir().unwrap();
        let path = script(system.path(), "a.sh", "sleep 20 & echo done\n", 0o644);
        let started = Instant::now();
        assert_eq!(run(&path, LIMIT).failure, None);
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn of_much_output_the_end_is_kept() {
        let system = tempfile::tempdir().unwrap();
        let path = script(system.path(), "a.sh", "seq 100000\nexit 1\n", 0o644);
        let output = run(&path, LIMIT).output;
        assert!(output.len() <= OUTPUT_MAX && output.ends_with("\n100000"));
    }
}
