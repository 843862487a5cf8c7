//! `fsck`: checks every object, image and name of the store, repairs what a source still has, and makes
//! the index anew.

use std::io::{self, Write};

use anyhow::Context as _;
use bedplate_model::{ErofsVersion, RootDigest, RuleSet};
use bedplate_store::fsck::{Need, Source};
use bedplate_store::{Finding, ReadStoreError, RepairReport, SetAside, Store, StoreSource};
use bedplate_transport::{PullOptions, RegistrySource};
use serde::Serialize;

use crate::Answer;
use crate::blame::sentence;
use crate::cli::Fsck;
use crate::context::Context;
use crate::render::{bytes, json};

/// How many images are named for each finding; a program gets all.
const NEEDS_SHOWN: usize = 5;

/// What was found, for programs.
#[derive(Serialize)]
struct Report {
    items: u64,
    bytes: u64,
    /// What is wrong; after a repair, what still is.
    findings: Vec<Found>,
    /// Names that are gone because their files were damaged, and how to give each again.
    lost_names: Vec<NameAside>,
    /// Only where there are such names: images that nothing else keeps, and which may be theirs.
    unnamed_images: Vec<String>,
    /// Only with `--repair`.
    #[serde(skip_serializing_if = "Option::is_none")]
    repair: Option<Repaired>,
    /// How many contents the index knows; only with `--rebuild-index`.
    #[serde(skip_serializing_if = "Option::is_none")]
    indexed: Option<u64>,
}

/// One thing that is wrong.
#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    /// What is wrong, in a word; see [`kind`].
    kind: &'static str,
    /// What is wrong, in a sentence.
    message: String,
    /// What has to come again to set it right (`object 0123…`), where that would.
    item: Option<String>,
    /// The images that need the item.
    needed_by: Vec<NeededBy>,
}

/// An image that needs what is damaged or missing.
#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
struct NeededBy {
    /// Names, earlier images (`NAME~1`), pins; none where nothing keeps it.
    names: Vec<String>,
    /// The image (`image 0123…`), or a layer that no image shows as it is.
    by: String,
    /// Where an object is in it.
    path: Option<String>,
    /// In how many places.
    paths: u64,
}

#[derive(Serialize)]
struct Repaired {
    /// Where the journal of names is now, if it could not be read.
    set_aside: Option<String>,
    /// Names whose files could not be read.
    names_set_aside: Vec<NameAside>,
    /// Names that a source had.
    names_restored: Vec<Restored>,
    repaired: Vec<Item>,
    failed_sources: Vec<Failed>,
}

/// A name whose file was set aside.
#[derive(Serialize)]
struct NameAside {
    /// Unknown where the file's own name says nothing.
    name: Option<String>,
    /// Where the file is now.
    file: String,
    /// What it most likely pointed at, where that can be told.
    root_digest: Option<RootDigest>,
}

#[derive(Serialize)]
struct Restored {
    name: String,
    from: String,
}

#[derive(Serialize)]
struct Item {
    item: String,
    from: String,
}

#[derive(Serialize)]
struct Failed {
    source: String,
    reason: String,
}

pub(super) fn run(fsck: &Fsck, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let attempted = || format!("cannot check {}", store.path().display());
    let mut repair_done = None;
    let mut indexed = None;
    let mut findings = Vec::new();
    let (items, checked) = if fsck.repair {
        let mut repair = repair(fsck, &store, context)?;
        findings = std::mem::take(&mut repair.left);
        let checked = repair.checked;
        repair_done = Some(repaired(repair));
        (checked.items, checked.bytes)
    } else if fsck.rebuild_index {
        let rebuilt = store.rebuild_index().with_context(attempted)?;
        findings.extend(rebuilt.left_out.into_iter().map(Finding::from));
        indexed = Some(rebuilt.entries);
        (rebuilt.items, rebuilt.bytes)
    } else {
        let mut tell = |finding| findings.push(finding);
        let checked = if fsck.quick {
            store.fsck_quick(&mut tell)
        } else {
            store.fsck(&mut tell)
        }
        .with_context(attempted)?;
        (checked.items, checked.bytes)
    };
    let (lost_names, unnamed_images) = lost_names(&store, &findings);
    let report = Report {
        items,
        bytes: checked,
        findings: found(&store, &findings).with_context(attempted)?,
        lost_names,
        unnamed_images,
        repair: repair_done,
        indexed,
    };
    let answer = if report.findings.is_empty() {
        Answer::Yes
    } else {
        Answer::Damage
    };
    if fsck.json {
        json(context.out, &report)?;
    } else {
        draw(context.out, &report)?;
    }
    Ok(answer)
}

