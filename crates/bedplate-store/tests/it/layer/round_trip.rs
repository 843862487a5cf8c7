//! What we write is what we read.

use super::*;

#[test]
fn what_a_tar_cannot_hold_is_refused() {
    let memory = Memory::default();
    let with = |entry: &[u8], xattr: &[u8], content: Content| {
        let mut tree = Tree::new(Metadata::root_owned(0o755));
        let mut metadata = Metadata::root_owned(0o644);
        metadata.xattrs.insert(xattr.into(), b"v"[..].into());
        tree.insert(Tree::ROOT, name(entry), Node::new(metadata, content))
            .unwrap();
        memory.write(&tree)
    };
    assert!(matches!(
        with(b"s", b"user.a", Content::Socket),
        Err(WriteTarError::Socket(_))
    ));
    assert!(matches!(
        with(b"s", b"user.a=b", Content::Fifo),
        Err(WriteTarError::XattrName { .. })
    ));
    assert!(matches!(
        with(b".wh.s", b"user.a", Content::Fifo),
        Err(WriteTarError::WhiteoutName(_))
    ));
}

#[test]
fn a_root_file_system_keeps_names_that_begin_as_whiteouts_do_and_leaves_out_sockets() {
    let memory = Memory::default();
    let plain = tar(&[
        dir("d"),
        file("d/kept", "1"),
        file("d/.wh.kept", "2"),
        file("d/.wh..wh..opq", "3"),
        file(".wh.", "4"),
    ]);
    let mut tree = layer::import(&mut &*plain, &memory).unwrap();
    let imported = "/.wh.=4 /d/ /d/.wh..wh..opq=3 /d/.wh.kept=2 /d/kept=1";
    assert_eq!(listing(&tree), imported);
    assert!(matches!(
        memory.write(&tree),
        Err(WriteTarError::WhiteoutName(path)) if path.to_string() == "/.wh."
    ));

    let metadata = Metadata::root_owned(0o755);
    let socket = Node::new(metadata, Content::Socket);
    let socket = tree.insert(Tree::ROOT, name(b"s"), socket).unwrap();
    tree.link(Tree::ROOT, name(b"t"), socket).unwrap();
    let mut written = Vec::new();
    let open = |content: &FileContent| memory.open(content);
    let left_out = write_tar(&tree, TarKind::RootFileSystem, &open, &mut written).unwrap();
    assert_eq!(left_out, [path("s"), path("t")]);
    let again = layer::import(&mut &*written, &memory).unwrap();
    assert_eq!(listing(&again), imported);
}

#[test]
fn a_table_that_lies_is_refused() {
    let memory = Memory::default();
    let body = "y".repeat(100);
    let table = memory
        .read(&tar(&[file("a", "x"), file("b", &body)]))
        .unwrap()
        .encode(&DIFF_ID);
    assert!(matches!(
        Layer::decode(b"something", &DIFF_ID),
        Err(DecodeLayerError::Magic)
    ));
    let mut newer = table.clone();
    newer[8] = 2;
    assert!(matches!(
        Layer::decode(&newer, &DIFF_ID),
        Err(DecodeLayerError::Features(2))
    ));
    for length in 0..table.len() {
        assert!(
            Layer::decode(&table[..length], &DIFF_ID).is_err(),
            "cut at {length}"
        );
    }
    let other = Sha256([8; 32]);
    assert!(matches!(
        Layer::decode(&table, &other),
        Err(DecodeLayerError::Damaged(
            "it is the table of another layer"
        ))
    ));
    for position in [40, table.len() - 1] {
        let mut flipped = table.clone();
        flipped[position] ^= 1;
        assert!(Layer::decode(&flipped, &DIFF_ID).is_err(), "{position}");
    }
    let longer = [table.as_slice(), b"x"].concat();
    assert!(matches!(
        Layer::decode(&longer, &DIFF_ID),
        Err(DecodeLayerError::Damaged(_))
    ));
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let xattr = (
        "(user|security|trusted)\\.[a-z.]{1,8}",
        proptest::collection::vec(any::<u8>(), 0..80),
    );
    (
        0_u16..0o10000,
        prop_oneof![0_u32..2000, any::<u32>()],
        prop_oneof![0_u32..2000, any::<u32>()],
        prop_oneof![0_i64..2_000_000_000, any::<i64>()],
        prop_oneof![Just(0_u32), 0_u32..1_000_000_000],
        proptest::collection::vec(xattr, 0..3),
    )
        .prop_map(|(mode, uid, gid, seconds, nanoseconds, xattrs)| Metadata {
            mode,
            uid,
            gid,
            mtime: Timestamp {
                seconds,
                nanoseconds,
            },
            xattrs: xattrs
                .into_iter()
                .map(|(name, value)| (name.into_bytes().into(), value.into()))
                .collect(),
        })
}

