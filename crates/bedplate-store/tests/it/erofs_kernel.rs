//! Images before other judges: the kernel that mounts them, and fsck.erofs.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use bedplate_model::{Content, ErofsVersion, FileContent, NodeId, Rdev, Tree, TreePath, Xattrs};
use bedplate_store::erofs::{self, HardLinks, Options};
use bedplate_sys::mount::{self, Access, Unmount};
use bedplate_sys::{namespace, xattr};
use proptest::prelude::*;
use tempfile::TempDir;
use testkit::trees::any_tree;

const WHITEOUT: Content = Content::CharacterDevice(Rdev { major: 0, minor: 0 });

/// An image in a file of its own.
fn image_file(tree: &Tree, version: ErofsVersion) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let options = Options {
        version,
        hard_links: HardLinks::Keep,
    };
    erofs::write(tree, &options, &mut File::create(&path).unwrap()).unwrap();
    (directory, path)
}

/// Replaces attributes that the kernel itself reads, and refuses when they mean nothing.
fn with_sound_attributes(mut tree: Tree) -> Tree {
    const ACL: [u8; 44] = [
        2, 0, 0, 0, // version, then tag, permissions, and id of each entry
        0x01, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, //
        0x02, 0, 4, 0, 0xe8, 0x03, 0, 0, //
        0x04, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, //
        0x10, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, //
        0x20, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, //
    ];
    const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let every: Vec<_> = tree.walk().map(|(_, id)| id).chain([Tree::ROOT]).collect();
    for id in every {
        let content = &tree.node(id).content;
        let (is_file, is_directory) = (
            matches!(content, Content::File(_)),
            tree.entries(id).is_some(),
        );
        let xattrs = &mut tree.metadata_mut(id).xattrs;
        xattrs.retain(|name, value| match &**name {
            b"system.posix_acl_access" => {
                *value = ACL.into();
                is_file || is_directory
            }
            b"system.posix_acl_default" => {
                *value = ACL.into();
                is_directory
            }
            b"security.capability" => {
                *value = CAPABILITY.into();
                is_file
            }
            name => is_file || is_directory || !name.starts_with(b"user."),
        });
    }
    tree
}

/// Returns the attributes of a tree's node that the image itself must show, under their names there.
fn visible(xattrs: &Xattrs) -> Xattrs {
    let escaped = |name: &[u8]| match name.strip_prefix(b"trusted.overlay.") {
        Some(rest) => [b"trusted.overlay.overlay.", rest].concat().into(),
        None => name.into(),
    };
    xattrs
        .iter()
        .map(|(name, value)| (escaped(name), value.clone()))
        .collect()
}

fn compare(tree: &Tree, id: NodeId, links: u32, path: &Path) {
    let node = tree.node(id);
    let seen = fs::symlink_metadata(path).unwrap();
    let is_whiteout = node.content == WHITEOUT;
    let mode = if is_whiteout {
        0o100_000 | node.metadata.mode
    } else {
        node.st_mode()
    };
    assert_eq!(seen.mode(), u32::from(mode), "{}", path.display());
    assert_eq!(
        (seen.uid(), seen.gid()),
        (node.metadata.uid, node.metadata.gid)
    );
    let mtime = node.metadata.mtime;
    assert_eq!(
        (seen.mtime(), seen.mtime_nsec()),
        (mtime.seconds, i64::from(mtime.nanoseconds))
    );
    let (directory, name) = (path.parent().unwrap(), path.file_name().unwrap());
    let directory = File::open(directory).unwrap();
    let shown = xattr::of_entry(directory.as_fd(), name).unwrap();
    for (name, value) in visible(&node.metadata.xattrs) {
        // What marks a directory of whiteouts takes the place of its own attributes.
        let is_mark = [
            &b".overlay.opaque"[..],
            b".overlay.whiteout",
            b".overlay.whiteouts",
        ]
        .iter()
        .any(|mark| name.ends_with(mark));
        let name_shown = String::from_utf8_lossy(&name);
        assert!(
            is_mark || shown.get(&name) == Some(&value),
            "{name_shown} of {}",
            path.display()
        );
    }
    match &node.content {
        Content::Directory(entries) => {
            let subdirectories = entries.values().filter(|id| tree.entries(**id).is_some());
            assert_eq!(seen.nlink(), 2 + subdirectories.count() as u64);
            let mut names: Vec<_> = fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
                .collect();
            names.sort_unstable();
            if id == Tree::ROOT {
                names.retain(|name| tree.child(id, name).is_some());
            }
            let wanted: Vec<_> = entries
                .keys()
                .map(|name| name.as_bytes().to_vec())
                .collect();
            assert_eq!(names, wanted, "{}", path.display());
        }
        Content::File(content) => {
            assert_eq!(
                (seen.len(), seen.nlink()),
                (content.size(), u64::from(links))
            );
            if let FileContent::Inline(bytes) = content {
                assert_eq!(*fs::read(path).unwrap(), **bytes);
            }
        }
        Content::Symlink(target) => {
            assert_eq!(
                fs::read_link(path).unwrap().as_os_str().as_bytes(),
                &**target
            );
        }
        Content::BlockDevice(rdev) | Content::CharacterDevice(rdev) => {
            assert_eq!(seen.rdev(), rustix::fs::makedev(rdev.major, rdev.minor));
        }
        Content::Fifo | Content::Socket => assert_eq!(seen.nlink(), u64::from(links)),
    }
}

#[expect(clippy::print_stdout, reason = "a test that checks nothing says so")]
fn skipped(reason: &str) {
    println!("skipped: {reason}");
}

/// Mounts images in a thread that has its own mounts.
fn in_private_mounts(work: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        skipped("mounting needs root");
        return;
    }
    let thread = std::thread::spawn(|| {
        namespace::enter_private_mounts().unwrap();
        work();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn the_kernel_shows_every_node_as_the_tree_has_it() {
    in_private_mounts(|| {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(60));
        let place = tempfile::tempdir().unwrap();
        let at = place.path();
        runner
            .run(&any_tree().prop_map(with_sound_attributes), |tree| {
                for version in [ErofsVersion::V0, ErofsVersion::V1] {
                    let (_directory, image) = image_file(&tree, version);
                    let mounted =
                        mount::mount_filesystem("erofs", &image, at, "", Access::ReadOnly);
                    match mounted {
                        Err(error)
                            if error.raw_os_error()
                                == Some(rustix::io::Errno::NOTBLK.raw_os_error()) =>
                        {
                            skipped("this kernel mounts EROFS from block devices alone");
                            return Ok(());
                        }
                        mounted => mounted.unwrap(),
                    }
                    let counts = tree.name_counts();
                    compare(&tree, Tree::ROOT, 1, at);
                    for (path, id) in tree.walk() {
                        compare(&tree, id, counts[id.index()], &below(at, &path));
                    }
                    mount::unmount(at, Unmount::Now).unwrap();
                }
                Ok(())
            })
            .unwrap();
    });
}

fn below(root: &Path, path: &TreePath) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(&path.to_bytes()))
}

#[test]
fn fsck_erofs_finds_nothing_to_say() {
    if Command::new("fsck.erofs").arg("-V").output().is_err() {
        skipped("erofs-utils is not installed");
        return;
    }
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(40));
    runner
        .run(&any_tree(), |tree| {
            let (_directory, image) = image_file(&tree, ErofsVersion::V1);
            let output = Command::new("fsck.erofs").arg(&image).output().unwrap();
            prop_assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            Ok(())
        })
        .unwrap();
}
