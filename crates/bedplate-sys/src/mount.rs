//! Mounting: an image as a root file system, and the ordinary steps around it.
//!
//! ```text
//! image file ─→ EROFS (from the file itself, 6.12, or by a loop device)  ┐
//! objects/   ─→ a data-only layer (6.5), or an ordinary one below it     ┴→ overlay, read-only → `at`
//! ```
//!
//! What the kernel can do is found out by trying, the newest way first, never by its version: kernels
//! of distributions carry changes of later ones.
//!
//! Invariant: with [`Verity::Require`], either overlayfs itself compares every object with the digest
//! that the image names, or nothing is mounted.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};

use crate::loopdev;

/// What an image's mount has for its source: how it is known again.
const SOURCE: &str = "bedplate";

/// Whether overlayfs must find each object sealed with the digest that the image names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verity {
    /// It must, and a kernel that cannot is an error.
    Require,
    /// It need not: the caller has checked otherwise, or permits unsealed objects.
    Off,
}

/// How an image is mounted.
#[derive(Clone, Copy, Debug)]
pub struct ImageMount {
    /// Whether objects must be sealed.
    pub verity: Verity,
}

/// What the kernel could do for a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountFeatures {
    /// EROFS was mounted from its file; otherwise a loop device is between.
    pub erofs_file: bool,
    /// The objects are a data-only layer; otherwise they are an ordinary one, hidden by whiteouts.
    pub data_only: bool,
    /// overlayfs compares objects with their digests.
    pub overlay_verity: bool,
}

/// Mounts an image over its objects at a directory, read-only.
///
/// `image` must be open for reading. Uses `at` for the EROFS in between as well, for a moment, since
/// overlayfs takes no layer from a mount that is nowhere (before 6.15).
pub fn mount_image(
    image: &File,
    objects: &Path,
    at: &Path,
    how: &ImageMount,
) -> Result<MountFeatures, MountImageError> {
    let (erofs, erofs_file) = open_erofs(image)?;
    attach(&erofs, at).map_err(|source| MountImageError::Attach {
        at: at.into(),
        source,
    })?;
    let lower = Lower {
        erofs: at,
        objects,
        nested: None,
    };
    let overlay = open_overlay(&lower, how.verity, None);
    // The overlay holds the EROFS by itself from here on, and a failure must leave nothing behind.
    let detached = unmount(at, Unmount::Lazily);
    let (overlay, data_only, overlay_verity) = overlay?;
    detached
        .and_then(|()| attach(&overlay, at))
        .map_err(|source| MountImageError::Attach {
            at: at.into(),
            source,
        })?;
    Ok(MountFeatures {
        erofs_file,
        data_only,
        overlay_verity,
    })
}

/// Where what is written to a part of an image goes.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// The directory that holds what was written. It has the attributes that the part's own directory shows.
    pub upper: &'a Path,
    /// An empty directory of the same file system, for overlayfs alone.
    pub work: &'a Path,
}

/// Mounts a directory of an image once more, under a layer that takes what is written, at `at`, where that
/// directory is shown already.
///
/// This is an overlay of its own over EROFS and objects, since overlayfs stacks two deep and an EROFS on its file
/// counts. Where the kernel has no data-only layers, and so no EROFS on files either, it goes over what is shown
/// at `at`. `scratch` is an empty directory, used for a moment.
pub fn mount_layer(
    image: &File,
    objects: &Path,
    part: &Path,
    layer: &Layer<'_>,
    scratch: &Path,
    at: &Path,
    how: &ImageMount,
) -> Result<(), MountImageError> {
    let attached = |source| MountImageError::Attach {
        at: at.into(),
        source,
    };
    let (erofs, _) = open_erofs(image)?;
    attach(&erofs, scratch).map_err(|source| MountImageError::Attach {
        at: scratch.into(),
        source,
    })?;
    let lower = Lower {
        erofs: &scratch.join(part),
        objects,
        nested: Some(at),
    };
    let overlay = open_overlay(&lower, how.verity, Some(layer));
    let detached = unmount(scratch, Unmount::Lazily);
    let (overlay, ..) = overlay?;
    detached
        .and_then(|()| attach(&overlay, at))
        .map_err(attached)
}

