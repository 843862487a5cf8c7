//! Random trees that hold everything an OS tree holds, for laws as property tests.

use bedplate_model::{
    Content, FileContent, Metadata, Name, Node, NodeId, ObjectId, Rdev, Timestamp, Tree, Xattrs,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// One random step that adds something to a growing tree.
#[derive(Clone, Debug)]
struct Step {
    /// Chooses among the directories that are there.
    parent: prop::sample::Index,
    name: Vec<u8>,
    metadata: Metadata,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Directory,
    Inline(Vec<u8>),
    Object {
        seed: u8,
        size: u64,
    },
    Symlink(usize),
    Device {
        block: bool,
        rdev: Rdev,
    },
    Fifo,
    Socket,
    /// One more name for a node that is there.
    Link(prop::sample::Index),
    /// Many entries: a directory of several blocks.
    Crowd {
        count: usize,
        name_len: usize,
    },
}

/// Gives random trees of up to about a hundred nodes, and now and then directories with thousands.
///
/// Names that are not UTF-8, hard links, devices, whiteouts, attributes that overlayfs itself uses,
/// access control lists, and lengths around every border of the EROFS layout all occur.
pub fn any_tree() -> impl Strategy<Value = Tree> {
    (any_metadata(), vec(any_step(), 0..60)).prop_map(|(root, steps)| grow(root, steps))
}

fn grow(root: Metadata, steps: Vec<Step>) -> Tree {
    let mut tree = Tree::new(root);
    let mut directories = vec![Tree::ROOT];
    let mut leaves: Vec<NodeId> = Vec::new();
    for Step {
        parent,
        name,
        metadata,
        what,
    } in steps
    {
        let parent = *parent.get(&directories);
        let Ok(name) = Name::new(&name) else { continue };
        if tree.child(parent, name.as_bytes()).is_some() {
            continue;
        }
        let content = match what {
            What::Directory => Content::empty_directory(),
            What::Inline(bytes) => Content::File(FileContent::Inline(bytes.into())),
            What::Object { seed, size } => Content::File(FileContent::Object {
                id: ObjectId::Sha256([seed; 32]),
                size,
            }),
            What::Symlink(length) => Content::Symlink(vec![b's'; length].into()),
            What::Device { block: true, rdev } => Content::BlockDevice(rdev),
            What::Device { block: false, rdev } => Content::CharacterDevice(rdev),
            What::Fifo => Content::Fifo,
            What::Socket => Content::Socket,
            What::Link(target) => {
                if !leaves.is_empty() {
                    let target = *target.get(&leaves);
                    tree.link(parent, name, target)
                        .expect("a leaf under a free name");
                }
                continue;
            }
            What::Crowd { count, name_len } => {
                let node = Node::new(metadata.clone(), Content::empty_directory());
                let id = tree.insert(parent, name, node).expect("the name is free");
                for number in 0..count {
                    let text = format!("{number:0name_len$}");
                    let name = Name::try_from(text.as_str()).expect("digits are a name");
                    let node = Node::new(metadata.clone(), Content::Fifo);
                    tree.insert(id, name, node).expect("numbers differ");
                }
                continue;
            }
        };
        let is_directory = matches!(content, Content::Directory(_));
        // composefs refuses whiteouts with several names, and no file system has them.
        let can_link = content != Content::CharacterDevice(Rdev { major: 0, minor: 0 });
        let id = tree
            .insert(parent, name, Node::new(metadata, content))
            .expect("the name is free");
        if is_directory {
            directories.push(id);
        } else if can_link {
            leaves.push(id);
        }
    }
    tree
}

fn any_step() -> impl Strategy<Value = Step> {
    (
        any::<prop::sample::Index>(),
        any_name(),
        any_metadata(),
        any_what(),
    )
        .prop_map(|(parent, name, metadata, what)| Step {
            parent,
            name,
            metadata,
            what,
        })
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => "[a-z+#.-]{1,4}".prop_map(String::into_bytes),
        1 => "[0-9a-f]{2}".prop_map(String::into_bytes),
        1 => vec(1..=255_u8, 1..6),
        1 => vec(Just(b'n'), 250..=255),
    ]
}

