//! `diff`: says what changed between two images or directories: packages, kernels, units, setuid files,
//! capabilities and sizes first, paths with `--files`.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::mem;

use anyhow::Context as _;
use bedplate_model::TreePath;
use bedplate_store::Unsteady;
use bedplate_store::diff::{
    Change, ChangeKind, KernelChanges, PackageChange, Packages, PathChanges, Summary, ignore_times,
    summarize,
};
use bedplate_store::look::set_aside;
use serde::Serialize;

use super::subject::{Beyond, Subject, read_both};
use crate::Answer;
use crate::cli::Diff;
use crate::context::Context;
use crate::render::{bytes, json, note};

/// A difference, for programs.
#[derive(Serialize)]
struct Difference {
    /// Null where one of the two has no package database that is known, or one that cannot be read.
    packages: Option<Vec<Package>>,
    /// Databases of packages that cannot be read, and why.
    packages_unreadable: Vec<Unreadable>,
    kernels_added: Vec<String>,
    kernels_removed: Vec<String>,
    /// Another kernel under the same release.
    kernels_changed: Vec<String>,
    units: Paths,
    setuid: Paths,
    capabilities: Paths,
    bytes: [u64; 2],
    new_bytes: u64,
    paths_added: u64,
    paths_removed: u64,
    paths_changed: u64,
    /// Only with `--files`.
    #[serde(skip_serializing_if = "Option::is_none")]
    paths: Option<Vec<Path>>,
    /// What was not compared because it is no part of an image: of the running system alone.
    left_out: Vec<String>,
    /// What was not compared because it changed while it was read, or vanished.
    unsteady: Vec<String>,
}

#[derive(Serialize)]
struct Unreadable {
    /// The image or directory, as it was given.
    of: String,
    reason: String,
}

/// Paths of one kind.
#[derive(Serialize)]
struct Paths {
    added: Vec<String>,
    removed: Vec<String>,
    changed: Vec<String>,
}

impl From<PathChanges> for Paths {
    fn from(changes: PathChanges) -> Self {
        let PathChanges {
            added,
            removed,
            changed,
        } = changes;
        Self {
            added,
            removed,
            changed,
        }
    }
}

#[derive(Serialize)]
struct Package {
    name: String,
    from: Option<String>,
    to: Option<String>,
}

#[derive(Serialize)]
struct Path {
    path: String,
    change: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aspects: Vec<&'static str>,
}

pub(super) fn run(diff: &Diff, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let attempted = || format!("cannot compare {} with {}", diff.old, diff.new);
    let [old, new] = [Subject::parse(&diff.old)?, Subject::parse(&diff.new)?];
    let [mut old, mut new] = read_both([&old, &new], context).with_context(attempted)?;
    for beyond in [&old.beyond, &new.beyond] {
        let unsteady = beyond.unsteady.iter().map(|(path, _)| path);
        let paths = beyond.left_out.iter().chain(unsteady);
        set_aside(paths, &mut old.tree, &mut new.tree);
    }
    let mut changes = bedplate_store::diff(&old.tree, &new.tree);
    if diff.ignore_times {
        ignore_times(&mut changes);
    }
    let differ = !changes.is_empty();
    let mut summary = summarize(
        &changes,
        (&old.tree, old.packages.take()),
        (&new.tree, new.packages.take()),
    );
    let mut unreadable = Vec::new();
    for (operand, side) in [(&diff.old, &mut old), (&diff.new, &mut new)] {
        if let Some(reason) = side.broken_packages.take() {
            note(&format!(
                "the packages of {operand} cannot be compared: {reason}"
            ));
            summary.packages = Packages::Unreadable;
            unreadable.push(Unreadable {
                of: operand.clone(),
                reason,
            });
        }
    }
    let answer = match (unreadable.is_empty(), diff.exit_code && differ) {
        (false, _) => Answer::Damage,
        (true, true) => Answer::No,
        (true, false) => Answer::Yes,
    };
    let paths = diff.files.then(|| paths(changes));
    for (operand, side) in [(&diff.old, &old), (&diff.new, &new)] {
        note_beyond(operand, &side.beyond);
    }
    let out = &mut *context.out;
    if diff.json {
        let beyond = [&old.beyond, &new.beyond];
        json(out, &difference(summary, unreadable, paths, beyond))?;
    } else {
        draw(out, &summary)?;
        for path in paths.iter().flatten() {
            draw_path(out, path)?;
        }
    }
    // The program ends next: taking trees apart node by node would be a tenth of its work.
    mem::forget((old.tree, new.tree));
    Ok(answer)
}

/// Says on standard error what of a directory was not compared.
fn note_beyond(operand: &str, beyond: &Beyond) {
    let Beyond { left_out, unsteady } = beyond;
    if !left_out.is_empty() {
        let list: Vec<_> = left_out.iter().map(TreePath::to_string).collect();
        note(&format!(
            "{operand} is the running system; left out: {}",
            list.join(", ")
        ));
    }
    for (path, what) in unsteady {
        let what = match what {
            Unsteady::Changed => "changed while it was read, and is not compared",
            Unsteady::Vanished => "vanished before it was read",
        };
        note(&format!("{path} {what}"));
    }
}