#[derive(Clone, Debug)]
enum Made {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Device(bool, u32, u32),
    Fifo,
    Link(usize),
}

fn made() -> impl Strategy<Value = Made> {
    let byte = || any::<u8>().prop_map(|byte| byte.max(1));
    prop_oneof![
        3 => Just(Made::Directory),
        3 => proptest::collection::vec(any::<u8>(), 0..1200).prop_map(Made::File),
        1 => proptest::collection::vec(byte(), 1..300).prop_map(Made::Symlink),
        1 => (any::<bool>(), 0..1_u32 << 12, 0..1_u32 << 20).prop_map(|(block, major, minor)| Made::Device(block, major, minor)),
        1 => Just(Made::Fifo),
        2 => any::<usize>().prop_map(Made::Link),
    ]
}

/// Builds a tree out of steps: where, under which name, what.
fn build(memory: &Memory, root: Metadata, steps: Vec<(usize, Vec<u8>, Metadata, Made)>) -> Tree {
    let mut tree = Tree::new(root);
    let mut directories = vec![Tree::ROOT];
    let mut others: Vec<NodeId> = Vec::new();
    for (parent, entry, metadata, made) in steps {
        let parent = directories[parent % directories.len()];
        let Ok(entry) = Name::new(&entry) else {
            continue;
        };
        if entry.as_bytes().starts_with(b".wh.") || tree.child(parent, entry.as_bytes()).is_some() {
            continue;
        }
        let content = match made {
            Made::Link(which) => {
                if !others.is_empty() {
                    tree.link(parent, entry, others[which % others.len()])
                        .unwrap();
                }
                continue;
            }
            Made::Directory => Content::empty_directory(),
            Made::File(bytes) => Content::File(memory.put_bytes(&bytes).unwrap()),
            Made::Symlink(target) => Content::Symlink(target.into()),
            Made::Device(true, major, minor) => Content::BlockDevice(Rdev { major, minor }),
            Made::Device(false, major, minor) => Content::CharacterDevice(Rdev { major, minor }),
            Made::Fifo => Content::Fifo,
        };
        let directory = matches!(content, Content::Directory(_));
        let id = tree
            .insert(parent, entry, Node::new(metadata, content))
            .unwrap();
        if directory {
            &mut directories
        } else {
            &mut others
        }
        .push(id);
    }
    tree
}

fn steps() -> impl Strategy<Value = Vec<(usize, Vec<u8>, Metadata, Made)>> {
    let entry = prop_oneof![
        "[a-c]{1,2}".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 1..256),
    ];
    proptest::collection::vec((any::<usize>(), entry, metadata(), made()), 0..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_tree_comes_back_from_its_tar_and_from_its_table(root in metadata(), steps in steps()) {
        let memory = Memory::default();
        let tree = build(&memory, root, steps);
        let tar = memory.write(&tree).unwrap();
        let layer = memory.read(&tar).unwrap();
        prop_assert_eq!(&memory.rewrite(&layer), &tar);
        let stored = Layer::decode(&layer.encode(&DIFF_ID), &DIFF_ID).unwrap();
        prop_assert_eq!(stored.entries(), layer.entries());
        let again = flatten(&[stored], RuleSet::Exact1).unwrap();
        prop_assert!(again == tree);
        prop_assert!(memory.write(&again).unwrap() == tar, "the tar depends on the tree alone");
    }

    #[test]
    fn damage_ends_in_a_result(steps in steps(), hits in proptest::collection::vec((any::<usize>(), any::<u8>(), any::<bool>()), 1..6)) {
        let memory = Memory::default();
        let mut tar = memory.write(&build(&memory, Metadata::root_owned(0o755), steps)).unwrap();
        for (position, byte, fix) in hits {
            let position = position % tar.len();
            tar[position] = byte;
            let header = position / 512 * 512;
            if fix {
                sum(&mut tar[header..header + 512]);
            }
        }
        if let Ok(layer) = memory.read(&tar) {
            prop_assert_eq!(memory.rewrite(&layer), tar);
            let _ = flatten(std::slice::from_ref(&layer), RuleSet::Bootc1);
            let mut table = layer.encode(&DIFF_ID);
            table[12] = 0; // as an earlier version wrote it, without a check
            let position = position_in(&table, &memory);
            table[position] ^= 0x55;
            let _ = Layer::decode(&table, &DIFF_ID);
        }
    }
}

/// Picks a position in a table that depends on what is in it.
fn position_in(table: &[u8], memory: &Memory) -> usize {
    (table.iter().map(|byte| usize::from(*byte)).sum::<usize>() + memory.0.lock().unwrap().len())
        % table.len()
}
