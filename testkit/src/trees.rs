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