fn any_what() -> impl Strategy<Value = What> {
    let rdev = prop_oneof![
        Just(Rdev { major: 0, minor: 0 }),
        Just(Rdev { major: 1, minor: 3 }),
        Just(Rdev {
            major: 4095,
            minor: 0xf_ffff
        }),
        Just(Rdev {
            major: 0,
            minor: 256
        }),
    ];
    let size = prop_oneof![
        65..10_000_u64,
        Just(4096),
        Just(4097),
        Just(1 << 32),
        Just((1 << 44) + 1)
    ];
    prop_oneof![
        6 => Just(What::Directory),
        6 => vec(any::<u8>(), 0..=64).prop_map(What::Inline),
        6 => (any::<u8>(), size).prop_map(|(seed, size)| What::Object { seed, size }),
        4 => prop_oneof![1..100_usize, 3900..=4095_usize].prop_map(What::Symlink),
        3 => (any::<bool>(), rdev).prop_map(|(block, rdev)| What::Device { block, rdev }),
        1 => Just(What::Fifo),
        1 => Just(What::Socket),
        3 => any::<prop::sample::Index>().prop_map(What::Link),
        1 => (100..400_usize, 3..100_usize).prop_map(|(count, name_len)| What::Crowd { count, name_len }),
    ]
}

fn any_metadata() -> impl Strategy<Value = Metadata> {
    let id = prop_oneof![4 => Just(0_u32), 2 => 1..70_000_u32, 1 => Just(u32::MAX - 1)];
    let mtime = prop_oneof![
        4 => Just(Timestamp::from_seconds(1_700_000_000)),
        1 => (0..2_000_000_000_i64, 0..1_000_000_000_u32)
            .prop_map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds }),
    ];
    (0..=0o7777_u16, id.clone(), id, mtime, any_xattrs()).prop_map(
        |(mode, uid, gid, mtime, xattrs)| Metadata {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        },
    )
}

fn any_xattrs() -> impl Strategy<Value = Xattrs> {
    const NAMES: [&str; 9] = [
        "user.a",
        "user.long-name-of-an-attribute",
        "user.overlay.opaque",
        "security.selinux",
        "security.capability",
        "trusted.overlay.opaque",
        "trusted.overlay.custom",
        "system.posix_acl_access",
        "system.posix_acl_default",
    ];
    let value = prop_oneof![
        3 => Just(b"same".to_vec()),
        3 => vec(any::<u8>(), 0..40),
        1 => vec(Just(b'v'), 900..1000),
    ];
    prop_oneof![
        3 => Just(Xattrs::new()),
        1 => vec((prop::sample::select(&NAMES[..]), value), 1..4).prop_map(|pairs| {
            pairs
                .into_iter()
                .map(|(name, value)| (name.as_bytes().into(), value.into()))
                .collect()
        }),
    ]
}

