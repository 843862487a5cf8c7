//! What a machine may change: the deployment's /etc and the machine's /var.
//!
//! ```text
//! image's /etc ─→ deployments/<id>/etc.new → sync → rename → etc      only where there is none
//!                 deployments/<id>/etc-layer, or /run, over it            where /etc is a layer
//! image's /var ─→ var.new                  → sync → rename → var      only on a new machine
//! ```
//!
//! Invariant: a directory with its final name is whole. Merging is not done here: whoever stages a
//! deployment makes its /etc, and early boot makes only a new machine's.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bedplate_boot::cmdline::BootRoot;
use bedplate_model::layout;
use bedplate_model::record::{DeploymentId, EtcMode};
use bedplate_sys::durable;
use bedplate_sys::mount::{self, Access, ImageMount, Layer, Verity};

use crate::console::Failure;
use crate::copy;

/// What an /etc that keeps nothing is written to.
const TRANSIENT: &str = "/run/bedplate/etc";
/// Where an image is mounted for a moment.
const SCRATCH: &str = "/erofs";

/// The /etc that is wanted.
pub(crate) struct Etc<'a> {
    pub(crate) deployment: DeploymentId,
    pub(crate) mode: EtcMode,
    pub(crate) image: &'a File,
    pub(crate) wanted: &'a BootRoot,
}

/// Provides the deployment's /etc, made of the image's where there is none.
pub(crate) fn provide_etc(physical: &Path, etc: &Etc<'_>, new_root: &Path) -> Result<(), Failure> {
    let at = new_root.join(layout::ETC);
    let home = physical
        .join(layout::DEPLOYMENTS)
        .join(etc.deployment.to_string());
    let made = |path: &Path| {
        fs::create_dir_all(path)
            .map_err(|why| Failure::new(format!("make {}", path.display()), why))
    };
    match etc.mode {
        EtcMode::Merged => {
            made(&home)?;
            provide(&at, &home, layout::ETC)
        }
        EtcMode::Overlay => {
            made(&home)?;
            let upper = home.join(layout::ETC_LAYER);
            lay_over(physical, etc, &at, &upper, &home.join(layout::ETC_WORK))
        }
        EtcMode::Transient => {
            // /run goes with the machine's memory, and moves into the new root with all that is in it.
            let place = Path::new(TRANSIENT);
            made(place)?;
            fs::set_permissions(place, fs::Permissions::from_mode(0o700))
                .map_err(|why| Failure::new(format!("protect {TRANSIENT}"), why))?;
            lay_over(
                physical,
                etc,
                &at,
                &place.join("layer"),
                &place.join("work"),
            )?;
            machine_id(physical, &at)
        }
        EtcMode::ReadOnly => machine_id(physical, &at),
    }
}

/// Lays a directory over the image's /etc, made where it is not there.
fn lay_over(
    physical: &Path,
    etc: &Etc<'_>,
    at: &Path,
    upper: &Path,
    work: &Path,
) -> Result<(), Failure> {
    let failed = |why: io::Error| Failure::new(format!("make {}", upper.display()), why);
    if !upper.exists() {
        // The layer's own directory is what /etc shows itself as.
        copy::directory(at, upper).map_err(|why| Failure::new("make a layer for /etc", why))?;
        let parent = upper.parent().unwrap_or(physical);
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(failed)?;
    }
    fs::create_dir_all(work).map_err(failed)?;
    let scratch = Path::new(SCRATCH);
    fs::create_dir_all(scratch).map_err(failed)?;
    let layer = Layer { upper, work };
    let how = ImageMount {
        verity: if etc.wanted.unsealed_allowed {
            Verity::Off
        } else {
            Verity::Require
        },
    };
    let objects = physical.join(layout::STORE).join("objects");
    let part = Path::new(layout::ETC);
    mount::mount_layer(etc.image, &objects, part, &layer, scratch, at, &how)
        .map_err(|why| Failure::new("lay what was written over /etc", why))?;
    // Not empty where the kernel still holds it: it is in the memory of the initramfs.
    let _ = fs::remove_dir(scratch);
    Ok(())
}

/// Gives the machine the same id at every boot, though its /etc keeps nothing. An image that brings one keeps it.
fn machine_id(physical: &Path, etc: &Path) -> Result<(), Failure> {
    let failed = |why: io::Error| Failure::new("give the machine its id", why);
    let at = etc.join("machine-id");
    let has_one = fs::read_to_string(&at).is_ok_and(|id| id.trim().len() == 32);
    if has_one || !at.exists() {
        return Ok(());
    }
    let kept = physical.join(layout::MACHINE_ID);
    if !kept.exists() {
        durable::replace(&kept, new_machine_id().map_err(failed)?.as_bytes(), 0o444)
            .map_err(failed)?;
    }
    // By a bind, so that the image's file stays what it is where nothing can be written.
    mount::bind(&kept, &at)
        .and_then(|()| mount::set_access(&at, Access::ReadOnly))
        .map_err(failed)
}

/// Makes an id as machine-id(5) has it: a random UUID of version 4 in lower-case digits.
fn new_machine_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(format!("{}\n", bedplate_model::digest::hex(&bytes)))
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
    durable::sync_filesystem(&opened).map_err(here(parent))?;
    durable::rename(&unfinished, &parent.join(name)).map_err(here(&unfinished))
}
