//! The audit log: who changed what on this machine, when, why, and from which digest to which.
//!
//! ```text
//! record before, record after ─ changes (pure) ─→ [Event] ─→ bedplate/events.jsonl, one line each
//!                                                            bedplate/events.1.jsonl, the older ones
//! ```
//!
//! Every change of a machine is a change of its record, so no verb can forget to tell. The log is written
//! after the record: it tells of nothing that did not happen. Where it could not be written (a full disk, a
//! power cut in between), the next event says that something is missing.
//!
//! Invariant: no change waits for the log, or fails because of it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bedplate_model::record::{Deployment, DeploymentId, Record, State};
use bedplate_model::{ImageName, RootDigest, Sha256, layout};
use bedplate_sys::durable;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// More bytes than these, and the log is begun anew; the one before it stays.
const LOG_MAX: u64 = 1 << 20;
/// More bytes than any line has.
const LINE_MAX: u64 = 64 << 10;
/// The log's mode: it names images and reasons, which are root's business.
const MODE: u32 = 0o600;

/// Who changes something, and by what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actor {
    /// The person, or the part of the machine that acts by itself.
    pub who: String,
    /// What was called.
    pub command: String,
}

/// What happened to a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// It waits for the next shutdown.
    Staged,
    /// It waits no more.
    Unstaged,
    /// It boots next, on trial.
    Tried,
    /// It passed its health gate.
    Proven,
    /// It is not healthy, and has tries left.
    Unhealthy,
    /// It failed its trial.
    Bad,
    /// It boots next.
    Selected,
    /// It stays until it is unpinned.
    Pinned,
    /// It is kept no longer than others.
    Unpinned,
    /// It was removed.
    Removed,
    /// Earlier changes are not in the log.
    Gap,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in seconds since 1970.
    pub time: i64,
    /// Who.
    pub who: String,
    /// What was called.
    pub command: String,
    /// What.
    pub what: What,
    /// Which deployment.
    pub deployment: DeploymentId,
    /// Its image.
    pub image: ImageName,
    /// Its version.
    pub version: Option<String>,
    /// What booted next before the change.
    pub from: RootDigest,
    /// What the event is about.
    pub to: RootDigest,
    /// The manifest of that.
    pub manifest: Option<Sha256>,
    /// Why, where there is something to say.
    pub reason: Option<String>,
    /// Fixes what the record says after the change.
    pub outline: Sha256,
}

/// Why the log could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the log {}", path.display())]
pub struct ReadEventsError {
    path: PathBuf,
    source: io::Error,
}

/// Lists what differs between two records, in the order in which a person would tell it.
pub fn changes(old: &Record, new: &Record, actor: &Actor, now: i64) -> Vec<Event> {
    let mut events = Vec::new();
    let from = old.deployment(old.default).map(|d| d.root);
    let outline = outline(new);
    let mut tell = |what, deployment: &Deployment, reason: Option<&String>| {
        events.push(Event {
            time: now,
            who: actor.who.clone(),
            command: actor.command.clone(),
            what,
            deployment: deployment.id,
            image: deployment.image.clone(),
            version: deployment.version.clone(),
            from: from.unwrap_or(deployment.root),
            to: deployment.root,
            manifest: deployment.manifest,
            reason: reason.cloned(),
            outline,
        });
    };
    for after in &new.deployments {
        let before = old.deployment(after.id);
        let state = before.map(|before| before.state);
        if state != Some(after.state) {
            let what = match after.state {
                State::Staged if state.is_none() => What::Staged,
                State::Staged => What::Unstaged,
                State::Trial => What::Tried,
                State::Proven => What::Proven,
                State::Bad => What::Bad,
            };
            tell(what, after, after.reason.as_ref());
        }
        if before.is_some_and(|before| before.pinned != after.pinned) {
            let what = if after.pinned {
                What::Pinned
            } else {
                What::Unpinned
            };
            tell(what, after, None);
        }
        if let Some(failure) = &after.failure
            && after.state != State::Bad // that was told
            && before.is_some_and(|before| before.failure.is_none())
        {
            tell(What::Unhealthy, after, Some(&failure.reason));
        }
    }
    let selected = new.deployment(new.default);
    if let Some(selected) = selected
        && old.default != new.default
        && selected.state == State::Proven
    {
        tell(What::Selected, selected, None);
    }
    for before in &old.deployments {
        if new.deployment(before.id).is_none() {
            let what = match before.state {
                State::Staged => What::Unstaged,
                State::Trial | State::Proven | State::Bad => What::Removed,
            };
            tell(what, before, None);
        }
    }
    events
}