/// Why an image could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountImageError {
    /// The kernel has no EROFS, or the image is none.
    #[error("cannot mount the image as EROFS")]
    Erofs(#[source] io::Error),
    /// No loop device for a kernel that needs one.
    #[error("cannot set up a loop device for the image")]
    Loop(#[source] io::Error),
    /// The directory of objects cannot be opened.
    #[error("cannot open the objects at {path}")]
    Objects {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel's overlayfs cannot compare objects with digests.
    #[error("the kernel's overlayfs has no `verity=require`")]
    NoVerity,
    /// overlayfs refused every way of stacking.
    #[error("cannot mount the overlay of image and objects")]
    Overlay(#[source] io::Error),
    /// The mount could not be put where it belongs.
    #[error("cannot mount at {at}")]
    Attach {
        /// The place.
        at: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn open_erofs(image: &File) -> Result<(OwnedFd, bool), MountImageError> {
    let by_file = new_mount("erofs", &fd_path(image), &[], Access::ReadOnly);
    match by_file {
        Ok(mount) => return Ok((mount, true)),
        // What a kernel says that wants a block device.
        Err(Errno::NOTBLK) => {}
        Err(error) => return Err(MountImageError::Erofs(error.into())),
    }
    let device = loopdev::attach_read_only(image).map_err(MountImageError::Loop)?;
    // The device frees itself when the last mount of it goes, so the handle may go now.
    let mount = new_mount("erofs", device.path(), &[], Access::ReadOnly)
        .map_err(|error| MountImageError::Erofs(error.into()))?;
    Ok((mount, false))
}

/// What an overlay lies over.
struct Lower<'a> {
    /// The EROFS, or a directory of it.
    erofs: &'a Path,
    objects: &'a Path,
    /// What shows the same already: where objects cannot be a layer without names, they would be seen.
    nested: Option<&'a Path>,
}

/// One way to tell overlayfs about its two layers.
#[derive(Clone, Copy)]
enum Stacking {
    /// One option for each layer (6.7).
    Separate,
    /// Both in `lowerdir`, with `::` before the data-only one (6.5).
    DataOnly,
    /// Both in `lowerdir` as ordinary layers.
    Ordinary,
}

fn open_overlay(
    lower: &Lower<'_>,
    verity: Verity,
    layer: Option<&Layer<'_>>,
) -> Result<(OwnedFd, bool, bool), MountImageError> {
    let opened = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty())
    };
    let failed = |error: Errno| MountImageError::Overlay(error.into());
    let objects = opened(lower.objects).map_err(|error| MountImageError::Objects {
        path: lower.objects.into(),
        source: error.into(),
    })?;
    let erofs = opened(lower.erofs).map_err(failed)?;
    let nested = lower.nested.map(opened).transpose().map_err(failed)?;
    let written = match layer {
        None => None,
        Some(layer) => Some((
            opened(layer.upper).map_err(failed)?,
            opened(layer.work).map_err(failed)?,
        )),
    };
    // Paths by number: overlayfs would take colons and commas of real ones for its own.
    let (erofs, objects) = (fd_path(&erofs), fd_path_of(&objects));
    let access = if written.is_some() {
        Access::ReadWrite
    } else {
        Access::ReadOnly
    };
    let attempt = |stacking: Stacking, with_verity: bool| {
        let both = |between: &str| format!("{}{between}{objects}", erofs.display());
        let mut options = vec![("metacopy", "on".to_owned()), ("redirect_dir", "on".into())];
        match stacking {
            Stacking::Separate => {
                options.push(("lowerdir+", erofs.display().to_string()));
                options.push(("datadir+", objects.clone()));
            }
            Stacking::DataOnly => options.push(("lowerdir", both("::"))),
            Stacking::Ordinary => options.push((
                "lowerdir",
                nested.as_ref().map_or_else(|| both(":"), fd_path_of),
            )),
        }
        if let Some((upper, work)) = &written {
            options.push(("upperdir", fd_path_of(upper)));
            options.push(("workdir", fd_path_of(work)));
        }
        if with_verity {
            options.push(("verity", "require".into()));
        }
        new_mount("overlay", Path::new(SOURCE), &options, access)
    };
    let with_verity = verity == Verity::Require;
    let mut refused = Errno::INVAL;
    for stacking in [Stacking::Separate, Stacking::DataOnly, Stacking::Ordinary] {
        let data_only = !matches!(stacking, Stacking::Ordinary);
        // `verity=` came after data-only layers: no kernel has it without them.
        if with_verity && !data_only && lower.nested.is_none() {
            return Err(MountImageError::NoVerity);
        }
        match attempt(stacking, with_verity && data_only) {
            Ok(mount) => return Ok((mount, data_only, with_verity)),
            // An option or a form that this kernel does not know: the next older one. Kernels before
            // 6.5 look for a layer without a name, and do not find it.
            Err(error @ (Errno::INVAL | Errno::NOENT | Errno::OPNOTSUPP)) => refused = error,
            Err(error) => return Err(MountImageError::Overlay(error.into())),
        }
    }
    Err(MountImageError::Overlay(refused.into()))
}

/// Mounts a file system that needs nothing but its type, source and options, at a directory.
pub fn mount_filesystem(
    kind: &str,
    source: &Path,
    at: &Path,
    options: &str,
    access: Access,
) -> io::Result<()> {
    let flags = match access {
        Access::ReadOnly => MountFlags::RDONLY,
        Access::ReadWrite => MountFlags::empty(),
    };
    let options = std::ffi::CString::new(options)?;
    Ok(rustix::mount::mount(source, at, kind, flags, &*options)?)
}

/// Whether a mount may be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may not.
    ReadOnly,
    /// It may.
    ReadWrite,
}

/// Returns whether something is mounted at a directory.
pub fn is_mount_point(at: &Path) -> io::Result<bool> {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
    let stat = rustix::fs::statx(CWD, at, AtFlags::empty(), StatxFlags::empty())?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Returns whether what is mounted at a directory (the topmost, where there are several) was mounted by
/// [`mount_image`]. The path is absolute, and no part of it is a link.
pub fn is_image_mount(at: &Path) -> io::Result<bool> {
    Ok(is_image_line(
        &std::fs::read("/proc/self/mountinfo")?,
        at.as_os_str().as_bytes(),
    ))
}

/// Reads `mountinfo` (proc(5)): the place is the fifth word; type and source follow the word `-`.
fn is_image_line(table: &[u8], at: &[u8]) -> bool {
    let mut place = Vec::with_capacity(at.len());
    for byte in at {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => place.extend(format!("\\{byte:03o}").bytes()),
            _ => place.push(*byte),
        }
    }
    let lines = table.split(|byte| *byte == b'\n');
    let mut here = lines.filter_map(|line| {
        let mut words = line.split(|byte| *byte == b' ');
        if words.nth(4)? != place {
            return None;
        }
        words.find(|word| *word == b"-")?;
        Some((words.next()?, words.next()?))
    });
    here.next_back() == Some((b"overlay", SOURCE.as_bytes()))
}

/// Shows a directory at a second place.
pub fn bind(from: &Path, at: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_bind(from, at)?)
}