/// Repairs from the sources that were named, or from the registries that the store's images came from.
fn repair(fsck: &Fsck, store: &Store, context: &Context<'_>) -> anyhow::Result<RepairReport> {
    let attempted = || format!("cannot repair {}", store.path().display());
    let mut stores = Vec::new();
    for path in &fsck.from {
        let other = Store::open(path)
            .with_context(|| format!("cannot open the store {}", path.display()))?;
        stores.push(StoreSource::new(other));
    }
    // A ref that cannot be read is set aside, and names no registry.
    let mut named = store.readable_refs().unwrap_or_default().0;
    named.retain(|known| !known.name.is_local());
    let client = if named.is_empty() {
        None
    } else {
        Some(context.client(&fsck.remote)?)
    };
    let options = PullOptions::new(context.host.now());
    let mut registries: Vec<RegistrySource<'_>> = Vec::new();
    if let Some(client) = &client {
        for known in &named {
            for target in known.images() {
                registries.extend(RegistrySource::new(client, &known.name, target, &options));
            }
        }
    }
    let mut sources: Vec<&dyn Source> = Vec::new();
    sources.extend(stores.iter().map(|store| store as &dyn Source));
    sources.extend(registries.iter().map(|registry| registry as &dyn Source));
    store.repair(&sources).with_context(attempted)
}

/// Says of each finding what it is, and who needs what is damaged or missing.
fn found(store: &Store, findings: &[Finding]) -> io::Result<Vec<Found>> {
    let needs = store.needs(&findings.iter().filter_map(Finding::wanted).collect())?;
    let needed = |need: &Need| NeededBy {
        names: need.names.clone(),
        by: need.by.to_string(),
        path: need.path.as_ref().map(ToString::to_string),
        paths: need.paths,
    };
    let mut found: Vec<Found> = findings
        .iter()
        .map(|finding| {
            let item = finding.wanted();
            let needs = item.and_then(|item| needs.get(&item));
            Found {
                kind: kind(finding),
                message: sentence(finding),
                item: item.map(|item| item.to_string()),
                needed_by: needs.into_iter().flatten().map(needed).collect(),
            }
        })
        .collect();
    found.sort_by(|one, other| one.message.cmp(&other.message));
    Ok(found)
}

/// Returns the word for a kind of finding, which programs may rely on.
fn kind(finding: &Finding) -> &'static str {
    match finding {
        Finding::Unreadable(ReadStoreError::Read { .. }) => "unreadable",
        Finding::Unreadable(ReadStoreError::Missing(_))
        | Finding::Missing { .. }
        | Finding::Dangling { .. } => "missing",
        Finding::Unreadable(
            ReadStoreError::Damaged { .. }
            | ReadStoreError::TooLarge { .. }
            | ReadStoreError::Image { .. },
        )
        | Finding::SealedAsOther(_)
        | Finding::NotAFile(_)
        | Finding::Layer(..)
        | Finding::WrongSize { .. } => "damaged",
        Finding::Ref(_) | Finding::LostName(_) => "name",
        Finding::OvertakenJournal(_) => "journal",
        Finding::Part(_) => "directory",
        Finding::Stray(_) => "stray",
    }
}

/// Says which image it is, and where in it.
fn needed_by(need: &NeededBy) -> String {
    let who = if need.names.is_empty() {
        format!("{}, which has no name", need.by)
    } else {
        need.names.join(", ")
    };
    match (&need.path, need.paths) {
        (None, _) => who,
        (Some(path), 0 | 1) => format!("{who}: {path}"),
        (Some(path), 2) => format!("{who}: {path} and 1 more path"),
        (Some(path), paths) => format!("{who}: {path} and {} more paths", paths - 1),
    }
}

/// Lists the names that are gone, with what each most likely pointed at, and the images without a name.
fn lost_names(store: &Store, findings: &[Finding]) -> (Vec<NameAside>, Vec<String>) {
    let lost = findings.iter().filter_map(|finding| match finding {
        Finding::LostName(file) => Some(file),
        _ => None,
    });
    let mut lost: Vec<NameAside> = lost.map(name_aside).collect();
    if lost.is_empty() {
        return (lost, Vec::new());
    }
    // Where names cannot be read, that is a finding of its own.
    let unnamed = store.unnamed_images().unwrap_or_default();
    if let ([only], [image]) = (&mut lost[..], &unnamed[..]) {
        only.root_digest = only.root_digest.or(Some(RootDigest {
            rules: RuleSet::Exact1,
            erofs: ErofsVersion::V1,
            image: *image,
        }));
    }
    let unnamed = unnamed.iter().map(ToString::to_string).collect();
    (lost, unnamed)
}

