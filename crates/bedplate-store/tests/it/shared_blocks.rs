//! A store beside its source on a file system that shares blocks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bedplate_model::{Algorithm, ImageName, RuleSet};
use bedplate_store::{DigestOnly, RefTarget, Store, scan};

/// An XFS of its own in a file, mounted until the end of the test.
struct Xfs {
    directory: tempfile::TempDir,
}

impl Xfs {
    /// Returns `None` where the kernel or the user may not: then the test says so.
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::File::create(&image)
            .unwrap()
            .set_len(512 << 20)
            .unwrap();
        let made = Command::new("mkfs.xfs").arg("-q").arg(&image).status();
        made.ok().filter(std::process::ExitStatus::success)?;
        let xfs = Self { directory };
        fs::create_dir(xfs.root()).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(xfs.root());
        mount.status().unwrap().success().then_some(xfs)
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    fn free_bytes(&self) -> u64 {
        let root = fs::File::open(self.root()).unwrap();
        rustix::fs::syncfs(&root).unwrap();
        let space = rustix::fs::fstatvfs(&root).unwrap();
        space.f_bfree * space.f_frsize
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.root()).status();
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn commit(store: &Store, tree: &Path) -> bedplate_model::RootDigest {
    let transaction = store.begin().unwrap();
    let tree = scan(tree, &transaction, &()).unwrap();
    let root = transaction.put_image(&tree, RuleSet::Exact1).unwrap();
    let name = "localhost/os:1".parse::<ImageName>().unwrap();
    transaction.set_ref(&name, RefTarget::new(root, 0)).unwrap();
    transaction.commit().unwrap();
    root
}

#[test]
fn contents_take_no_room_twice_and_the_source_may_change_afterwards() {
    let Some(xfs) = Xfs::new() else {
        eprintln!("skipped: no XFS can be made and mounted here");
        return;
    };
    const LENGTH: u64 = 64 << 20;
    let tree = xfs.root().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("large"), noise(1, LENGTH as usize)).unwrap();
    let store = Store::create(&xfs.root().join("store")).unwrap();

    let before = xfs.free_bytes();
    let root = commit(&store, &tree);
    let taken = before.saturating_sub(xfs.free_bytes());
    assert!(taken < LENGTH / 4, "{taken} bytes were taken");

    let content = scan(&tree, &DigestOnly(Algorithm::Sha256), &()).unwrap();
    assert!(store.tree(&root).unwrap() == content);
    fs::write(tree.join("large"), noise(2, LENGTH as usize)).unwrap();
    let report = store.fsck(&mut |finding| panic!("{finding}")).unwrap();
    assert_eq!(report.findings, 0);
}