/// Draws what an administrator wants to know first.
pub(super) fn draw(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    match &summary.packages {
        Packages::Unknown => writeln!(out, "Packages: neither has a package database")?,
        Packages::UnknownBefore => writeln!(out, "Packages: the first has no package database")?,
        Packages::Unreadable => writeln!(out, "Packages: not compared, a database cannot be read")?,
        Packages::UnknownAfter => writeln!(out, "Packages: the second has no package database")?,
        Packages::Compared(changes) if changes.is_empty() => writeln!(out, "Packages: the same")?,
        Packages::Compared(changes) => {
            let count = |wanted: fn(&PackageChange) -> bool| {
                changes.iter().filter(|change| wanted(change)).count()
            };
            writeln!(
                out,
                "Packages: {} changed, {} added, {} removed",
                count(|change| matches!(change, PackageChange::Changed { .. })),
                count(|change| matches!(change, PackageChange::Added { .. })),
                count(|change| matches!(change, PackageChange::Removed { .. })),
            )?;
            for change in changes {
                writeln!(out, "  {change}")?;
            }
        }
    }
    draw_kernels(out, &summary.kernels)?;
    for (what, changes) in [
        ("Units:   ", &summary.units),
        ("Setuid:  ", &summary.setuid),
        ("Capable: ", &summary.capabilities),
    ] {
        if changes.is_empty() {
            continue;
        }
        writeln!(
            out,
            "{what} {} changed, {} added, {} removed",
            changes.changed.len(),
            changes.added.len(),
            changes.removed.len()
        )?;
        for (sign, paths) in [
            ('+', &changes.added),
            ('-', &changes.removed),
            ('~', &changes.changed),
        ] {
            for path in paths {
                writeln!(out, "  {sign} {path}")?;
            }
        }
    }
    let (before, after) = summary.bytes;
    writeln!(
        out,
        "Size:     {} → {}, {} of it new",
        bytes(before),
        bytes(after),
        bytes(summary.new_bytes)
    )?;
    let paths = summary.paths;
    writeln!(
        out,
        "Paths:    {} added, {} removed, {} changed",
        paths.added, paths.removed, paths.changed
    )
}

/// Draws all kernels of both where they are not the same.
fn draw_kernels(out: &mut dyn Write, kernels: &KernelChanges) -> io::Result<()> {
    let list = |others: &[String]| {
        let all: BTreeSet<&str> = kernels.kept.iter().chain(others).map(|it| &**it).collect();
        if all.is_empty() {
            "none".to_owned()
        } else {
            all.into_iter().collect::<Vec<_>>().join(", ")
        }
    };
    if kernels.is_empty() {
        return if kernels.kept.is_empty() {
            writeln!(out, "Kernel:   none")
        } else {
            writeln!(out, "Kernel:   the same ({})", list(&[]))
        };
    }
    if kernels.added.is_empty() && kernels.removed.is_empty() {
        writeln!(out, "Kernel:   {}", list(&[]))?;
    } else {
        let (old, new) = (list(&kernels.removed), list(&kernels.added));
        writeln!(out, "Kernel:   {old} → {new}")?;
    }
    for release in &kernels.changed {
        writeln!(out, "  ~ {release}: another kernel under the same release")?;
    }
    Ok(())
}

fn draw_path(out: &mut dyn Write, path: &Path) -> io::Result<()> {
    let sign = match path.change {
        "added" => '+',
        "removed" => '-',
        _ => '~',
    };
    if path.aspects.is_empty() {
        writeln!(out, "{sign} {}", path.path)
    } else {
        writeln!(out, "{sign} {} ({})", path.path, path.aspects.join(", "))
    }
}

fn paths(changes: Vec<Change>) -> Vec<Path> {
    let describe = |kind: ChangeKind| match kind {
        ChangeKind::Added => ("added", Vec::new()),
        ChangeKind::Removed => ("removed", Vec::new()),
        ChangeKind::Changed(aspects) => (
            "changed",
            aspects.into_iter().map(|aspect| aspect.name()).collect(),
        ),
    };
    changes
        .into_iter()
        .map(|change| {
            let path = change.path.to_string();
            let (change, aspects) = describe(change.kind);
            Path {
                path,
                change,
                aspects,
            }
        })
        .collect()
}

fn difference(
    summary: Summary,
    packages_unreadable: Vec<Unreadable>,
    paths: Option<Vec<Path>>,
    beyond: [&Beyond; 2],
) -> Difference {
    let package = |change| match change {
        PackageChange::Added { name, version } => Package {
            name,
            from: None,
            to: Some(version),
        },
        PackageChange::Removed { name, version } => Package {
            name,
            from: Some(version),
            to: None,
        },
        PackageChange::Changed { name, from, to } => Package {
            name,
            from: Some(from),
            to: Some(to),
        },
    };
    let texts = |list: &dyn Fn(&Beyond) -> Vec<&TreePath>| {
        let paths: BTreeSet<_> = beyond.into_iter().flat_map(list).collect();
        paths.into_iter().map(TreePath::to_string).collect()
    };
    Difference {
        packages: summary
            .packages
            .changes()
            .map(|changes| changes.iter().cloned().map(package).collect()),
        packages_unreadable,
        kernels_changed: summary.kernels.changed,
        kernels_added: summary.kernels.added,
        kernels_removed: summary.kernels.removed,
        units: summary.units.into(),
        setuid: summary.setuid.into(),
        capabilities: summary.capabilities.into(),
        bytes: [summary.bytes.0, summary.bytes.1],
        new_bytes: summary.new_bytes,
        paths_added: summary.paths.added,
        paths_removed: summary.paths.removed,
        paths_changed: summary.paths.changed,
        paths,
        left_out: texts(&|beyond| beyond.left_out.iter().collect()),
        unsteady: texts(&|beyond| beyond.unsteady.iter().map(|(path, _)| path).collect()),
    }
}
