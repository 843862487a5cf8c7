//! Tests that are real boots: what machines go through, each from a fresh copy of one that was installed and proven.
//!
//! ```text
//! tree 1, tree 2 ─ build, push ─→ registry ─┐   made once for each program
//! version 1 ─ install ─ boot ─ proven ──────┤
//!                                           └─ copies ─→ course, course, …     two at a time
//! ```
//!
//! Invariant: a course sees a machine, a registry and firmware variables that no other course sees.

mod courses;
mod guest;
mod workshop;

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};

use courses::{COURSES, Course, Extent};
use guest::Guest;
use workshop::Workshop;

use crate::packages;

/// How many machines run side by side.
const SIDE_BY_SIDE: usize = 2;

/// Lists the courses: name and what happens.
pub(crate) fn list() -> String {
    let lines = COURSES.iter().map(|course| {
        let campaign = if course.extent == Extent::Campaign {
            " (in the campaign)"
        } else {
            ""
        };
        format!("  {:<12} {}{campaign}\n", course.name, course.about)
    });
    lines.collect()
}

/// Which courses are played where none is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plays {
    /// Those of every test run.
    Sample,
    /// All.
    All,
}

/// Plays the courses of these names, or where there are none, as many as are wanted.
pub(crate) fn run(names: &[&str], plays: Plays) -> Result<()> {
    super::require_packages()?;
    packages::require(&[packages::BOOT_PARTITION, packages::PEERS])?;
    let unknown = names
        .iter()
        .find(|name| COURSES.iter().all(|course| course.name != **name));
    if let Some(unknown) = unknown {
        bail!("there is no course `{unknown}`; there are\n{}", list());
    }
    let wanted = |course: &&Course| match names {
        [] => plays == Plays::All || course.extent == Extent::Test,
        names => names.contains(&course.name),
    };
    let workshop = Workshop::open_or_make()?;
    let left: Mutex<VecDeque<&Course>> = Mutex::new(COURSES.iter().filter(wanted).collect());
    let failed: Mutex<Vec<&str>> = Mutex::default();
    let next = || {
        left.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    };
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                while let Some(course) = next() {
                    if let Err(error) = play(&workshop, course) {
                        println!("  ✗ {}: {error:?}", course.name);
                        failed
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(course.name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failed.is_empty() {
        bail!("these failed: {}", failed.join(", "));
    }
    println!("  all in {:.0} s", begun.elapsed().as_secs_f32());
    Ok(())
}

fn play(workshop: &Workshop, course: &Course) -> Result<()> {
    let begun = Instant::now();
    let mut guest = Guest::start(workshop, course.name)?;
    match (course.play)(&mut guest) {
        Ok(()) => {
            guest.forget()?;
            println!(
                "  ✓ {:<12} {} ({:.0} s)",
                course.name,
                course.about,
                begun.elapsed().as_secs_f32()
            );
            Ok(())
        }
        Err(error) => {
            println!("{}", guest.last_words());
            Err(error)
        }
    }
}
