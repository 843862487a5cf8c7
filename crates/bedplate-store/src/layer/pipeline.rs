//! Threads that store the bodies of files while the tar is read on.
//!
//! ```text
//! reader ─→ [bounded queue of bodies ≤ 1 MiB] ─→ one worker a core ─→ (index, content)…
//! ```
//!
//! Invariant: at most `QUEUE` bodies wait and one lies with each worker; the first failure stops all.

use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bedplate_model::{FileContent, TreePath};

use super::contents::Contents;
use super::error::LayerError;

/// How many bodies may wait for a worker.
const QUEUE: usize = 8;

/// A body on its way into the store.
pub(super) struct Job {
    pub(super) index: usize,
    pub(super) path: TreePath,
    pub(super) bytes: Vec<u8>,
}

/// Contents by the index of their entries.
pub(super) type Stored = Vec<(usize, FileContent)>;

/// Runs `reader`, which sends jobs, beside the workers; returns what both have stored.
pub(super) fn run<T>(
    contents: &dyn Contents,
    reader: impl FnOnce(&SyncSender<Job>) -> Result<T, LayerError>,
) -> Result<(T, Stored), LayerError> {
    let (sender, receiver) = sync_channel(QUEUE);
    // Owned by the workers alone: when the last is gone, however it went, the queue closes.
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            let receiver = Arc::clone(&receiver);
            let worker = move || work(&receiver, contents);
            match thread::Builder::new().spawn_scoped(scope, worker) {
                Ok(worker) => workers.push(worker),
                // Those that are there do it; without any, nothing can.
                Err(_) if !workers.is_empty() => break,
                Err(source) => return Err(LayerError::Threads(source)),
            }
        }
        drop(receiver);
        let read = reader(&sender);
        drop(sender);
        let mut stored = Stored::new();
        let mut failure = None;
        for worker in workers {
            match worker.join() {
                Ok(Ok(some)) => stored.extend(some),
                Ok(Err(error)) => failure = failure.or(Some(error)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        // A worker that fails closes the queue, and the reader stumbles over that: the cause is here.
        match failure {
            Some(error) => Err(error),
            None => Ok((read?, stored)),
        }
    })
}

fn work(
    receiver: &Mutex<Option<Receiver<Job>>>,
    contents: &dyn Contents,
) -> Result<Stored, LayerError> {
    let mut stored = Stored::new();
    loop {
        let job = {
            let receiver = receiver.lock().unwrap_or_else(PoisonError::into_inner);
            match receiver.as_ref().map(Receiver::recv) {
                Some(Ok(job)) => job,
                Some(Err(_)) | None => return Ok(stored),
            }
        };
        match contents.put_bytes(&job.bytes) {
            Ok(content) => stored.push((job.index, content)),
            Err(source) => {
                receiver
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                return Err(LayerError::Store {
                    path: job.path,
                    source,
                });
            }
        }
    }
}
