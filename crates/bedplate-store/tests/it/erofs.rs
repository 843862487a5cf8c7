//! Images against the composefs crate, against themselves, against damage, and against the kernel.

use std::fmt::Write as _;

use bedplate_model::{Content, ErofsVersion, FileContent, Metadata, Rdev, Tree};
use bedplate_store::erofs::{self, HardLinks, Options};
use composefs::dumpfile::dumpfile_to_validated_filesystem;
use composefs::erofs::format::FormatVersion;
use composefs::erofs::writer::mkfs_erofs_versioned;
use composefs::fsverity::Sha256HashValue;
use proptest::prelude::*;
use testkit::trees::any_tree;

fn image(tree: &Tree, version: ErofsVersion, hard_links: HardLinks) -> (Vec<u8>, erofs::Written) {
    let mut bytes = Vec::new();
    let written = erofs::write(
        tree,
        &Options {
            version,
            hard_links,
        },
        &mut bytes,
    )
    .unwrap();
    (bytes, written)
}

/// Writes a tree as composefs's text form has it: what the oracle reads.
fn dumpfile(tree: &Tree, hard_links: HardLinks) -> String {
    let mut text = String::new();
    let mut names: std::collections::HashMap<_, Vec<u8>> = std::collections::HashMap::new();
    let counts = tree.name_counts();
    let mut line = |path: &[u8], id| {
        let node = tree.node(id);
        let Metadata {
            uid,
            gid,
            mtime,
            xattrs,
            ..
        } = &node.metadata;
        let path = [b"/", path].concat();
        if hard_links == HardLinks::Keep && tree.entries(id).is_none() {
            if let Some(first) = names.get(&id) {
                writeln!(
                    text,
                    "{} 0 @120000 - - - - 0.0 {} - -",
                    escaped(&path),
                    escaped(first)
                )
                .unwrap();
                return;
            }
            names.insert(id, path.clone());
        }
        let subdirectories = tree.entries(id).map(|entries| {
            2 + entries
                .values()
                .filter(|child| tree.entries(**child).is_some())
                .count()
        });
        let links = match (subdirectories, hard_links) {
            (Some(links), _) => links,
            (None, HardLinks::Keep) => counts[id.index()] as usize,
            (None, HardLinks::Break) => 1,
        };
        let (size, payload, content, digest) = match &node.content {
            Content::File(FileContent::Inline(bytes)) => (
                bytes.len() as u64,
                "-".into(),
                if bytes.is_empty() {
                    "-".into()
                } else {
                    escaped(bytes)
                },
                "-".into(),
            ),
            Content::File(FileContent::Object { id, size }) => {
                (*size, id.object_path(), "-".into(), id.to_hex())
            }
            Content::Symlink(target) => {
                (target.len() as u64, escaped(target), "-".into(), "-".into())
            }
            _ => (0, "-".into(), "-".into(), "-".into()),
        };
        let rdev = match &node.content {
            Content::BlockDevice(rdev) | Content::CharacterDevice(rdev) => {
                rustix::fs::makedev(rdev.major, rdev.minor)
            }
            _ => 0,
        };
        write!(
            text,
            "{} {size} {:o} {links} {uid} {gid} {rdev} {}.{} {payload} {content} {digest}",
            escaped(&path),
            node.st_mode(),
            mtime.seconds,
            mtime.nanoseconds,
        )
        .unwrap();
        for (name, value) in xattrs {
            write!(text, " {}={}", escaped(name), escaped(value)).unwrap();
        }
        text.push('\n');
    };
    line(b"", Tree::ROOT);
    for (path, id) in tree.walk() {
        line(&path.to_bytes(), id);
    }
    text
}

fn escaped(bytes: &[u8]) -> String {
    if bytes == b"-" {
        return "\\x2d".into();
    }
    let mut text = String::new();
    for byte in bytes {
        if byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'=') {
            text.push((*byte).into());
        } else {
            write!(text, "\\x{byte:02x}").unwrap();
        }
    }
    text
}

fn oracle(tree: &Tree, version: ErofsVersion, hard_links: HardLinks) -> Vec<u8> {
    let text = dumpfile(tree, hard_links);
    let tree = dumpfile_to_validated_filesystem::<Sha256HashValue>(&text).unwrap();
    let version = match version {
        ErofsVersion::V0 => FormatVersion::V0,
        ErofsVersion::V1 => FormatVersion::V1,
    };
    mkfs_erofs_versioned(&tree, version).into()
}

/// Shortens links to what the oracle takes: it refuses targets of more than 1024 bytes.
fn with_short_links(mut tree: Tree) -> Tree {
    let long: Vec<_> = tree
        .walk()
        .filter(|(_, id)| matches!(&tree.node(*id).content, Content::Symlink(target) if target.len() > 1024))
        .map(|(_, id)| id)
        .collect();
    for id in long {
        tree.set_content(id, Content::Symlink(vec![b's'; 1024].into()))
            .unwrap();
    }
    tree
}

/// Returns whether a directory with whiteouts has one of the attributes that mark such directories
/// itself: then its own value is replaced, and no reader can know it.
fn loses_attributes(tree: &Tree) -> bool {
    let whiteout = Rdev { major: 0, minor: 0 };
    let has_whiteout = |id| {
        let mut children = tree.entries(id).into_iter().flatten();
        children.any(|(_, child)| tree.node(*child).content == Content::CharacterDevice(whiteout))
    };
    tree.walk().map(|(_, id)| id).chain([Tree::ROOT]).any(|id| {
        let mut names = tree.node(id).metadata.xattrs.keys();
        has_whiteout(id) && names.any(|name| name.ends_with(b".overlay.opaque"))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn images_equal_those_of_composefs_byte_for_byte(tree in any_tree().prop_map(with_short_links)) {
        prop_assume!(!loses_attributes(&tree)); // the oracle keeps its own; the rules say nothing
        for version in [ErofsVersion::V0, ErofsVersion::V1] {
            for hard_links in [HardLinks::Keep, HardLinks::Break] {
                let (ours, _) = image(&tree, version, hard_links);
                let theirs = oracle(&tree, version, hard_links);
                let first = ours.iter().zip(&theirs).position(|(a, b)| a != b);
                prop_assert!(ours == theirs, "lengths {} and {}, first difference at {first:?}", ours.len(), theirs.len());
            }
        }
    }

    #[test]
    fn reading_gives_the_tree_that_was_written(tree in any_tree()) {
        prop_assume!(!loses_attributes(&tree));
        for version in [ErofsVersion::V0, ErofsVersion::V1] {
            let (bytes, _) = image(&tree, version, HardLinks::Keep);
            prop_assert!(erofs::read(&bytes).unwrap() == tree);
        }
    }

    #[test]
    fn a_damaged_image_never_makes_the_reader_panic(
        tree in any_tree(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut bytes, _) = image(&tree, ErofsVersion::V1, HardLinks::Keep);
        for (position, value) in &flips {
            let position = position.index(bytes.len());
            bytes[position] = *value;
            let _ = erofs::read(&bytes);
        }
        let _ = erofs::read(&bytes[..cut.index(bytes.len())]);
    }
}
