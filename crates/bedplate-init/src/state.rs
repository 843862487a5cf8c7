//! What a machine may change: the deployment's /etc and the machine's /var.
//!
//! ```text
//! image's /etc ─→ deployments/<id>/etc.new → sync → rename → etc      only where there is none
//! image's /var ─→ var.new                  → sync → rename → var      only on a new machine
//! ```
//!
//! Invariant: a directory with its final name is whole. Merging is not done here: whoever stages a
//! deployment makes its /etc, and early boot makes only a new machine's.

use std::fs::{self, File};
use std::path::Path;

use bedplate_model::layout;
use bedplate_model::record::DeploymentId;
use bedplate_sys::mount;

use crate::console::Failure;
use crate::copy;

/// Binds the deployment's /etc, made of the image's where there is none.
pub(crate) fn provide_etc(
    physical: &Path,
    deployment: DeploymentId,
    new_root: &Path,
) -> Result<(), Failure> {
    let directory = physical
        .join(layout::DEPLOYMENTS)
        .join(deployment.to_string());
    fs::create_dir_all(&directory)
        .map_err(|why| Failure::new(format!("make {}", directory.display()), why))?;
    provide(&new_root.join("etc"), &directory, "etc")
}

/// Binds the machine's /var, made of the image's where there is none.
pub(crate) fn provide_var(physical: &Path, new_root: &Path) -> Result<(), Failure> {
    let place = physical.join(layout::VAR);
    let parent = place.parent().unwrap_or(physical);
    provide(&new_root.join("var"), parent, "var")
}

fn provide(at: &Path, parent: &Path, name: &str) -> Result<(), Failure> {
    let state = parent.join(name);
    if !state.exists() {
        make(at, parent, name).map_err(|why| {
            Failure::new(
                format!("make {} of the image's /{name}", state.display()),
                why,
            )
        })?;
    }
    mount::bind(&state, at).map_err(|why| Failure::new(format!("bind /{name}"), why))
}

pub(crate) fn make(pristine: &Path, parent: &Path, name: &str) -> Result<(), copy::CopyError> {
    let unfinished = parent.join(format!("{name}.new"));
    let here = |path: &Path| {
        let path = path.to_owned();
        move |source| copy::CopyError { path, source }
    };
    let opened = File::open(parent).map_err(here(parent))?;
    // What a power cut left.
    bedplate_sys::files::remove_tree(&opened, format!("{name}.new").as_ref())
        .map_err(here(&unfinished))?;
    copy::tree(pristine, &unfinished)?;
    bedplate_sys::durable::sync_filesystem(&opened).map_err(here(parent))?;
    bedplate_sys::durable::rename(&unfinished, &parent.join(name)).map_err(here(&unfinished))
}
