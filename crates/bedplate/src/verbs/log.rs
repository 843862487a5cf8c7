//! `log`: shows which images a name had, and the steps that made the current one.

use anyhow::Context as _;
use bedplate_model::{Tree, oci};
use bedplate_store::diff::new_bytes;
use bedplate_store::{Found, RefTarget, Store};
use serde::Serialize;

use crate::Answer;
use crate::cli::Log;
use crate::context::{Context, find_image};
use crate::render::table::Table;
use crate::render::{bytes, json, moment, short};

/// What a name had, for programs.
#[derive(Serialize)]
struct History {
    /// Null where no name points at the image.
    name: Option<String>,
    root_digest: String,
    manifest_digest: Option<String>,
    /// When the name was set, in seconds since 1970; null without one.
    created: Option<i64>,
    /// Every image of the name, the current one first.
    images: Vec<Image>,
    /// The steps that made the current image, the last one first.
    steps: Vec<oci::History>,
}

#[derive(Serialize)]
struct Image {
    /// What the image can be called: `NAME~1`.
    revision: String,
    /// When the name was set to it, in seconds since 1970.
    created: i64,
    root_digest: String,
    manifest_digest: Option<String>,
    /// The bytes of all files, each hard-linked one once; null where the store has the image no more.
    size: Option<u64>,
    /// The bytes of contents that the image before it has not; null where there is none.
    new_bytes: Option<u64>,
}

pub(super) fn run(log: &Log, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let Found { name, target } = find_image(&store, &log.name)?;
    let attempted = || format!("cannot read the history of {}", log.name);
    // A name with a digest stands for one image, wherever that is found.
    let known = match &name {
        Some(name) if name.digest().is_none() => store.find_ref(name).with_context(attempted)?,
        _ => None,
    };
    let targets = known.map_or_else(
        || vec![target.clone()],
        |known| known.images().cloned().collect(),
    );
    let called = name
        .as_ref()
        .map_or_else(|| log.name.to_string(), ToString::to_string);
    let history = History {
        name: name.as_ref().map(ToString::to_string),
        root_digest: target.root.to_string(),
        manifest_digest: target.manifest.map(|digest| digest.to_string()),
        created: name.map(|_| target.created),
        images: images(&store, &called, &targets).with_context(attempted)?,
        steps: steps(&store, &target).with_context(attempted)?,
    };
    let out = &mut *context.out;
    if log.json {
        json(out, &history)?;
        return Ok(Answer::Yes);
    }
    let mut table = Table::new(["IMAGE", "CREATED", "ROOT DIGEST", "MANIFEST", "SIZE", "NEW"]);
    for image in history.images {
        let length = |length: Option<u64>| length.map_or_else(|| "-".to_owned(), bytes);
        table.row([
            image.revision,
            moment(image.created),
            short(&image.root_digest).to_owned(),
            image
                .manifest_digest
                .map_or_else(|| "-".to_owned(), |digest| short(&digest).to_owned()),
            image.size.map_or_else(|| "gone".to_owned(), bytes),
            length(image.new_bytes),
        ]);
    }
    table.write(out)?;
    for step in &history.steps {
        writeln!(
            out,
            "  step      {}  {}",
            step.created.as_deref().unwrap_or("-"),
            step.created_by.as_deref().unwrap_or("-"),
        )?;
    }
    Ok(Answer::Yes)
}

/// Describes the images of a name; each is read once.
fn images(store: &Store, name: &str, targets: &[RefTarget]) -> anyhow::Result<Vec<Image>> {
    let mut images = Vec::new();
    let mut earlier: Option<Tree> = None;
    // From the oldest on, so that each meets the one before it.
    for (back, target) in targets.iter().enumerate().rev() {
        // An earlier image may be gone; that the current one is would be damage.
        let tree = if back == 0 || store.has(&bedplate_store::Item::Image(target.root.image)) {
            Some(store.tree(&target.root)?)
        } else {
            None
        };
        images.push(Image {
            revision: match back {
                0 => name.to_owned(),
                back => format!("{name}~{back}"),
            },
            created: target.created,
            root_digest: target.root.to_string(),
            manifest_digest: target.manifest.map(|digest| digest.to_string()),
            size: tree.as_ref().map(Tree::file_bytes),
            new_bytes: match (&earlier, &tree) {
                (Some(earlier), Some(tree)) => Some(new_bytes(earlier, tree)),
                _ => None,
            },
        });
        earlier = tree;
    }
    images.reverse();
    Ok(images)
}

/// Reads the steps that made an image, the last one first.
fn steps(store: &Store, target: &RefTarget) -> anyhow::Result<Vec<oci::History>> {
    let Some(digest) = &target.config else {
        return Ok(Vec::new());
    };
    let config: oci::Config = serde_json::from_slice(&store.blob(digest)?)?;
    let mut steps = config.history;
    steps.reverse();
    Ok(steps)
}
