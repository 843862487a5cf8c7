//! A look: a directory is compared, not kept, and may be one in which others work meanwhile.
//!
//! ```text
//! look(directory, scope) ─→ Look { tree, left_out, unsteady }
//! set_aside(paths, tree, other)        what was not looked at is no difference
//! ```
//!
//! Invariants: what changes while it is read is named and not compared, never guessed; of the running
//! system everything is taken that an image could have brought, and nothing that only a machine has.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bedplate_model::{Name, Tree, TreePath};
use bedplate_sys::files;

use crate::diff::MACHINE_DATABASES;
use crate::scan::{ContentSink, ScanError, ScanObserver, scan_watched};

/// Directories of a running system whose contents are the kernel's, this boot's or the machine's.
const STATE: [&str; 7] = ["dev", "proc", "run", "sys", "sysroot", "tmp", "var"];
/// What belongs to the system also where something is mounted there: a deployment's own /etc, a /usr that
/// is a file system of its own.
const SYSTEM: [&str; 2] = ["etc", "usr"];

/// What of a directory belongs to a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything in it.
    Everything,
    /// What an image could have brought: no other mounts, and nothing of /dev, /proc, /run, /sys,
    /// /sysroot, /tmp and /var.
    RunningSystem,
}

impl Scope {
    /// Decides by device and inode of a directory, and of the root that this process sees.
    ///
    /// By these, and not by the path: `/`, `/usr/..` and `/proc/1/root` are one.
    pub fn of(directory: (u64, u64), root: (u64, u64)) -> Self {
        if directory == root {
            Self::RunningSystem
        } else {
            Self::Everything
        }
    }
}

/// What happened to an entry while it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unsteady {
    /// It is another than it was when reading began.
    Changed,
    /// It is gone.
    Vanished,
}

/// A directory as it was seen.
#[derive(Debug)]
pub struct Look {
    /// What was seen.
    pub tree: Tree,
    /// What the scope leaves out, in order.
    pub left_out: Vec<TreePath>,
    /// What changed while it was read, and is not in the tree, in order.
    pub unsteady: Vec<(TreePath, Unsteady)>,
}

/// Looks at a directory; contents of files go to `contents`.
pub fn look(
    path: &Path,
    scope: Scope,
    contents: &dyn ContentSink,
    observer: &dyn ScanObserver,
) -> Result<Look, ScanError> {
    let watch = Watch {
        root: path.to_owned(),
        scope,
        seen: Mutex::default(),
    };
    let tree = scan_watched(path, contents, observer, Some(&watch))?;
    let mut seen = watch
        .seen
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    seen.left_out.sort_unstable();
    seen.unsteady.sort_unstable();
    seen.unsteady.dedup();
    Ok(Look {
        tree,
        left_out: seen.left_out,
        unsteady: seen.unsteady,
    })
}

/// Takes what was left out of a look, and what did not hold still, off both trees that are compared, so
/// that neither is a difference; a directory that one side alone has stays there, empty.
pub fn set_aside<'a>(
    paths: impl IntoIterator<Item = &'a TreePath>,
    one: &mut Tree,
    other: &mut Tree,
) {
    for path in paths {
        let Some((parents, name)) = path.split_last() else {
            continue; // the root is always looked at
        };
        let parents: TreePath = parents.iter().cloned().collect();
        let place = |tree: &Tree| {
            let parent = tree.lookup(&parents)?;
            Some((parent, tree.child(parent, name.as_bytes())?))
        };
        let alone = |tree: &mut Tree, (parent, id)| {
            if tree.clear(id).is_err() {
                tree.remove(parent, name.as_bytes());
            }
        };
        match (place(one), place(other)) {
            (None, None) => {}
            (Some((here, _)), Some((there, _))) => {
                one.remove(here, name.as_bytes());
                other.remove(there, name.as_bytes());
            }
            (Some(found), None) => alone(one, found),
            (None, Some(found)) => alone(other, found),
        }
    }
}

/// What a scan asks and tells while it is a look.
pub(crate) struct Watch {
    root: PathBuf,
    scope: Scope,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    left_out: Vec<TreePath>,
    unsteady: Vec<(TreePath, Unsteady)>,
}

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is taken, a directory with what is below it.
    Take,
    /// A directory is taken without what is below it, anything else not at all.
    LeaveOut,
}

