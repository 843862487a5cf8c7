//! `gc`: removes what no name, deployment or mount reaches; names forget earlier images where asked to.

use std::collections::HashMap;
use std::io::{self, Write};

use anyhow::Context as _;
use bedplate_store::gc::Reason;
use bedplate_store::{GcPolicy, GcReport, Item};
use serde::Serialize;

use super::fsck::give_again;
use crate::Answer;
use crate::cli::Gc;
use crate::context::Context;
use crate::mounts;
use crate::render::table::Table;
use crate::render::{bytes, counted, json, moment, short};

/// What was removed, for programs.
#[derive(Serialize)]
struct Report {
    dry_run: bool,
    /// Earlier images that names forgot.
    forgotten: Vec<Forgotten>,
    /// Root digests' last part of the images that went.
    images: Vec<Image>,
    removed: u64,
    removed_objects: u64,
    /// With the bytes of abandoned transactions.
    freed_bytes: u64,
    kept: u64,
    abandoned_transactions: u64,
    abandoned_bytes: u64,
    /// Names whose files were damaged: as long as these files lie there, every image stays.
    lost_names: Vec<LostName>,
    /// How many images stay for those alone.
    kept_unnamed: u64,
    /// Only where `--max-size` cannot be reached: what stays whatever is forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    least_bytes: Option<u64>,
    /// Pins of mounts that are gone.
    given_up_mounts: Vec<String>,
}

#[derive(Serialize)]
struct LostName {
    name: Option<String>,
    file: String,
}

#[derive(Serialize)]
struct Forgotten {
    name: String,
    /// How many images back it was.
    back: u32,
    root_digest: String,
    created: i64,
    reason: &'static str,
}

#[derive(Serialize)]
struct Image {
    image: String,
    bytes: u64,
    reason: String,
}

pub(super) fn run(gc: &Gc, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let now = context.host.now();
    let policy = GcPolicy {
        keep: gc.keep,
        replaced_before: gc.older_than.map(|age| now.saturating_sub_unsigned(age)),
        max_bytes: gc.max_size,
        ..GcPolicy::default()
    };
    let attempted = || format!("cannot collect garbage in {}", store.path().display());
    let mut given_up = Vec::new();
    for (pin, hold) in mounts::gone(&store).with_context(attempted)? {
        if gc.dry_run
            || store
                .give_up_mount(&pin.name, &hold)
                .with_context(attempted)?
        {
            given_up.push(pin.name);
        }
    }
    let report = store
        .gc_without(&policy, gc.dry_run, &given_up)
        .with_context(attempted)?;
    let images = images(&report);
    if gc.json {
        let document = document(gc.dry_run, &report, images, given_up);
        json(context.out, &document)?;
        return Ok(Answer::Yes);
    }
    let out = &mut *context.out;
    let (forget, remove) = if gc.dry_run {
        ("FORGET", "would remove")
    } else {
        ("FORGOT", "removed")
    };
    for name in &given_up {
        writeln!(
            out,
            "the mount of {name} is gone; {} its image",
            if gc.dry_run {
                "it would no longer hold"
            } else {
                "it no longer holds"
            }
        )?;
    }
    forgotten(out, forget, &report)?;
    if gc.dry_run {
        plan(out, &report, images)?;
    }
    writeln!(
        out,
        "{remove} {} with {}; {} stay",
        counted(report.removed.len() as u64, "item"),
        bytes(report.removed_bytes()),
        report.kept,
    )?;
    if report.abandoned > 0 {
        writeln!(
            out,
            "{remove} what {} had written, {}",
            counted(report.abandoned, "abandoned transaction"),
            bytes(report.abandoned_bytes),
        )?;
    }
    if let (Some(least), Some(max)) = (report.too_much, gc.max_size) {
        writeln!(
            out,
            "the store cannot have at most {}: what names point at now, mounts and deployments take {}",
            bytes(max),
            bytes(least),
        )?;
    }
    kept_for_names(out, &report)?;
    Ok(Answer::Yes)
}

/// Says what stays because names were lost, and how that ends.
fn kept_for_names(out: &mut dyn Write, report: &GcReport) -> io::Result<()> {
    if report.set_aside.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "no image goes and none is forgotten while damaged files of names are kept; {} without a name",
        match report.kept_unnamed {
            1 => "1 image stays".to_owned(),
            count => format!("{count} images stay"),
        }
    )?;
    for file in &report.set_aside {
        let name = file.name.as_ref().map(ToString::to_string);
        if file.is_named_again {
            writeln!(
                out,
                "  {}: there is such a name again; bedplate fsck --repair forgets the file",
                file.path.display()
            )?;
        } else {
            writeln!(
                out,
                "  {}: {}; then bedplate fsck --repair, or remove the file",
                file.path.display(),
                give_again(name.as_deref(), file.roots.first().copied())
            )?;
        }
    }
    Ok(())
}