/// Gives trees in which something stands on a border of the EROFS layout, each with what it is about.
pub fn awkward_trees() -> Vec<(&'static str, Tree)> {
    let root = || Tree::new(at_second(0o755, 1_700_000_000));
    let mut trees = Vec::new();
    let mut add = |about, build: &dyn Fn(&mut Tree)| {
        let mut tree = root();
        build(&mut tree);
        trees.push((about, tree));
    };
    add("nothing", &|_| {});
    add("links whose targets fill a block or nearly so", &|tree| {
        for length in [1, 2047, 2048, 2049, 4031, 4032, 4063, 4064, 4065, 4095] {
            let target = Content::Symlink(vec![b'l'; length].into());
            put(tree, Tree::ROOT, &format!("link-{length}"), target);
        }
    });
    add("names before and after the dots", &|tree| {
        for name in ["+", "-", "...", ".a", "..a", "0", "00", "fe", "ff", "~"] {
            put(tree, Tree::ROOT, name, Content::Fifo);
        }
    });
    add("directories around one block and half a block", &|tree| {
        for count in (70..90).chain(150..175).chain([1000]) {
            let directory = put(
                tree,
                Tree::ROOT,
                &format!("d{count}"),
                Content::empty_directory(),
            );
            for number in 0..count {
                put(
                    tree,
                    directory,
                    &format!("entry-{number:06}"),
                    Content::Socket,
                );
            }
        }
    });
    add("files of every size", &|tree| {
        for size in [
            65_u64,
            4096,
            4097,
            1 << 20,
            (1 << 32) - 1,
            1 << 32,
            1 << 43,
            (1 << 52) - 1,
        ] {
            let id = ObjectId::Sha256([size.ilog2() as u8; 32]);
            let content = Content::File(FileContent::Object { id, size });
            put(tree, Tree::ROOT, &format!("file-{size}"), content);
        }
        for length in 0..=64 {
            let content = Content::File(FileContent::Inline(vec![b'c'; length].into()));
            put(tree, Tree::ROOT, &format!("inline-{length}"), content);
        }
    });
    add(
        "whiteouts, also under the names of object directories",
        &|tree| {
            let directory = put(tree, Tree::ROOT, "usr", Content::empty_directory());
            for (parent, name) in [(directory, "gone"), (directory, "00"), (Tree::ROOT, "a0")] {
                put(
                    tree,
                    parent,
                    name,
                    Content::CharacterDevice(Rdev { major: 0, minor: 0 }),
                );
            }
            set(tree, directory, "trusted.overlay.origin", b"escaped");
        },
    );
    add(
        "more shared attributes than one inode can refer to",
        &|tree| {
            for name in ["one", "other"] {
                let id = put(tree, Tree::ROOT, name, Content::Fifo);
                for number in 0..140 {
                    set(tree, id, &format!("trusted.number-{number:03}"), b"same");
                }
            }
        },
    );
    add(
        "attributes of every kind, owners and times beyond 16 and 32 bits",
        &|tree| {
            let id = put(
                tree,
                Tree::ROOT,
                "kinds",
                Content::File(FileContent::Inline(b"x"[..].into())),
            );
            for name in [
                "user.a",
                "security.selinux",
                "trusted.t",
                "system.posix_acl_access",
                "system.other",
            ] {
                set(tree, id, name, name.as_bytes());
            }
            let metadata = tree.metadata_mut(id);
            (metadata.uid, metadata.gid) = (65_536, u32::MAX - 1);
            metadata.mtime = Timestamp {
                seconds: 1 << 33,
                nanoseconds: 999_999_999,
            };
            let early = put(tree, Tree::ROOT, "early", Content::Fifo);
            tree.metadata_mut(early).mtime = Timestamp {
                seconds: 1,
                nanoseconds: 5,
            };
        },
    );
    add("times before 1970", &|tree| {
        for (name, seconds, nanoseconds) in [
            ("first", i64::MIN, 0),
            ("1901", -2_177_452_800, 0),
            ("32 bits", i32::MIN.into(), 999_999_999),
            ("just before", -1, 500_000_000),
            ("the epoch", 0, 0),
            ("last", i64::MAX, 999_999_999),
        ] {
            let id = put(tree, Tree::ROOT, name, Content::Fifo);
            tree.metadata_mut(id).mtime = Timestamp {
                seconds,
                nanoseconds,
            };
        }
    });
    add("the earliest time is one before 1970", &|tree| {
        let early = put(tree, Tree::ROOT, "early", Content::empty_directory());
        for id in [early, put(tree, early, "as early", Content::Fifo)] {
            tree.metadata_mut(id).mtime = Timestamp::from_seconds(-1);
        }
    });
    add("hard links across directories", &|tree| {
        let directory = put(tree, Tree::ROOT, "a", Content::empty_directory());
        let id = put(
            tree,
            directory,
            "first",
            Content::File(FileContent::Inline(b"linked"[..].into())),
        );
        for (parent, name) in [(Tree::ROOT, "b"), (Tree::ROOT, "0"), (directory, "second")] {
            let name = Name::try_from(name).expect("a name");
            tree.link(parent, name, id).expect("a free name for a file");
        }
    });
    trees
}

fn at_second(mode: u16, seconds: i64) -> Metadata {
    Metadata {
        mtime: Timestamp::from_seconds(seconds),
        ..Metadata::root_owned(mode)
    }
}

fn put(tree: &mut Tree, parent: NodeId, name: &str, content: Content) -> NodeId {
    let name = Name::try_from(name).expect("a name");
    let node = Node::new(at_second(0o755, 1_700_000_000), content);
    tree.insert(parent, name, node).expect("a free name")
}

fn set(tree: &mut Tree, id: NodeId, name: &str, value: &[u8]) {
    let xattrs = &mut tree.metadata_mut(id).xattrs;
    xattrs.insert(name.as_bytes().into(), value.into());
}
