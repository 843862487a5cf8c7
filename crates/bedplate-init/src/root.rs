//! The physical root and the image on it.
//!
//! Invariant: an image is mounted only after its own digest was measured by the kernel, and its objects
//! are compared with what the image says by overlayfs, or were before the mount. Both are left out only
//! where the command line permits it.

use std::fs::File;
use std::path::Path;

use bedplate_boot::cmdline::BootRoot;
use bedplate_model::layout;
use bedplate_sys::mount::{self, Access, ImageMount, MountFeatures, MountImageError, Verity};

use crate::console::Failure;
use crate::seal;

/// Mounts the file system of the physical root: sealing and state need it writable.
pub(crate) fn mount_physical(device: &Path, at: &Path, access: Access) -> Result<(), Failure> {
    mount::mount_filesystem("ext4", device, at, "", access)
        .map_err(|why| Failure::new(format!("mount the root {}", device.display()), why))
}

/// Opens the image that the command line names, and finds it to be that.
pub(crate) fn open_image(physical: &Path, wanted: &BootRoot) -> Result<File, Failure> {
    let name = wanted.image.to_hex();
    let path = physical.join(layout::STORE).join("images").join(name);
    let file = File::open(&path)
        .map_err(|why| Failure::new(format!("open the image {}", path.display()), why))?;
    if !wanted.unsealed_allowed {
        seal::check(&file, &wanted.image, &path)?;
    }
    Ok(file)
}

/// How an image came to be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// What the kernel could do.
    pub(crate) features: MountFeatures,
    /// Who compared the objects with their names.
    pub(crate) checked: Checked,
}

/// Who compared the objects of an image with their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    /// overlayfs does, at every open.
    ByOverlay,
    /// Early boot did, before the mount.
    BeforeMount,
    /// Nobody.
    Not,
}

impl Checked {
    /// The word for it in what the running system is told.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::ByOverlay => "require",
            Self::BeforeMount => "measured",
            Self::Not => "off",
        }
    }
}

/// Mounts an image over the store's objects.
pub(crate) fn mount_image(
    physical: &Path,
    image: &File,
    wanted: &BootRoot,
    at: &Path,
) -> Result<Mounted, Failure> {
    let objects = physical.join(layout::STORE).join("objects");
    let attempt = |verity| mount::mount_image(image, &objects, at, &ImageMount { verity });
    let mounted = |features, checked| Mounted { features, checked };
    let failed = |why: MountImageError| Failure::new(format!("mount the image {wanted}"), why);
    if wanted.unsealed_allowed {
        let features = attempt(Verity::Off).map_err(failed)?;
        return Ok(mounted(features, Checked::Not));
    }
    match attempt(Verity::Require) {
        Ok(features) => Ok(mounted(features, Checked::ByOverlay)),
        Err(MountImageError::NoVerity) => {
            seal::check_all(physical)?;
            let features = attempt(Verity::Off).map_err(failed)?;
            Ok(mounted(features, Checked::BeforeMount))
        }
        Err(why) => Err(failed(why)),
    }
}

/// Shows the physical root in the new one, read-only there. /etc and /var were bound before, and stay
/// writable.
pub(crate) fn move_physical(physical: &Path, new_root: &Path) -> Result<(), Failure> {
    let at = new_root.join("sysroot");
    mount::move_to(physical, &at)
        .and_then(|()| mount::set_access(&at, Access::ReadOnly))
        .map_err(|why| Failure::new("show the physical root in the image's /sysroot", why))
}