/// Makes the mount at a directory read-only or writable, there alone: the file system below stays as
/// it is, and so do the mount's other flags.
pub fn set_access(at: &Path, access: Access) -> io::Result<()> {
    let now = rustix::fs::statvfs(at)?.f_flag;
    let mut flags = MountFlags::BIND;
    for (set, flag) in [
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        if now.contains(set) {
            flags |= flag;
        }
    }
    if access == Access::ReadOnly {
        flags |= MountFlags::RDONLY;
    }
    Ok(rustix::mount::mount_remount(at, flags, "")?)
}

/// Makes a whole file system writable again, or read-only, wherever it is mounted.
pub fn set_filesystem_access(at: &Path, access: Access) -> io::Result<()> {
    let flags = match access {
        Access::ReadOnly => MountFlags::RDONLY,
        Access::ReadWrite => MountFlags::empty(),
    };
    Ok(rustix::mount::mount_remount(at, flags, "")?)
}

/// Moves a mount, with what is mounted below it.
pub fn move_to(from: &Path, at: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_move(from, at)?)
}

/// When an unmounted file system goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// At once: an error while somebody uses it.
    Now,
    /// Out of sight at once, and for good when nobody uses it any more.
    Lazily,
}

/// Takes the topmost mount at a directory away.
pub fn unmount(at: &Path, when: Unmount) -> io::Result<()> {
    let flags = match when {
        Unmount::Now => UnmountFlags::NOFOLLOW,
        Unmount::Lazily => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    Ok(rustix::mount::unmount(at, flags)?)
}

/// Makes a mount that is nowhere yet.
fn new_mount(
    kind: &str,
    source: &Path,
    options: &[(&str, String)],
    access: Access,
) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", source)?;
    let attributes = match access {
        Access::ReadOnly => {
            rustix::mount::fsconfig_set_flag(context.as_fd(), "ro")?;
            MountAttrFlags::MOUNT_ATTR_RDONLY
        }
        Access::ReadWrite => MountAttrFlags::empty(),
    };
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, value.as_str())?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn attach(mount: &OwnedFd, at: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", CWD, at, flags)?)
}

