//! Looks at directories: what moves meanwhile, and what of a running system counts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use bedplate_model::{Algorithm, FileContent, Tree, TreePath};
use bedplate_store::diff::{Aspect, ChangeKind};
use bedplate_store::look::set_aside;
use bedplate_store::{
    ContentSink, DigestOnly, Look, PutError, ScanError, Scope, Unsteady, look, scan,
};

const DIGESTS: DigestOnly = DigestOnly(Algorithm::Sha256);

/// Somebody who works in a directory while it is read: at the first file of 1000 bytes.
struct Meddler<F: Fn() + Sync>(F);

impl<F: Fn() + Sync> ContentSink for Meddler<F> {
    fn put_file(&self, file: &File, size: u64) -> Result<FileContent, PutError> {
        if size == 1000 {
            (self.0)();
        }
        DIGESTS.put_file(file, size)
    }
}

/// Makes a directory in which `first` is read before `second`.
fn directory() -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("tree");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("first"), [1; 1000]).unwrap();
    fs::write(path.join("second"), [2; 500]).unwrap();
    (place, path)
}

fn path(text: &str) -> TreePath {
    TreePath::try_from(text).unwrap()
}

fn names(tree: &Tree) -> Vec<String> {
    tree.walk().map(|(path, _)| path.to_string()).collect()
}

fn everything(directory: &Path, contents: &dyn ContentSink) -> Look {
    look(directory, Scope::Everything, contents, &()).unwrap()
}

#[test]
fn a_file_that_grows_while_it_is_read_is_named_and_not_compared() {
    let (_place, tree) = directory();
    let grow = || fs::write(tree.join("first"), [3; 2000]).unwrap();
    let seen = everything(&tree, &Meddler(grow));
    assert_eq!(seen.unsteady, [(path("first"), Unsteady::Changed)]);
    assert_eq!(names(&seen.tree), ["/second"]);
}

#[test]
fn a_file_that_is_written_over_while_it_is_read_is_named_although_its_length_stays() {
    let (_place, tree) = directory();
    let first = File::options()
        .write(true)
        .open(tree.join("first"))
        .unwrap();
    first
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(7))
        .unwrap();
    let write = || fs::write(tree.join("first"), [3; 1000]).unwrap();
    let seen = everything(&tree, &Meddler(write));
    assert_eq!(seen.unsteady, [(path("first"), Unsteady::Changed)]);
}

#[test]
fn a_file_that_vanishes_before_it_is_read_is_named_and_the_rest_is_read() {
    let (_place, tree) = directory();
    let remove = || fs::remove_file(tree.join("second")).unwrap();
    let seen = everything(&tree, &Meddler(remove));
    assert_eq!(seen.unsteady, [(path("second"), Unsteady::Vanished)]);
    assert_eq!(names(&seen.tree), ["/first"]);
}

#[test]
fn all_names_of_a_file_that_changes_while_it_is_read_are_named() {
    let (_place, tree) = directory();
    fs::hard_link(tree.join("first"), tree.join("other")).unwrap();
    let grow = || fs::write(tree.join("first"), [3; 2000]).unwrap();
    let seen = everything(&tree, &Meddler(grow));
    assert_eq!(
        seen.unsteady,
        [
            (path("first"), Unsteady::Changed),
            (path("other"), Unsteady::Changed)
        ]
    );
}

#[test]
fn a_commit_still_refuses_what_changes_while_it_is_read() {
    let (_place, tree) = directory();
    let remove = || fs::remove_file(tree.join("second")).unwrap();
    assert!(matches!(
        scan(&tree, &Meddler(remove), &()),
        Err(ScanError::Read { .. })
    ));
}

#[test]
fn a_directory_that_is_not_there_is_an_error_also_for_a_look() {
    let (_place, tree) = directory();
    let gone = look(&tree.join("gone"), Scope::Everything, &DIGESTS, &());
    assert!(matches!(gone, Err(ScanError::Read { .. })));
}

#[test]
fn of_a_running_system_only_what_an_image_brings_is_compared() {
    let place = tempfile::tempdir().unwrap();
    let (root, other) = (place.path().join("root"), place.path().join("image"));
    for (at, text) in [(&root, "live"), (&other, "image")] {
        for directory in ["etc", "proc", "tmp", "var/log", "var/lib/dpkg"] {
            fs::create_dir_all(at.join(directory)).unwrap();
            fs::write(at.join(directory).join("file"), text).unwrap();
        }
        fs::write(at.join("etc/same"), "same").unwrap();
    }
    fs::create_dir(root.join("sysroot")).unwrap();
    fs::write(root.join("sysroot/file"), "live").unwrap();

    let mut live = look(&root, Scope::RunningSystem, &DIGESTS, &()).unwrap();
    let left_out: Vec<_> = live.left_out.iter().map(TreePath::to_string).collect();
    assert_eq!(left_out, ["/proc", "/sysroot", "/tmp", "/var"]);
    assert!(
        live.tree.lookup(&path("var/lib/dpkg/file")).is_some(),
        "packages are read there"
    );
    let mut image = scan(&other, &DIGESTS, &()).unwrap();
    set_aside(&live.left_out, &mut live.tree, &mut image);
    let changes: Vec<_> = bedplate_store::diff(&live.tree, &image)
        .into_iter()
        .filter(|change| match &change.kind {
            ChangeKind::Changed(aspects) => aspects.contains(&Aspect::Content),
            ChangeKind::Added | ChangeKind::Removed => true,
        })
        .map(|change| change.path.to_string())
        .collect();
    assert_eq!(changes, ["/etc/file", "/sysroot"]);
    assert!(
        live.tree.lookup(&path("sysroot/file")).is_none(),
        "a directory that one side alone has is empty"
    );
}
