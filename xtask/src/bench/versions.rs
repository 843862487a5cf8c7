//! Stores of up to 100 versions of 30,000 files: what gc, fsck, tag and status take as they grow.
//!
//! ```text
//! version 1   30,000 files of 200 B to 8 KiB
//! version n   version n-1, every hundredth file of it with another content
//! ```
//!
//! gc and fsck read each version's image, so their work is measured by the files that versions name, which
//! are 300,000 to 3,000,000; the objects are 32,700 to 59,700.

use std::ops::RangeInclusive;

use anyhow::{Context, Result};
use bedplate_model::{FileContent, ImageName, RootDigest, RuleSet, layout};
use bedplate_store::{RefTarget, Store, Transaction};

use super::machine::MadeUp;
use super::report::{Fact, Report};
use super::sample::Samples;
use super::{Bench, image, remove};
use crate::run;

/// Numbers of versions, and of files in each.
const FULL: ([u32; 3], u32) = ([10, 30, 100], 30_000);
const SMALL: ([u32; 3], u32) = ([2, 4, 6], 400);

/// A file gets another content in each so many versions.
const CHANGES: u32 = 100;

/// How often a name is given; it waits for the disk, which is not always as fast.
const TAGS: usize = 15;

/// Figures for one number of versions: median seconds.
struct Grown {
    /// The files that all versions name.
    named: f64,
    collected: f64,
    nothing_to_collect: f64,
    checked: f64,
    tagged: f64,
    status: f64,
}

impl Bench {
    /// Grows a store, and measures it at each size.
    pub(super) fn versions(&self, report: &mut Report) -> Result<()> {
        let (sizes, files) = if self.full { FULL } else { SMALL };
        let place = self.place.join("machine");
        let path = place.join("root").join(layout::STORE);
        let store = Store::create(&path).context("making a store")?;
        let mut all = Vec::new();
        let mut first = 1;
        for versions in sizes {
            let newest = add(&store, first..=versions, files)?;
            let machine = MadeUp::new(&place, newest)?;
            all.push(self.measure_versions(&store, versions, files, &machine)?);
            first = versions + 1;
        }
        remove(&place)?;
        facts(report, &all);
        Ok(())
    }

    fn measure_versions(
        &self,
        store: &Store,
        versions: u32,
        files: u32,
        machine: &MadeUp,
    ) -> Result<Grown> {
        let path = store.path();
        let oldest = 1..=(versions / 10).max(1);
        let what = |verb: &str| format!("{verb} with {versions} versions");
        let [mut collect, mut nothing, mut check, mut tag]: [Samples; 4] = Default::default();
        for _ in 0..self.times.min(3) {
            self.settle(path)?;
            nothing.take(
                &what("gc of nothing"),
                &self.place,
                &mut self.ours_with(path, &["gc"]),
            )?;
            check.take(
                &what("fsck --quick"),
                &self.place,
                &mut self.ours_with(path, &["fsck", "--quick"]),
            )?;
            let names: Vec<String> = oldest.clone().map(name).collect();
            run::output(self.ours(path).arg("untag").args(names))?;
            self.settle(path)?;
            collect.take(&what("gc"), &self.place, &mut self.ours_with(path, &["gc"]))?;
            add(store, oldest.clone(), files)?;
        }
        let newest = name(versions);
        for _ in 0..if self.full { TAGS } else { 1 } {
            let mut give = self.ours_with(path, &["tag", &newest, "localhost/versions:other"]);
            tag.take(&what("tag"), &self.place, &mut give)?;
        }
        let median = |samples: &Samples| {
            let wall = samples.wall().context("nothing was measured")?;
            Ok::<f64, anyhow::Error>(wall[1])
        };
        Ok(Grown {
            named: f64::from(versions) * f64::from(files),
            collected: median(&collect)?,
            nothing_to_collect: median(&nothing)?,
            checked: median(&check)?,
            tagged: median(&tag)?,
            status: machine.status()?,
        })
    }
}

