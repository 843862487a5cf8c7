//! Progress: lines on standard error while something takes long, and only on a terminal.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bedplate_model::Sha256;
use bedplate_store::ScanObserver;
use bedplate_transport::{Event, Observer};
use indicatif::{ProgressBar, ProgressStyle};

use super::bytes;

/// How often a line is drawn: often enough to look alive.
const TICK: Duration = Duration::from_millis(120);

/// A line of progress; nothing is drawn when standard error is no terminal, or when it shall be quiet.
#[derive(Debug)]
pub(crate) struct Progress {
    line: ProgressBar,
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        if quiet || !io::stderr().is_terminal() {
            return Self::of(ProgressBar::hidden());
        }
        let line = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            line.set_style(style);
        }
        line.enable_steady_tick(TICK);
        Self::of(line)
    }

    fn of(line: ProgressBar) -> Self {
        Self {
            line,
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Says what is being done now.
    pub(crate) fn say(&self, text: impl Into<String>) {
        self.line.set_message(text.into());
    }

    /// Counts one more entry that a scan took.
    pub(crate) fn taken(&self, length: u64) {
        let entries = self.entries.fetch_add(1, Ordering::Relaxed) + 1;
        let total = self.bytes.fetch_add(length, Ordering::Relaxed) + length;
        // Drawing is cheap, formatting for every file is not.
        if entries.is_multiple_of(256) {
            self.say(format!("{entries} entries, {}", bytes(total)));
        }
    }

    /// Takes the line off the screen.
    pub(crate) fn finish(&self) {
        self.line.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // An error message must not share a line with the spinner.
        self.finish();
    }
}

impl ScanObserver for Progress {
    fn taken(&self, length: u64) {
        self.taken(length);
    }
}

/// Draws how far a transfer is.
#[derive(Debug)]
pub(crate) struct TransferProgress<'a> {
    progress: &'a Progress,
    state: Mutex<Transfer>,
}

#[derive(Debug, Default)]
struct Transfer {
    total: u64,
    /// What has come of each layer that is under way.
    layers: HashMap<Sha256, u64>,
    drawn: u64,
}

impl<'a> TransferProgress<'a> {
    pub(crate) fn new(progress: &'a Progress) -> Self {
        Self {
            progress,
            state: Mutex::default(),
        }
    }
}

impl Observer for TransferProgress<'_> {
    fn on(&self, event: Event) {
        // A panic elsewhere leaves numbers at worst.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Planned { bytes, .. } => state.total = bytes,
            Event::LayerStarted { .. } | Event::LayerFinished { .. } => {}
            Event::LayerReused { digest, size } => {
                state.layers.insert(digest, size);
            }
            Event::Bytes { digest, count } => *state.layers.entry(digest).or_default() += count,
            Event::LayerRestarted { digest } => {
                state.layers.insert(digest, 0);
            }
        }
        let done: u64 = state.layers.values().sum();
        if done.abs_diff(state.drawn) >= DRAWN_EVERY {
            state.drawn = done;
            self.progress
                .say(format!("{} of {}", bytes(done), bytes(state.total)));
        }
    }
}

/// How many bytes come between two lines.
const DRAWN_EVERY: u64 = 1 << 20;
