//! `fsck`: checks every object, image and name of the store, repairs what a source still has, and makes
//! the index anew.

use std::io::{self, Write};

use anyhow::Context as _;
use bedplate_store::fsck::Source;
use bedplate_store::{Finding, RepairReport, Store, StoreSource};
use bedplate_transport::{PullOptions, RegistrySource};
use serde::Serialize;

use crate::Answer;
use crate::blame::sentence;
use crate::cli::Fsck;
use crate::context::Context;
use crate::render::{bytes, json};

/// What was found, for programs.
#[derive(Serialize)]
struct Report {
    items: u64,
    bytes: u64,
    /// What is wrong; after a repair, what still is.
    findings: Vec<String>,
    /// Only with `--repair`.
    #[serde(skip_serializing_if = "Option::is_none")]
    repair: Option<Repaired>,
    /// How many contents the index knows; only with `--rebuild-index`.
    #[serde(skip_serializing_if = "Option::is_none")]
    indexed: Option<u64>,
}

#[derive(Serialize)]
struct Repaired {
    /// Where the journal of names is now, if it could not be read.
    set_aside: Option<String>,
    repaired: Vec<Item>,
    failed_sources: Vec<Failed>,
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
    let report = if fsck.repair {
        let repair = repair(fsck, &store, context)?;
        Report {
            items: repair.checked.items,
            bytes: repair.checked.bytes,
            findings: texts(&repair.left),
            repair: Some(repaired(repair)),
            indexed: None,
        }
    } else if fsck.rebuild_index {
        let rebuilt = store.rebuild_index().with_context(attempted)?;
        let mut findings: Vec<String> = rebuilt.left_out.iter().map(|it| sentence(it)).collect();
        findings.sort();
        Report {
            items: rebuilt.items,
            bytes: rebuilt.bytes,
            findings,
            repair: None,
            indexed: Some(rebuilt.entries),
        }
    } else {
        let mut findings = Vec::new();
        let mut tell = |finding| findings.push(finding);
        let checked = if fsck.quick {
            store.fsck_quick(&mut tell)
        } else {
            store.fsck(&mut tell)
        }
        .with_context(attempted)?;
        Report {
            items: checked.items,
            bytes: checked.bytes,
            findings: texts(&findings),
            repair: None,
            indexed: None,
        }
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
    // A ref that cannot be read is a finding, and names no registry.
    let mut named = store.all_refs().unwrap_or_default();
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

fn texts(findings: &[Finding]) -> Vec<String> {
    let mut texts: Vec<String> = findings.iter().map(|it| sentence(it)).collect();
    texts.sort();
    texts
}

fn repaired(report: RepairReport) -> Repaired {
    Repaired {
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

fn draw(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    if let Some(repair) = &report.repair {
        if let Some(path) = &repair.set_aside {
            writeln!(
                out,
                "the journal of names could not be read and is set aside as {path}; each name is as its own \
                 file says"
            )?;
        }
        for Item { item, from } in &repair.repaired {
            writeln!(out, "repaired {item} from {from}")?;
        }
        for Failed { source, reason } in &repair.failed_sources {
            writeln!(out, "{source} was of no use: {reason}")?;
        }
    }
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
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