fn fd_path(file: &impl std::os::fd::AsFd) -> PathBuf {
    fd_path_of(file).into()
}

fn fd_path_of(file: &impl std::os::fd::AsFd) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_told_from_what_others_mounted() {
        let table = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            90 22 0:50 / /mnt/an\\040image ro shared:5 - overlay bedplate ro,lowerdir=x\n\
            91 22 0:51 / /mnt/other ro - overlay overlay ro\n\
            92 22 0:52 / /mnt/covered ro - overlay bedplate ro\n\
            93 92 0:53 / /mnt/covered rw - tmpfs bedplate rw\n";
        assert!(is_image_line(table, b"/mnt/an image"));
        for other in ["/", "/mnt/other", "/mnt/covered", "/mnt", ""] {
            assert!(!is_image_line(table, other.as_bytes()), "{other}");
        }
    }

    use crate::namespace;

    /// Runs in a thread with mounts of its own, where the test may mount at all.
    fn with_private_mounts(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(move || match namespace::enter_private_mounts() {
            Ok(()) => test(),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_bind_is_made_read_only_alone_and_writable_again() {
        with_private_mounts(|| {
            let directory = tempfile::tempdir().unwrap();
            let [real, shown] = ["real", "shown"].map(|name| directory.path().join(name));
            std::fs::create_dir(&real).unwrap();
            std::fs::create_dir(&shown).unwrap();
            bind(&real, &shown).unwrap();
            set_access(&shown, Access::ReadOnly).unwrap();
            let error = std::fs::write(shown.join("x"), "").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
            std::fs::write(real.join("x"), "").unwrap();
            set_access(&shown, Access::ReadWrite).unwrap();
            std::fs::write(shown.join("y"), "").unwrap();
            unmount(&shown, Unmount::Now).unwrap();
            assert!(!shown.join("y").exists() && real.join("y").exists());
        });
    }

    #[test]
    fn what_is_no_image_is_refused_and_nothing_stays_mounted() {
        with_private_mounts(|| {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("image");
            let at = directory.path().join("at");
            std::fs::create_dir(&at).unwrap();
            std::fs::write(&file, vec![0; 8192]).unwrap();
            let image = File::open(&file).unwrap();
            let how = ImageMount {
                verity: Verity::Off,
            };
            let error = mount_image(&image, directory.path(), &at, &how).unwrap_err();
            assert!(
                matches!(error, MountImageError::Erofs(_) | MountImageError::Loop(_)),
                "{error}"
            );
            assert!(unmount(&at, Unmount::Now).is_err());
        });
    }
}