fn name_aside(file: &SetAside) -> NameAside {
    NameAside {
        name: file.name.as_ref().map(ToString::to_string),
        file: file.path.display().to_string(),
        root_digest: file.roots.first().copied(),
    }
}

fn repaired(report: RepairReport) -> Repaired {
    let restored = report.names_restored.into_iter();
    Repaired {
        names_set_aside: report.names_set_aside.iter().map(name_aside).collect(),
        names_restored: restored
            .map(|(name, from)| Restored {
                name: name.to_string(),
                from,
            })
            .collect(),
        set_aside: report.set_aside.map(|path| path.display().to_string()),
        repaired: report
            .repaired
            .into_iter()
            .map(|(item, from)| Item {
                item: item.to_string(),
                from,
            })
            .collect(),
        failed_sources: report
            .failed
            .into_iter()
            .map(|(source, error)| Failed {
                source,
                reason: sentence(&*error),
            })
            .collect(),
    }
}

/// Says what became of the files of names.
fn names_set_aside(out: &mut dyn Write, repair: &Repaired) -> io::Result<()> {
    for aside in &repair.names_set_aside {
        writeln!(
            out,
            "the file of {} could not be read and is set aside as {}",
            aside.name.as_deref().unwrap_or("a name"),
            aside.file
        )?;
    }
    for Restored { name, from } in &repair.names_restored {
        writeln!(out, "{name} is there again, from {from}")?;
    }
    Ok(())
}

/// Says how to give lost names again.
fn draw_lost_names(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    if report.lost_names.is_empty() {
        return Ok(());
    }
    for lost in &report.lost_names {
        writeln!(
            out,
            "to give {} again: {}",
            lost.name.as_deref().unwrap_or("the name"),
            give_again(lost.name.as_deref(), lost.root_digest)
        )?;
    }
    writeln!(
        out,
        "then `bedplate fsck --repair` forgets what was set aside; until then gc takes no image"
    )?;
    if !report.unnamed_images.is_empty() {
        writeln!(out, "images that have no name:")?;
    }
    for image in &report.unnamed_images {
        writeln!(out, "  {image}")?;
    }
    Ok(())
}

/// Returns the command that gives a lost name again.
pub(super) fn give_again(name: Option<&str>, root: Option<RootDigest>) -> String {
    let name = name.unwrap_or("NAME");
    match root {
        Some(root) => format!("bedplate tag {root} {name}"),
        None => format!("bedplate pull, or bedplate tag exact-1/v1-sha256-12:IMAGE {name}"),
    }
}

fn draw(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    if let Some(repair) = &report.repair {
        if let Some(path) = &repair.set_aside {
            writeln!(
                out,
                "the journal of names could not be read and is set aside as {path}; each name is as its own \
                 file says"
            )?;
        }
        names_set_aside(out, repair)?;
        for Item { item, from } in &repair.repaired {
            writeln!(out, "repaired {item} from {from}")?;
        }
        for Failed { source, reason } in &repair.failed_sources {
            writeln!(out, "{source} was of no use: {reason}")?;
        }
    }
    for finding in &report.findings {
        writeln!(out, "{}", finding.message)?;
        for need in finding.needed_by.iter().take(NEEDS_SHOWN) {
            writeln!(out, "  needed by {}", needed_by(need))?;
        }
        if let Some(more @ 1..) = finding.needed_by.len().checked_sub(NEEDS_SHOWN) {
            writeln!(out, "  and by {more} more; --json lists them")?;
        }
    }
    draw_lost_names(out, report)?;
    if let Some(contents) = report.indexed {
        writeln!(out, "the index knows {contents} contents")?;
    }
    let still = if report.repair.is_some() { " left" } else { "" };
    writeln!(
        out,
        "checked {} items with {}: {}",
        report.items,
        bytes(report.bytes),
        match report.findings.len() {
            0 => "all is well".to_owned(),
            1 => format!("1 finding{still}"),
            count => format!("{count} findings{still}"),
        },
    )
}
