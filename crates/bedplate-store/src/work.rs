//! Work on all cores: a stack of jobs, where a job may add further ones.
//!
//! Invariant: [`run`] returns after the last job ended, or after the first one failed; with what that
//! one returned.

use std::convert::Infallible;
use std::num::NonZero;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// More threads than this only wait for one another's directories.
const THREADS_MAX: usize = 16;

/// How many items a job looks up or removes that waits for the disk at each.
pub(crate) const CHUNK: usize = 64;

/// How many threads keep a disk busy that is asked for one inode after the other.
const THREADS_WAITING: usize = 8;

/// The jobs that are left. Last in, first out, so that a walk goes deep before it goes wide and few
/// jobs wait.
pub(crate) struct Queue<J, E> {
    state: Mutex<State<J, E>>,
    changed: Condvar,
}

struct State<J, E> {
    jobs: Vec<J>,
    /// Threads that are at a job, and may add more.
    busy: usize,
    failed: Option<E>,
}

impl<J, E> Queue<J, E> {
    /// Adds jobs.
    pub(crate) fn add(&self, jobs: impl IntoIterator<Item = J>) {
        let mut state = self.lock();
        let before = state.jobs.len();
        state.jobs.extend(jobs);
        match state.jobs.len() - before {
            0 => {}
            1 => self.changed.notify_one(),
            _ => self.changed.notify_all(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<J, E>> {
        // A panic of another thread is passed on by the scope; until then the stack is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, job: &(impl Fn(J, &Self) -> Result<(), E> + Sync)) {
        let mut state = self.lock();
        loop {
            if state.failed.is_some() {
                return;
            }
            let Some(next) = state.jobs.pop() else {
                if state.busy == 0 {
                    return;
                }
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.busy += 1;
            drop(state);
            let ended = Busy(self);
            let outcome = job(next, self);
            drop(ended);
            state = self.lock();
            if let Err(error) = outcome {
                state.failed.get_or_insert(error);
                self.changed.notify_all();
            }
        }
    }
}

/// Says that a job ended, also when it panicked: the others would wait for ever.
struct Busy<'a, J, E>(&'a Queue<J, E>);

impl<J, E> Drop for Busy<'_, J, E> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.busy -= 1;
        if state.busy == 0 {
            self.0.changed.notify_all();
        }
    }
}

/// Runs jobs on all cores until none is left; the first error stops the rest.
pub(crate) fn run<J: Send, E: Send>(
    jobs: Vec<J>,
    job: impl Fn(J, &Queue<J, E>) -> Result<(), E> + Sync,
) -> Result<(), E> {
    run_on(cores(), jobs, job)
}

/// As [`run`], for jobs that wait for the disk and not for a core: more of them at once than there are cores.
///
/// Measured: removing 5,600 files whose inodes are not cached takes 9.5 s on one thread and 1.2 s on eight.
pub(crate) fn run_waiting<J: Send, E: Send>(
    jobs: Vec<J>,
    job: impl Fn(J, &Queue<J, E>) -> Result<(), E> + Sync,
) -> Result<(), E> {
    run_on(cores().max(THREADS_WAITING), jobs, job)
}

/// As [`run`], for jobs that add none and cannot fail.
pub(crate) fn each<J: Send>(jobs: Vec<J>, job: &(dyn Fn(J) + Sync)) {
    let Ok(()) = run(jobs, |item, _| {
        job(item);
        Ok::<(), Infallible>(())
    });
}

/// As [`run_waiting`], for jobs that add none and cannot fail.
pub(crate) fn each_waiting<J: Send>(jobs: Vec<J>, job: &(dyn Fn(J) + Sync)) {
    let Ok(()) = run_waiting(jobs, |item, _| {
        job(item);
        Ok::<(), Infallible>(())
    });
}

fn run_on<J: Send, E: Send>(
    threads: usize,
    jobs: Vec<J>,
    job: impl Fn(J, &Queue<J, E>) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let queue = Queue {
        state: Mutex::new(State {
            jobs,
            busy: 0,
            failed: None,
        }),
        changed: Condvar::new(),
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Where no more may be started, those that are there do it.
            let started = thread::Builder::new().spawn_scoped(scope, || queue.work(&job));
            if started.is_err() {
                break;
            }
        }
        queue.work(&job);
    });
    let state = queue
        .state
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    state.failed.map_or(Ok(()), Err)
}

/// Returns how many threads compute.
fn cores() -> usize {
    thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(THREADS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn jobs_may_add_jobs_and_all_are_done() {
        let done = AtomicU32::new(0);
        run::<u32, ()>(vec![10], |depth, queue| {
            done.fetch_add(1, Ordering::Relaxed);
            if depth > 0 {
                queue.add([depth - 1, depth - 1]);
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(done.into_inner(), 2047);
    }

    #[test]
    fn the_first_error_stops_the_rest() {
        let done = AtomicU32::new(0);
        let outcome = run((0..100_000).collect(), |job, _| {
            done.fetch_add(1, Ordering::Relaxed);
            if job == 99_990 { Err(job) } else { Ok(()) }
        });
        assert_eq!(outcome, Err(99_990));
        assert!(done.into_inner() < 100_000);
    }
}
