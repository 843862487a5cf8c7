//! Images against the composefs crate, against themselves, against damage, and against the kernel.

use std::collections::HashMap;
use std::fmt::Write as _;

use bedplate_model::{
    Content, ErofsVersion, FileContent, Metadata, Name, Node, ObjectId, Rdev, Tree,
};
use bedplate_store::erofs::{self, HardLinks, Options, WriteError};
use composefs::dumpfile::dumpfile_to_validated_filesystem;
use composefs::erofs::format::FormatVersion;
use composefs::erofs::writer::mkfs_erofs_versioned;
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue};
use proptest::prelude::*;
use testkit::trees::{any_tree, awkward_trees};

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
    let mut names: HashMap<_, Vec<u8>> = HashMap::new();
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
    oracle_of::<Sha256HashValue>(tree, version, hard_links)
}

fn oracle_of<H: FsVerityHashValue>(
    tree: &Tree,
    version: ErofsVersion,
    hard_links: HardLinks,
) -> Vec<u8> {
    let text = dumpfile(tree, hard_links);
    let tree = dumpfile_to_validated_filesystem::<H>(&text).unwrap();
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

/// Names every object of a tree by a SHA-512 digest.
fn with_sha512_objects(mut tree: Tree) -> Tree {
    let files: Vec<_> = tree.walk().map(|(_, id)| id).collect();
    for id in files {
        if let Content::File(FileContent::Object {
            id: object @ ObjectId::Sha256(_),
            size,
        }) = tree.node(id).content.clone()
        {
            let twice: [u8; 64] = object.as_bytes().repeat(2).try_into().unwrap();
            let id512 = ObjectId::Sha512(twice);
            let content = Content::File(FileContent::Object { id: id512, size });
            tree.set_content(id, content).unwrap();
        }
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
    fn so_do_images_whose_objects_have_sha512_names_and_they_are_read_back(
        tree in any_tree().prop_map(with_short_links).prop_map(with_sha512_objects),
    ) {
        prop_assume!(!loses_attributes(&tree));
        let (ours, _) = image(&tree, ErofsVersion::V1, HardLinks::Keep);
        let theirs = oracle_of::<Sha512HashValue>(&tree, ErofsVersion::V1, HardLinks::Keep);
        prop_assert!(ours == theirs);
        prop_assert!(erofs::read(&ours).unwrap() == tree);
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

/// What `cargo xtask campaign trees` runs with the image of a whole system in `BEDPLATE_IMAGE`.
#[test]
#[ignore = "needs an image of a real tree"]
#[expect(clippy::disallowed_methods, reason = "the campaign names the image")]
fn an_image_of_a_real_tree_equals_that_of_composefs() {
    let path = std::env::var_os("BEDPLATE_IMAGE").expect("BEDPLATE_IMAGE names an image");
    let bytes = std::fs::read(path).unwrap();
    let tree = erofs::read(&bytes).unwrap();
    assert!(bytes == oracle(&tree, ErofsVersion::V1, HardLinks::Keep));
    let (again, _) = image(&tree, ErofsVersion::V1, HardLinks::Keep);
    assert!(again == bytes);
}

#[test]
fn images_of_awkward_trees_have_the_digests_that_the_c_tool_gave() {
    let known = include_str!("../../../../testdata/erofs/mkcomposefs-1.0.8.txt");
    let trees: HashMap<_, _> = awkward_trees().into_iter().collect();
    let lines = known.lines().filter(|line| !line.starts_with('#'));
    let mut compared = 0;
    for line in lines {
        let parts: Vec<_> = line.splitn(4, ' ').collect();
        let [version, hard_links, digest, about] = parts[..] else {
            panic!("{line}");
        };
        let version = match version {
            "v0" => ErofsVersion::V0,
            _ => ErofsVersion::V1,
        };
        let hard_links = match hard_links {
            "keep" => HardLinks::Keep,
            _ => HardLinks::Break,
        };
        let (bytes, written) = image(&trees[about], version, hard_links);
        assert_eq!(written.id.to_hex(), digest, "{line}");
        assert_eq!(written.bytes, bytes.len() as u64);
        if hard_links == HardLinks::Keep {
            assert!(erofs::read(&bytes).unwrap() == trees[about], "{line}");
        }
        compared += 1;
    }
    assert_eq!(compared, trees.len() * 4);
}

#[test]
fn what_the_format_cannot_hold_is_refused_and_never_cut_off() {
    let with = |count: usize, length: usize| {
        let mut tree = Tree::new(Metadata::root_owned(0o755));
        for number in 0..count {
            let name = format!("user.{number}").into_bytes();
            let xattrs = &mut tree.metadata_mut(Tree::ROOT).xattrs;
            xattrs.insert(name.into(), vec![b'v'; length].into());
        }
        let options = Options {
            version: ErofsVersion::V1,
            hard_links: HardLinks::Keep,
        };
        let mut bytes = Vec::new();
        erofs::write(&tree, &options, &mut bytes).map(|_| erofs::read(&bytes).unwrap() == tree)
    };
    assert!(with(1, 65_535).unwrap());
    assert!(matches!(with(1, 65_536), Err(WriteError::Xattr(name)) if name == "user.0"));
    assert!(with(3, 65_535).unwrap());
    assert!(matches!(with(5, 65_535), Err(WriteError::Xattrs)));

    let mut tree = Tree::new(Metadata::root_owned(0o755));
    let id = ObjectId::Sha256([7; 32]);
    let content = Content::File(FileContent::Object { id, size: u64::MAX });
    let node = Node::new(Metadata::root_owned(0o644), content);
    tree.insert(Tree::ROOT, Name::try_from("huge").unwrap(), node)
        .unwrap();
    let options = Options {
        version: ErofsVersion::V1,
        hard_links: HardLinks::Keep,
    };
    let refused = erofs::write(&tree, &options, &mut Vec::new());
    assert!(matches!(refused, Err(WriteError::TooLarge)));

    for (major, minor, fits) in [
        (4095, 1_048_575, true),
        (4096, 0, false),
        (0, 1_048_576, false),
    ] {
        let mut tree = Tree::new(Metadata::root_owned(0o755));
        let content = Content::BlockDevice(Rdev { major, minor });
        let node = Node::new(Metadata::root_owned(0o600), content);
        let name = Name::try_from("device").unwrap();
        tree.insert(Tree::ROOT, name, node).unwrap();
        let mut bytes = Vec::new();
        match erofs::write(&tree, &options, &mut bytes) {
            Ok(_) => assert!(fits && erofs::read(&bytes).unwrap() == tree),
            Err(error) => assert!(!fits, "{error}"),
        }
    }
}

/// Paths that stood beside each of these directories would take 25 GB.
#[test]
fn a_tree_that_is_deep_and_then_wide_is_read_in_little_memory() {
    let directory = || Node::new(Metadata::root_owned(0o755), Content::empty_directory());
    let mut tree = Tree::new(Metadata::root_owned(0o755));
    let mut deepest = Tree::ROOT;
    for _ in 0..2_000 {
        let name = Name::new(&[b'n'; 255]).unwrap();
        deepest = tree.insert(deepest, name, directory()).unwrap();
    }
    for number in 0..50_000 {
        let name = Name::try_from(&*number.to_string()).unwrap();
        tree.insert(deepest, name, directory()).unwrap();
    }
    let (bytes, _) = image(&tree, ErofsVersion::V1, HardLinks::Keep);
    let read = erofs::read(&bytes).unwrap();
    assert_eq!(read.node_count(), tree.node_count());
}

/// Returns where the directory stands that has this one entry, and nothing else.
fn entries_of(image: &[u8], name: &str) -> usize {
    const ENTRY: usize = 12;
    let names = format!("...{name}").into_bytes();
    let place = image.windows(names.len()).position(|some| some == names);
    place.unwrap() - 3 * ENTRY
}

#[test]
fn an_image_whose_numbers_lead_anywhere_is_a_tree_or_an_error() {
    let directory = || Node::new(Metadata::root_owned(0o755), Content::empty_directory());
    let mut tree = Tree::new(Metadata::root_owned(0o755));
    let mut deepest = Tree::ROOT;
    for name in ["a-a", "b-b", "c-c"] {
        deepest = tree
            .insert(deepest, Name::try_from(name).unwrap(), directory())
            .unwrap();
    }
    let content = Content::File(FileContent::Inline(b"text"[..].into()));
    let mut node = Node::new(Metadata::root_owned(0o644), content);
    let xattrs = &mut node.metadata.xattrs;
    xattrs.insert(b"user.x"[..].into(), b"y"[..].into());
    tree.insert(deepest, Name::try_from("file").unwrap(), node)
        .unwrap();
    let (good, _) = image(&tree, ErofsVersion::V1, HardLinks::Keep);

    // Directories that hold themselves, and each other.
    let places = ["b-b", "c-c", "file"].map(|name| entries_of(&good, name));
    let number = |at: usize| -> [u8; 8] { good[at..at + 8].try_into().unwrap() };
    let root = number(places[0] + 12);
    for (depth, leads_to) in places.map(number).into_iter().enumerate() {
        for place in &places[depth..] {
            for leads_to in [leads_to, root] {
                let mut bytes = good.clone();
                bytes[place + 24..place + 32].copy_from_slice(&leads_to);
                assert!(
                    erofs::read(&bytes).is_err(),
                    "{place} leads to {leads_to:?}"
                );
            }
        }
    }

    let wild = [u64::MAX, u64::MAX - 4095, 1 << 63, 0xffff_ffff, 0x7fff_ffff];
    for position in (0..good.len() - 8).step_by(4) {
        if good[position..position + 8] == [0; 8] {
            continue; // this leads nowhere
        }
        for number in wild {
            for width in [2, 4, 8] {
                let mut bytes = good.clone();
                bytes[position..position + width].copy_from_slice(&number.to_le_bytes()[..width]);
                if let Ok(read) = erofs::read(&bytes) {
                    assert!(read.node_count() < 1000, "at {position}");
                }
            }
        }
    }
}