/// Draws what names forget.
fn forgotten(out: &mut dyn Write, title: &str, report: &GcReport) -> io::Result<()> {
    if !report.forgotten.is_empty() {
        let mut table = Table::new([title, "ROOT DIGEST", "CREATED", "BECAUSE"]);
        for entry in &report.forgotten {
            table.row([
                format!("{}~{}", entry.name, entry.back),
                short(&entry.target.root.to_string()).to_owned(),
                moment(entry.target.created),
                sentence(entry.reason).to_owned(),
            ]);
        }
        table.write(out)?;
    }
    Ok(())
}

/// Draws what would be done.
fn plan(out: &mut dyn Write, report: &GcReport, images: Vec<Image>) -> io::Result<()> {
    if !images.is_empty() {
        let mut table = Table::new(["REMOVE", "SIZE", "BECAUSE"]);
        for image in images {
            table.row([
                format!("image {}", short(&image.image)),
                bytes(image.bytes),
                image.reason,
            ]);
        }
        table.write(out)?;
    }
    type Wanted = fn(&Item) -> bool;
    let kinds: [(&str, Wanted); 3] = [
        ("objects", |item| matches!(item, Item::Object(_))),
        ("layers", |item| matches!(item, Item::Layer(_))),
        ("manifests and configs", |item| {
            matches!(item, Item::Blob(_))
        }),
    ];
    for (what, wanted) in kinds {
        let items = report.removed.iter().filter(|(item, _)| wanted(item));
        let (count, length) = items.fold((0_u64, 0_u64), |(count, sum), (_, length)| {
            (count + 1, sum.saturating_add(*length))
        });
        if count > 0 {
            writeln!(out, "{count} {what}, {}", bytes(length))?;
        }
    }
    Ok(())
}

/// Lists the images that go, and why.
fn images(report: &GcReport) -> Vec<Image> {
    let mut names: HashMap<_, Vec<String>> = HashMap::new();
    for entry in &report.forgotten {
        let image = names.entry(entry.target.root.image).or_default();
        image.push(format!("{}~{}", entry.name, entry.back));
    }
    let images = report
        .removed
        .iter()
        .filter_map(|(item, bytes)| match item {
            Item::Image(id) => Some((id, *bytes)),
            Item::Object(_) | Item::Layer(_) | Item::Blob(_) => None,
        });
    images
        .map(|(id, bytes)| Image {
            image: id.to_string(),
            bytes,
            reason: match names.get(id) {
                Some(names) => format!("forgotten: {}", names.join(", ")),
                None => "no name, deployment or mount reaches it".to_owned(),
            },
        })
        .collect()
}

fn document(dry_run: bool, report: &GcReport, images: Vec<Image>, given_up: Vec<String>) -> Report {
    let objects = report.removed.iter();
    let objects = objects.filter(|(item, _)| matches!(item, Item::Object(_)));
    Report {
        dry_run,
        forgotten: report
            .forgotten
            .iter()
            .map(|entry| Forgotten {
                name: entry.name.to_string(),
                back: entry.back,
                root_digest: entry.target.root.to_string(),
                created: entry.target.created,
                reason: match entry.reason {
                    Reason::Count => "count",
                    Reason::Age => "age",
                    Reason::Size => "size",
                    Reason::Gone => "gone",
                },
            })
            .collect(),
        images,
        removed: report.removed.len() as u64,
        removed_objects: objects.count() as u64,
        freed_bytes: report.freed_bytes(),
        kept: report.kept,
        abandoned_transactions: report.abandoned,
        abandoned_bytes: report.abandoned_bytes,
        lost_names: report
            .set_aside
            .iter()
            .map(|file| LostName {
                name: file.name.as_ref().map(ToString::to_string),
                file: file.path.display().to_string(),
            })
            .collect(),
        kept_unnamed: report.kept_unnamed,
        least_bytes: report.too_much,
        given_up_mounts: given_up,
    }
}

fn sentence(reason: Reason) -> &'static str {
    match reason {
        Reason::Count => "the name keeps fewer images",
        Reason::Age => "it was replaced too long ago",
        Reason::Size => "the store is to be smaller",
        Reason::Gone => "the store has it no more",
    }
}