/// Appends events to the log of a physical root, and before them one that says so where some are missing.
pub fn append(root: &Path, old: &Record, events: &[Event]) -> io::Result<()> {
    let Some(first) = events.first() else {
        return Ok(());
    };
    let path = root.join(layout::EVENTS);
    let last = last(root)?;
    let mut text = Vec::new();
    if last.is_some_and(|last| last.outline != outline(old)) {
        line(
            &mut text,
            &Event {
                what: What::Gap,
                reason: Some("changes before this one are not in the log".to_owned()),
                ..first.clone()
            },
        )?;
    }
    for event in events {
        line(&mut text, event)?;
    }
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_MAX) {
        durable::rename(&path, &root.join(layout::EVENTS_BEFORE))?;
    }
    let mut file = File::options()
        .create(true)
        .append(true)
        .mode(MODE)
        .open(&path)?;
    // A cut may have left half a line.
    if file.metadata()?.len() > 0 && !ends_with_line_feed(&path)? {
        text.insert(0, b'\n');
    }
    file.write_all(&text)?;
    file.sync_data()
}

fn line(text: &mut Vec<u8>, event: &Event) -> io::Result<()> {
    serde_json::to_writer(&mut *text, event)?;
    text.push(b'\n');
    Ok(())
}

fn ends_with_line_feed(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::FileExt as _;
    let file = File::open(path)?;
    let mut last = [0];
    file.read_exact_at(&mut last, file.metadata()?.len() - 1)?;
    Ok(last == *b"\n")
}

/// Reads the log of a physical root, the oldest event first. What is no event (half a line that a power cut
/// left, or one of a newer version) is passed over.
pub fn read(root: &Path) -> Result<Vec<Event>, ReadEventsError> {
    let mut events = Vec::new();
    for name in [layout::EVENTS_BEFORE, layout::EVENTS] {
        let path = root.join(name);
        read_one(&path, &mut events).map_err(|source| ReadEventsError { path, source })?;
    }
    Ok(events)
}

fn read_one(path: &Path, events: &mut Vec<Event>) -> io::Result<()> {
    let mut file = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut line = Vec::new();
    while (&mut file).take(LINE_MAX).read_until(b'\n', &mut line)? > 0 {
        events.extend(serde_json::from_slice::<Event>(&line));
        line.clear();
    }
    Ok(())
}

fn last(root: &Path) -> io::Result<Option<Event>> {
    let mut events = Vec::new();
    for name in [layout::EVENTS, layout::EVENTS_BEFORE] {
        read_one(&root.join(name), &mut events)?;
        if let Some(last) = events.pop() {
            return Ok(Some(last));
        }
    }
    Ok(None)
}

