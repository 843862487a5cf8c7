//! Disks as cuts leave them, made one after the other from one that grows with the log.
//!
//! ```text
//! before.img ─ copy ─→ base ─ entries that are certain ─→ base ─ … in the order of the log
//!                        └─ clone (reflink) ─ what the cut leaves of the rest ─→ a wreck
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context as _, Result};
use testkit::powercut::cuts::{self, Cut};
use testkit::powercut::log::Entry;

use crate::run;

/// The disk with what is certain, and what is still to be tried.
pub(super) struct Wrecks<'a, J> {
    log: &'a [Entry],
    base: Mutex<Base<J>>,
}

struct Base<J> {
    path: PathBuf,
    file: File,
    /// The entries before this one are on it.
    applied: usize,
    jobs: std::vec::IntoIter<(Cut, J)>,
}

impl<'a, J> Wrecks<'a, J> {
    /// Begins with the disk `before`; `place` is where files can be cloned. The jobs are in the order of the log.
    pub(super) fn new(
        before: &Path,
        log: &'a [Entry],
        place: &Path,
        jobs: Vec<(Cut, J)>,
    ) -> Result<Self> {
        let path = place.join("base.img");
        run::output(
            Command::new("cp")
                .arg("--sparse=always")
                .args([before, &path]),
        )?;
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let base = Base {
            path,
            file,
            applied: 0,
            jobs: jobs.into_iter(),
        };
        Ok(Self {
            log,
            base: Mutex::new(base),
        })
    }

    /// Makes the next wreck at `path`.
    pub(super) fn next(&self, path: &Path) -> Result<Option<(Cut, J)>> {
        let (cut, job) = {
            let mut base = self
                .base
                .lock()
                .ok()
                .context("a worker panicked while it made a wreck")?;
            let Some((cut, job)) = base.jobs.next() else {
                return Ok(None);
            };
            let certain = cuts::certain(self.log, cut.position);
            let new = &self.log[base.applied.min(certain)..certain];
            cuts::apply_all(&mut base.file, new).context("applying what is certain")?;
            base.applied = base.applied.max(certain);
            clone(&base.path, path)?;
            (cut, job)
        };
        let mut file = File::options()
            .write(true)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        cuts::apply_rest(&mut file, self.log, cut).context("applying what the cut leaves")?;
        Ok(Some((cut, job)))
    }
}

/// Clones a file: both share their blocks until one of them is written to.
pub(super) fn clone(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_file(to).with_context(|| format!("removing {}", to.display()))?;
    }
    let source = File::open(from).with_context(|| format!("opening {}", from.display()))?;
    let target = File::create(to).with_context(|| format!("creating {}", to.display()))?;
    rustix::fs::ioctl_ficlone(&target, &source)
        .with_context(|| format!("cloning {}", from.display()))
}