fn facts(report: &mut Report, all: &[Grown]) {
    type Figure = fn(&Grown) -> f64;
    let linear: [(&'static str, Figure); 3] = [
        (
            "gc, of 10, 30 and 100 versions of 30,000 files the oldest tenth dropped: linear in the files that \
             versions name (seconds; µs for each file)",
            |grown| grown.collected,
        ),
        (
            "gc of the same stores with nothing to remove: linear",
            |grown| grown.nothing_to_collect,
        ),
        ("fsck --quick of the same stores: linear", |grown| {
            grown.checked
        }),
    ];
    for (goal, seconds) in linear {
        let each = |grown: &Grown| seconds(grown) * 1e6 / grown.named;
        report.add_fact(Fact {
            goal,
            reached: format!("{} s; {} µs", listed(all, seconds, 2), listed(all, each, 2)),
            met: grows_at_most(all, each, 0.0),
        });
    }
    let tagged = |grown: &Grown| grown.tagged * 1e3;
    report.add_fact(Fact {
        goal: "tag in the same stores: constant (ms, 5 of them noise)",
        reached: listed(all, tagged, 1),
        met: grows_at_most(all, tagged, 5.0),
    });
    let status = |grown: &Grown| grown.status;
    report.add_fact(Fact {
        goal: "status of a machine that has the same stores, in a directory, without the start of the program: \
               constant (µs, 100 of them noise)",
        reached: listed(all, status, 0),
        met: grows_at_most(all, status, 100.0),
    });
}

/// Whether the last figure is at most half as much again as the first.
fn grows_at_most(all: &[Grown], figure: impl Fn(&Grown) -> f64, noise: f64) -> bool {
    match (all.first(), all.last()) {
        (Some(first), Some(last)) => figure(last) <= 1.5 * figure(first) + noise,
        _ => false,
    }
}

fn listed(all: &[Grown], figure: impl Fn(&Grown) -> f64, digits: usize) -> String {
    let texts: Vec<String> = all
        .iter()
        .map(|grown| format!("{:.digits$}", figure(grown)))
        .collect();
    texts.join(", ")
}

/// Adds versions in one transaction, and returns the last one's image.
fn add(store: &Store, versions: RangeInclusive<u32>, files: u32) -> Result<RootDigest> {
    let transaction = store.begin().context("adding versions")?;
    let first = *versions.start();
    let mut contents = (0..files)
        .map(|file| put(&transaction, file, last_change(file, first)))
        .collect::<Result<Vec<FileContent>>>()?;
    let mut newest = None;
    for version in versions {
        if version > first {
            let changed = contents.iter_mut().zip(0..files);
            for (content, file) in changed.filter(|(_, file)| file % CHANGES == version % CHANGES) {
                *content = put(&transaction, file, version)?;
            }
        }
        let tree = image::tree_of(contents.iter().cloned())?;
        let root = transaction.put_image(&tree, RuleSet::Exact1)?;
        let tag: ImageName = name(version).parse()?;
        transaction.set_ref(&tag, RefTarget::new(root, version.into()))?;
        newest = Some(root);
    }
    transaction.commit().context("adding versions")?;
    newest.context("no version was to be added")
}

/// The version that gave the file the content which it has in `version`; 0 is the beginning.
fn last_change(file: u32, version: u32) -> u32 {
    let since = (version + CHANGES - file % CHANGES) % CHANGES;
    version.saturating_sub(since)
}

/// Stores a content that no other file and version has, the same each time; most are small.
fn put(transaction: &Transaction<'_>, file: u32, version: u32) -> Result<FileContent> {
    let mut state = (u64::from(version) << 32 | u64::from(file)) ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let most = 400 << (next() % 5);
    let length = 200 + next() % most;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < length {
        bytes.extend_from_slice(&next().to_le_bytes());
    }
    Ok(transaction.put_bytes(&bytes)?)
}

fn name(version: u32) -> String {
    format!("localhost/versions:v{version}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_changes_once_in_a_hundred_versions() {
        for (file, version, wanted) in [
            (1, 1, 1),
            (2, 1, 0),
            (2, 2, 2),
            (2, 101, 2),
            (102, 102, 102),
            (0, 99, 0),
            (0, 100, 100),
        ] {
            assert_eq!(last_change(file, version), wanted, "{file} in {version}");
        }
    }
}