/// Fixes what events are about: which deployments there are, in which states, and what boots next.
fn outline(record: &Record) -> Sha256 {
    let mut text = record.default.to_string();
    for deployment in &record.deployments {
        let failed = if deployment.failure.is_some() {
            "!"
        } else {
            ""
        };
        let pinned = if deployment.pinned { "^" } else { "" };
        let Deployment { id, state, .. } = deployment;
        let _ = write!(text, "\n{id} {state}{failed}{pinned}"); // a String never fails
    }
    Sha256(sha2::Sha256::digest(text).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{deployment, id, record};

    fn actor() -> Actor {
        Actor {
            who: "anna".into(),
            command: "bedplate upgrade".into(),
        }
    }

    /// The record of [`record`] with a second deployment, which is staged.
    fn staged() -> Record {
        let mut record = record();
        let second = deployment(2, State::Staged, Some(1));
        record.deployments.insert(0, second);
        record
    }

    fn told(old: &Record, new: &Record) -> Vec<(What, DeploymentId)> {
        let events = changes(old, new, &actor(), 5);
        events.iter().map(|it| (it.what, it.deployment)).collect()
    }

    #[test]
    fn the_life_of_a_version_is_told() {
        let (first, staged) = (record(), staged());
        assert_eq!(told(&first, &staged), [(What::Staged, id(2))]);
        assert_eq!(told(&staged, &first), [(What::Unstaged, id(2))]);

        let mut trial = staged.clone();
        trial.deployments[0].state = State::Trial;
        trial.default = id(2);
        assert_eq!(told(&staged, &trial), [(What::Tried, id(2))]);

        let mut proven = trial.clone();
        proven.deployments[0].state = State::Proven;
        assert_eq!(told(&trial, &proven), [(What::Proven, id(2))]);

        let mut back = proven.clone();
        back.default = id(1);
        assert_eq!(told(&proven, &back), [(What::Selected, id(1))]);

        let mut bad = trial.clone();
        bad.deployments[0].state = State::Bad;
        bad.deployments[0].reason = Some("it burns".into());
        bad.default = id(1);
        let events = changes(&trial, &bad, &actor(), 5);
        assert_eq!(events[0].what, What::Bad);
        assert_eq!(events[0].reason.as_deref(), Some("it burns"));
        assert_eq!(events[1].what, What::Selected);
        assert_eq!(told(&bad, &first), [(What::Removed, id(2))]);
        assert!(told(&bad, &bad).is_empty());
    }

    #[test]
    fn pins_are_told() {
        let first = record();
        let mut pinned = first.clone();
        pinned.deployments[0].pinned = true;
        assert_eq!(told(&first, &pinned), [(What::Pinned, id(1))]);
        assert_eq!(told(&pinned, &first), [(What::Unpinned, id(1))]);
    }

    #[test]
    fn what_is_missing_in_the_log_is_said() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(layout::BEDPLATE)).unwrap();
        let (first, second) = (record(), staged());
        let mut third = second.clone();
        third.deployments[0].state = State::Trial;
        let write = |old, new| {
            append(root.path(), old, &changes(old, new, &actor(), 5)).unwrap();
            let events = read(root.path()).unwrap();
            events.iter().map(|it| it.what).collect::<Vec<_>>()
        };
        assert_eq!(write(&first, &second), [What::Staged]);
        // A power cut left half a line.
        let log = root.path().join(layout::EVENTS);
        let mut file = File::options().append(true).open(&log).unwrap();
        file.write_all(b"{\"time\":").unwrap();
        assert_eq!(write(&second, &third), [What::Staged, What::Tried]);
        let all = write(&first, &second);
        assert_eq!(all, [What::Staged, What::Tried, What::Gap, What::Staged]);
    }

    #[test]
    fn the_log_stays_small() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(layout::BEDPLATE)).unwrap();
        let (first, second) = (record(), staged());
        let (there, back) = (
            changes(&first, &second, &actor(), 5),
            changes(&second, &first, &actor(), 6),
        );
        for _ in 0..20 {
            let many: Vec<Event> = there.iter().cycle().take(400).cloned().collect();
            append(root.path(), &first, &many).unwrap();
            append(root.path(), &second, &back).unwrap();
        }
        let length = |name| fs::metadata(root.path().join(name)).unwrap().len();
        assert!(
            length(layout::EVENTS) < 2 * LOG_MAX && length(layout::EVENTS_BEFORE) < 2 * LOG_MAX
        );
        assert_eq!(read(root.path()).unwrap().last().unwrap().time, 6);
    }
}