impl Watch {
    /// Says whether an entry belongs to the look; asks for no mount that is only made when it is used.
    pub(crate) fn verdict(
        &self,
        directory: (&Path, &OwnedFd),
        name: &OsStr,
        is_directory: bool,
    ) -> io::Result<Verdict> {
        if self.scope == Scope::Everything {
            return Ok(Verdict::Take);
        }
        let path = directory.0.join(name);
        let below = path.strip_prefix(&self.root).unwrap_or(&path);
        let is_mount = files::is_mount(directory.1, name)?;
        let (verdict, named) = judge(below, is_directory, is_mount);
        if named {
            self.seen().left_out.push(tree_path(below));
        }
        Ok(verdict)
    }

    /// Notes what did not hold still, where that is what an error says; gives back every other error.
    pub(crate) fn note(&self, error: ScanError) -> Result<(), ScanError> {
        let Some((path, what)) = error.unsteady() else {
            return Err(error);
        };
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        self.seen().unsteady.push((tree_path(below), what));
        Ok(())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decides about an entry of the running system by its path below the root; says also whether it is to be
/// named as left out.
fn judge(path: &Path, is_directory: bool, is_mount: bool) -> (Verdict, bool) {
    let is = |names: &[&str]| names.iter().any(|name| path == Path::new(name));
    if is_directory && path.starts_with("var") {
        // The packages of a system that keeps them there are wanted all the same.
        let leads_to_packages = MACHINE_DATABASES
            .iter()
            .any(|database| Path::new(database).starts_with(path) || path.starts_with(database));
        let verdict = if leads_to_packages {
            Verdict::Take
        } else {
            Verdict::LeaveOut
        };
        return (verdict, is(&["var"]));
    }
    if path.starts_with("var") && path.components().count() > 1 {
        return (Verdict::Take, false); // set aside with /var when it comes to comparing
    }
    let left_out = (is_mount && !is(&SYSTEM)) || (is_directory && is(&STATE));
    if left_out {
        (Verdict::LeaveOut, true)
    } else {
        (Verdict::Take, false)
    }
}

fn tree_path(below: &Path) -> TreePath {
    // What no tree can hold was refused when it was scanned.
    below
        .iter()
        .filter_map(|name| Name::new(name.as_bytes()).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_system_is_known_by_its_root_and_not_by_its_name() {
        assert_eq!(Scope::of((1, 2), (1, 2)), Scope::RunningSystem);
        assert_eq!(Scope::of((1, 3), (1, 2)), Scope::Everything);
        assert_eq!(Scope::of((2, 2), (1, 2)), Scope::Everything);
    }

    #[test]
    fn of_a_running_system_what_an_image_brings_is_taken() {
        use Verdict::{LeaveOut, Take};
        let directory = |path: &str, is_mount| judge(Path::new(path), true, is_mount);
        for path in ["usr", "etc"] {
            assert_eq!(directory(path, true), (Take, false), "{path} on its own");
        }
        for path in ["usr", "etc", "boot", "usr/share/tmp", "etc/var", "opt/proc"] {
            assert_eq!(directory(path, false), (Take, false), "{path}");
        }
        for path in ["boot", "home", "mnt/disk", "usr/local", "etc/secrets"] {
            assert_eq!(directory(path, true), (LeaveOut, true), "{path} mounted");
        }
        for path in ["dev", "proc", "run", "sys", "sysroot", "tmp"] {
            for is_mount in [false, true] {
                assert_eq!(directory(path, is_mount), (LeaveOut, true), "{path}");
            }
        }
    }

    #[test]
    fn var_is_left_out_but_for_the_packages_in_it() {
        use Verdict::{LeaveOut, Take};
        for is_mount in [false, true] {
            let directory = |path: &str| judge(Path::new(path), true, is_mount);
            assert_eq!(directory("var"), (Take, true));
            for path in ["var/lib", "var/lib/dpkg", "var/lib/dpkg/status.d"] {
                assert_eq!(directory(path), (Take, false), "{path}");
            }
            for path in ["var/tmp", "var/log", "var/lib/containers"] {
                assert_eq!(directory(path), (LeaveOut, false), "{path}");
            }
        }
    }

    #[test]
    fn a_file_with_another_mounted_over_it_is_left_out_and_a_link_in_a_state_directorys_place_is_not()
     {
        use Verdict::{LeaveOut, Take};
        let file = |path: &str, is_mount| judge(Path::new(path), false, is_mount);
        assert_eq!(file("etc/resolv.conf", true), (LeaveOut, true));
        assert_eq!(file("etc/resolv.conf", false), (Take, false));
        assert_eq!(file("tmp", false), (Take, false));
        assert_eq!(file("var", false), (Take, false));
    }
}
