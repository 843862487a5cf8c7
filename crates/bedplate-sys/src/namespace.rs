//! Mounts of one's own: what the program mounts or makes writable, nobody else sees.
//!
//! Invariant: called before threads start. A mount namespace belongs to a thread, and the threads
//! that it starts later inherit it.

use std::io;

use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

/// Leaves the shared mounts for a copy of them.
///
/// Mounts and unmounts of others still arrive here, so that nothing is kept in use by this copy; what
/// happens here stays here.
pub fn enter_private_mounts() -> io::Result<()> {
    // SAFETY: only the mount namespace is left, and with it the sharing of root and working directory
    // with other threads. Descriptors stay shared, which is what the call is unsafe about.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_inside_is_not_seen_outside() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().to_owned();
        let inside = std::thread::spawn(move || {
            enter_private_mounts()?;
            crate::mount::mount_filesystem(
                "tmpfs",
                std::path::Path::new("tmpfs"),
                &at,
                "",
                crate::mount::Access::ReadWrite,
            )?;
            std::fs::write(at.join("inside"), "")
        })
        .join()
        .unwrap();
        if let Err(error) = inside {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        }
        assert!(!directory.path().join("inside").exists());
    }
}
