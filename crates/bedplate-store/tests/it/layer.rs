//! Layers over their public seam: what other tools write, what strangers send, and our own way round.

use std::collections::HashMap;
use std::io::{self, Cursor, Read};
use std::process::Command;
use std::sync::Mutex;

use bedplate_model::{
    Algorithm, Content, FileContent, Metadata, Name, Node, NodeId, ObjectId, Rdev, RuleSet,
    Timestamp, Tree, TreePath,
};
use bedplate_store::PutError;
use bedplate_store::layer::{
    self, Contents, DecodeLayerError, FlattenError, Layer, LayerError, WriteTarError, flatten,
    rewrite_tar, write_tar,
};
use proptest::prelude::*;

/// A store of contents in memory.
#[derive(Default)]
struct Memory(Mutex<HashMap<ObjectId, Vec<u8>>>);

impl Contents for Memory {
    fn put(&self, content: &mut dyn Read, size: u64) -> Result<FileContent, PutError> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(PutError::Read)?;
        let found = bytes.len() as u64;
        if found != size {
            return Err(PutError::WrongSize {
                wanted: size,
                found,
            });
        }
        self.put_bytes(&bytes)
    }

    fn put_bytes(&self, bytes: &[u8]) -> Result<FileContent, PutError> {
        if bytes.len() <= 64 {
            return Ok(FileContent::Inline(bytes.into()));
        }
        let id = bedplate_store::verity::digest(Algorithm::Sha256, bytes);
        self.0.lock().unwrap().insert(id, bytes.to_vec());
        Ok(FileContent::Object {
            id,
            size: bytes.len() as u64,
        })
    }
}

impl Memory {
    fn open(&self, content: &FileContent) -> io::Result<Box<dyn Read>> {
        let bytes = match content {
            FileContent::Inline(bytes) => Some(bytes.to_vec()),
            FileContent::Object { id, .. } => self.0.lock().unwrap().get(id).cloned(),
        };
        let bytes = bytes.ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Cursor::new(bytes)))
    }

    fn read(&self, tar: &[u8]) -> Result<Layer, LayerError> {
        layer::read(&mut &*tar, self)
    }

    fn write(&self, tree: &Tree) -> Result<Vec<u8>, WriteTarError> {
        let mut tar = Vec::new();
        write_tar(tree, &|content| self.open(content), &mut tar)?;
        Ok(tar)
    }

    fn rewrite(&self, layer: &Layer) -> Vec<u8> {
        let mut tar = Vec::new();
        rewrite_tar(layer, &|content| self.open(content), &mut tar).unwrap();
        tar
    }
}

fn path(text: &str) -> TreePath {
    TreePath::try_from(text).unwrap()
}

fn name(bytes: &[u8]) -> Name {
    Name::new(bytes).unwrap()
}

/// Makes one member: a header, its body, its padding.
fn member(kind: u8, name: &[u8], target: &[u8], body: &[u8]) -> Vec<u8> {
    let mut tar = vec![0; 512];
    tar[..name.len()].copy_from_slice(name);
    tar[100..107].copy_from_slice(b"0000755");
    tar[124..135].copy_from_slice(format!("{:011o}", body.len()).as_bytes());
    tar[136..147].copy_from_slice(b"00000000007");
    tar[156] = kind;
    tar[157..157 + target.len()].copy_from_slice(target);
    tar[257..265].copy_from_slice(b"ustar\x0000");
    sum(&mut tar);
    tar.extend_from_slice(body);
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar
}

fn sum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header[..512].iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

fn tar(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

fn dir(name: &str) -> Vec<u8> {
    member(b'5', name.as_bytes(), b"", b"")
}

fn file(name: &str, body: &str) -> Vec<u8> {
    member(b'0', name.as_bytes(), b"", body.as_bytes())
}

fn symlink(name: &str, target: &str) -> Vec<u8> {
    member(b'2', name.as_bytes(), target.as_bytes(), b"")
}

fn link(name: &str, target: &str) -> Vec<u8> {
    member(b'1', name.as_bytes(), target.as_bytes(), b"")
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..20)
        .map(|digits| rest + digits)
        .find(|length| rest + length.to_string().len() == *length)
        .unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let records: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| record(key, value))
        .collect();
    member(b'x', b"pax", b"", &records)
}

fn flat(layers: &[Vec<Vec<u8>>]) -> Result<Tree, FlattenError> {
    flat_by(layers, RuleSet::Exact1)
}

fn flat_by(layers: &[Vec<Vec<u8>>], rules: RuleSet) -> Result<Tree, FlattenError> {
    let memory = Memory::default();
    let layers: Vec<Layer> = layers
        .iter()
        .map(|members| memory.read(&tar(members)).unwrap())
        .collect();
    flatten(&layers, rules)
}

/// Prints every path, and what is behind it, on one line.
fn listing(tree: &Tree) -> String {
    let lines: Vec<String> = tree
        .walk()
        .map(|(path, id)| match &tree.node(id).content {
            Content::Directory(_) => format!("{path}/"),
            Content::File(FileContent::Inline(bytes)) => {
                format!("{path}={}", String::from_utf8_lossy(bytes))
            }
            Content::Symlink(target) => format!("{path}->{}", String::from_utf8_lossy(target)),
            other => format!("{path} ({})", other.type_name()),
        })
        .collect();
    lines.join(" ")
}

#[test]
fn whiteouts_act_on_lower_layers_alone_and_wherever_they_stand() {
    let lower = vec![
        dir("d/"),
        file("d/old", "1"),
        file("d/sub", "1"),
        file("gone", "1"),
    ];
    for upper in [
        vec![
            file("d/.wh..wh..opq", ""),
            file("d/new", "2"),
            file(".wh.gone", ""),
        ],
        vec![
            file("d/new", "2"),
            file(".wh.gone", ""),
            file("d/.wh..wh..opq", ""),
        ],
        vec![
            file("d/new", "2"),
            file("d/.wh.old", ""),
            file("d/.wh.sub", ""),
            file(".wh.gone", ""),
            file(".wh.never", ""),
        ],
    ] {
        assert_eq!(
            listing(&flat(&[lower.clone(), upper]).unwrap()),
            "/d/ /d/new=2"
        );
    }
    let again = vec![
        file("gone", "2"),
        file(".wh.gone", ""),
        file("d/.wh.old", ""),
        file("none/.wh.x", ""),
    ];
    assert_eq!(
        listing(&flat(&[lower, again]).unwrap()),
        "/d/ /d/sub=1 /gone=2"
    );
}

#[test]
fn a_whiteout_of_no_name_is_refused() {
    for bad in [".wh.", "d/.wh...", "d/.wh.."] {
        assert!(matches!(
            flat(&[vec![file(bad, "")]]),
            Err(FlattenError::Whiteout { .. })
        ));
    }
}

#[test]
fn types_change_between_layers_as_when_they_are_mounted() {
    let lower = vec![
        dir("a/"),
        file("a/x", "1"),
        file("b", "1"),
        symlink("lib", "usr/lib"),
    ];
    let upper = vec![
        file("a", "2"),
        dir("b/"),
        file("b/y", "2"),
        file("lib/z", "2"),
    ];
    assert_eq!(
        listing(&flat(&[lower, upper]).unwrap()),
        "/a=2 /b/ /b/y=2 /lib/ /lib/z=2"
    );
}

#[test]
fn a_directory_over_a_directory_keeps_entries_and_takes_metadata() {
    let mut upper = dir("a/");
    upper[100..107].copy_from_slice(b"0001777");
    sum(&mut upper);
    let tree = flat(&[vec![dir("a/"), file("a/x", "1")], vec![upper]]).unwrap();
    assert_eq!(listing(&tree), "/a/ /a/x=1");
    let a = tree.lookup(&path("a")).unwrap();
    assert_eq!(tree.node(a).metadata.mode, 0o1777);
}

#[test]
fn members_through_a_symbolic_link_of_their_own_layer_are_refused() {
    let layers = [vec![symlink("a", "/etc"), file("a/passwd", "evil")]];
    assert!(matches!(
        flat(&layers),
        Err(FlattenError::ThroughFile {
            kind: "symbolic link",
            ..
        })
    ));
}

#[test]
fn hard_links_reach_into_lower_layers_and_survive_their_target() {
    let tree = flat(&[
        vec![file("a", "1"), link("b", "a")],
        vec![link("c", "./b"), file("a", "2"), link("c", "c")],
    ])
    .unwrap();
    assert_eq!(listing(&tree), "/a=2 /b=1 /c=1");
    assert_eq!(tree.lookup(&path("b")), tree.lookup(&path("c")));

    assert!(matches!(
        flat(&[vec![link("b", "a"), file("a", "1")]]),
        Err(FlattenError::MissingTarget { .. })
    ));
    assert!(matches!(
        flat(&[vec![dir("a"), link("b", "a")]]),
        Err(FlattenError::DirectoryTarget { .. })
    ));
}

#[test]
fn bootc_1_cuts_what_its_digest_does_not_hold() {
    let attributes: &[(&str, &[u8])] = &[
        ("mtime", b"9.75"),
        ("SCHILY.xattr.user.x", b"1"),
        ("SCHILY.xattr.security.capability", b"\0=\n"),
    ];
    let layers = [vec![
        pax(&[("mtime", b"5.5")]),
        dir("usr/"),
        dir("run/"),
        file("run/lock", ""),
        pax(attributes),
        file("usr/tool", "x"),
    ]];
    let tree = flat_by(&layers, RuleSet::Bootc1).unwrap();
    assert_eq!(listing(&tree), "/run/ /usr/ /usr/tool=x");
    let metadata = |text: &str| {
        tree.node(tree.lookup(&path(text)).unwrap())
            .metadata
            .clone()
    };
    assert_eq!(metadata("/"), metadata("usr"));
    assert_eq!(metadata("run").mtime, Timestamp::from_seconds(5));
    assert_eq!(metadata("usr/tool").mtime, Timestamp::from_seconds(9));
    assert_eq!(
        metadata("usr/tool").xattrs,
        [(b"security.capability"[..].into(), b"\0=\n"[..].into())].into()
    );

    let exact = flat(&layers).unwrap();
    let tool = exact.node(exact.lookup(&path("usr/tool")).unwrap());
    assert_eq!(tool.metadata.mtime.nanoseconds, 750_000_000);
    assert_eq!(tool.metadata.xattrs.len(), 2);
}

#[test]
fn an_image_with_a_policy_is_refused_by_name_under_bootc_1() {
    for etc in ["etc", "usr/etc"] {
        let contexts = format!("{etc}/selinux/targeted/contexts/files/file_contexts");
        let config = format!("{etc}/selinux/config");
        let layers = [vec![
            file(&contexts, "x"),
            file(&config, "SELINUXTYPE=targeted"),
        ]];
        let refused = flat_by(&layers, RuleSet::Bootc1).unwrap_err().to_string();
        assert!(refused.contains("`targeted`"), "{refused}");
        assert!(flat(&layers).is_ok());
    }
}

#[test]
fn what_tools_disagree_about_is_refused() {
    let refused = |members: &[Vec<u8>]| Memory::default().read(&tar(members)).unwrap_err();
    let a = || file("a", "x");
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("..", vec![file("../etc/passwd", "x")]),
        (".. inside", vec![file("a/../../b", "x")]),
        ("link outside", vec![link("a", "../etc/passwd")]),
        ("empty path", vec![file("", "x")]),
        ("empty symlink", vec![symlink("a", "")]),
        (
            "body behind a directory",
            vec![member(b'5', b"d/", b"", b"x")],
        ),
        ("body behind a link", vec![member(b'1', b"d", b"a", b"x")]),
        ("sparse", vec![member(b'S', b"a", b"", b"")]),
        ("pax sparse", vec![pax(&[("GNU.sparse.major", b"1")]), a()]),
        ("unknown type", vec![member(b'Q', b"a", b"", b"")]),
        ("one zero block", vec![a(), vec![0; 512], a()]),
        ("two pax headers", vec![pax(&[]), pax(&[]), a()]),
        ("pax before nothing", vec![pax(&[("path", b"a")])]),
        (
            "record length short",
            vec![member(b'x', b"p", b"", b"5 a=b\n"), a()],
        ),
        (
            "record length long",
            vec![member(b'x', b"p", b"", b"70 a=b\n"), a()],
        ),
        (
            "record length zero",
            vec![member(b'x', b"p", b"", b"0 a=b\n"), a()],
        ),
        (
            "record length huge",
            vec![member(b'x', b"p", b"", b"99999999999999999999 a=b\n"), a()],
        ),
        (
            "record without space",
            vec![member(b'x', b"p", b"", b"6"), a()],
        ),
        ("negative uid", vec![pax(&[("uid", b"-1")]), a()]),
        ("huge uid", vec![pax(&[("uid", b"4294967296")]), a()]),
        (
            "huge size",
            vec![pax(&[("size", b"18446744073709551615")]), a()],
        ),
        ("hexadecimal size", vec![pax(&[("size", b"0x1")]), a()]),
        ("mtime is a word", vec![pax(&[("mtime", b"now")]), a()]),
        ("NUL in a path", vec![pax(&[("path", b"a\0b")]), a()]),
        ("long component", vec![pax(&[("path", &[b'n'; 256])]), a()]),
        (
            "long path",
            vec![pax(&[("path", &b"d/".repeat(2100))]), a()],
        ),
        (
            "global path",
            vec![member(b'g', b"g", b"", b"10 path=x\n"), a()],
        ),
        (
            "giant xattr",
            vec![pax(&[("SCHILY.xattr.user.x", &vec![b'x'; 1 << 20])]), a()],
        ),
        (
            "long name without end",
            (0..3).map(|_| member(b'L', b"l", b"", b"x")).collect(),
        ),
    ];
    for (what, members) in cases {
        let error = refused(&members);
        assert!(!matches!(error, LayerError::Read { .. }), "{what}: {error}");
    }
}

#[test]
fn numbers_in_base_256_count_in_full() {
    let sized = |field: [u8; 12]| {
        let mut header = member(b'0', b"a", b"", b"");
        header[124..136].copy_from_slice(&field);
        sum(&mut header);
        Memory::default().read(&tar(&[header, vec![b'x'; 512]]))
    };
    assert!(sized([0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]).is_ok());
    assert!(matches!(sized([0xff; 12]), Err(LayerError::Number { .. })));
    // 2^64 + 5: a parser that drops the upper bits sees 5.
    let wrapping = [0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5];
    assert!(matches!(sized(wrapping), Err(LayerError::Number { .. })));
    // A size that fits and never comes.
    let absent = [0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    assert!(matches!(sized(absent), Err(LayerError::Truncated { .. })));

    let mut old = member(b'0', b"a", b"", b"");
    old[136..148].fill(0xff);
    sum(&mut old);
    let layer = Memory::default().read(&tar(&[old])).unwrap();
    assert_eq!(
        layer.entries()[0].metadata.mtime,
        Timestamp::from_seconds(-1)
    );
}

#[test]
fn global_headers_are_defaults_and_the_last_value_counts() {
    let global = [record("uid", b"7"), record("SCHILY.xattr.user.g", b"1")].concat();
    let layer = Memory::default()
        .read(&tar(&[
            member(b'g', b"g", b"", &global),
            file("a", ""),
            pax(&[("uid", b"8"), ("uid", b"9"), ("SCHILY.xattr.user.l", b"")]),
            file("b", ""),
        ]))
        .unwrap();
    let [a, b] = layer.entries() else {
        panic!("two members")
    };
    assert_eq!((a.metadata.uid, a.metadata.xattrs.len()), (7, 1));
    assert_eq!((b.metadata.uid, b.metadata.xattrs.len()), (9, 2));
}

#[test]
fn a_tar_may_lack_its_end_but_not_its_middle() {
    let memory = Memory::default();
    let whole = tar(&[file("a", "xyz"), file("b", &"long ".repeat(100))]);
    for length in 0..=whole.len() {
        let cut = &whole[..length];
        match memory.read(cut) {
            Ok(layer) => assert_eq!(memory.rewrite(&layer), cut, "cut at {length}"),
            Err(error) => assert!(
                matches!(error, LayerError::Truncated { .. }),
                "{length}: {error}"
            ),
        }
    }
    assert_eq!(
        memory
            .read(&whole[..whole.len() - 1024])
            .unwrap()
            .entries()
            .len(),
        2
    );
    let mut trailing = whole.clone();
    trailing.extend_from_slice(b"whatever follows the end");
    assert_eq!(memory.rewrite(&memory.read(&trailing).unwrap()), trailing);
}

#[test]
fn large_bodies_are_streamed_and_come_back() {
    let memory = Memory::default();
    let body = "not small ".repeat(400_000);
    let bytes = tar(&[
        file("large", &body),
        file("small", "x"),
        file("again", &body),
    ]);
    let layer = memory.read(&bytes).unwrap();
    assert_eq!(memory.rewrite(&layer), bytes);
    let cut = memory.read(&bytes[..1_500_000]).unwrap_err();
    assert!(matches!(cut, LayerError::Truncated { .. }), "{cut}");
}

#[test]
fn a_store_that_fails_ends_the_reading_with_its_own_error() {
    struct Full;
    impl Contents for Full {
        fn put(&self, _: &mut dyn Read, _: u64) -> Result<FileContent, PutError> {
            Err(PutError::Read(io::ErrorKind::StorageFull.into()))
        }
        fn put_bytes(&self, _: &[u8]) -> Result<FileContent, PutError> {
            Err(PutError::Read(io::ErrorKind::StorageFull.into()))
        }
    }
    for length in [1000, 2_000_000] {
        let body = "x".repeat(length);
        let members: Vec<_> = (0..30)
            .map(|number| file(&number.to_string(), &body))
            .collect();
        let error = layer::read(&mut &*tar(&members), &Full).unwrap_err();
        assert!(matches!(error, LayerError::Store { .. }), "{error}");
    }
}

#[test]
fn what_other_tools_write_comes_back_to_the_byte() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    let deep = root
        .join("a".repeat(60))
        .join("b".repeat(60))
        .join("c".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("file"), "x".repeat(5000)).unwrap();
    std::fs::write(root.join("empty"), "").unwrap();
    std::fs::write(root.join("ü"), "non-ASCII").unwrap();
    std::fs::write(root.join("large"), vec![7; 3 << 20]).unwrap();
    std::fs::hard_link(root.join("large"), root.join("link")).unwrap();
    std::os::unix::fs::symlink("t".repeat(150), root.join("symlink")).unwrap();
    let python = "import sys,tarfile
with tarfile.open(sys.argv[1], 'w', format=getattr(tarfile, sys.argv[3] + '_FORMAT')) as t: t.add(sys.argv[2], '.')";
    let mut tried = 0;
    for format in ["gnu", "oldgnu", "pax", "ustar", "PAX", "GNU"] {
        let out = place.path().join(format);
        let status = if format.chars().all(char::is_uppercase) {
            Command::new("python3")
                .args(["-c", python])
                .arg(&out)
                .arg(&root)
                .arg(format)
                .status()
        } else {
            Command::new("tar")
                .arg(format!("--format={format}"))
                .arg("-cf")
                .arg(&out)
                .arg("-C")
                .arg(&root)
                .arg(".")
                .stderr(std::process::Stdio::null())
                .status()
        };
        if status.is_err() {
            continue; // the tool is not on this machine
        }
        tried += 1;
        let bytes = std::fs::read(&out).unwrap();
        let memory = Memory::default();
        let layer = memory.read(&bytes).unwrap();
        assert_eq!(memory.rewrite(&layer), bytes, "{format}");
        let stored = Layer::decode(&layer.encode()).unwrap();
        assert_eq!(stored.entries(), layer.entries());
        assert_eq!(memory.rewrite(&stored), bytes, "{format}, from its table");
        let tree = flatten(&[layer], RuleSet::Exact1).unwrap();
        assert_eq!(tree.lookup(&path("large")), tree.lookup(&path("link")));
        if format != "ustar" {
            // ustar has no room for the symbolic link's target, and tar leaves it out.
            assert!(tree.lookup(&path("symlink")).is_some(), "{format}");
        }
    }
    assert!(tried > 0 || Command::new("tar").arg("--version").output().is_err());
}

#[test]
fn other_tools_read_what_is_written() {
    let memory = Memory::default();
    let mut tree = Tree::new(Metadata::root_owned(0o755));
    let mut metadata = Metadata::root_owned(0o4755);
    metadata.uid = 3_000_000;
    metadata.mtime = Timestamp {
        seconds: -2,
        nanoseconds: 250_000_000,
    };
    metadata
        .xattrs
        .insert(b"user.binary"[..].into(), b"\0\n=\xff"[..].into());
    let content = memory.put_bytes(&[b'x'; 1000]).unwrap();
    let node = Node::new(metadata.clone(), Content::File(content));
    let long = name(&[b'n'; 200]);
    let id = tree.insert(Tree::ROOT, long, node).unwrap();
    tree.link(Tree::ROOT, name(b"z\xff"), id).unwrap();
    let device = Node::new(
        metadata,
        Content::CharacterDevice(Rdev {
            major: 1,
            minor: 3_000_000,
        }),
    );
    tree.insert(Tree::ROOT, name(b"device"), device).unwrap();

    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("tar");
    std::fs::write(&out, memory.write(&tree).unwrap()).unwrap();
    let Ok(listed) = Command::new("tar")
        .args(["--numeric-owner", "-tvf"])
        .arg(&out)
        .output()
    else {
        return; // no tar on this machine
    };
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for wanted in [
        "./\n",
        "1,3000000",
        "3000000/0",
        "-rwsr-xr-x",
        "link to nnn",
    ] {
        assert!(listed.contains(wanted), "{wanted} in {listed}");
    }
}

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
fn a_table_that_lies_is_refused() {
    let memory = Memory::default();
    let body = "y".repeat(100);
    let table = memory
        .read(&tar(&[file("a", "x"), file("b", &body)]))
        .unwrap()
        .encode();
    assert!(matches!(
        Layer::decode(b"something"),
        Err(DecodeLayerError::Magic)
    ));
    let mut newer = table.clone();
    newer[8] = 1;
    assert!(matches!(
        Layer::decode(&newer),
        Err(DecodeLayerError::Features(1))
    ));
    for length in 0..table.len() {
        assert!(Layer::decode(&table[..length]).is_err(), "cut at {length}");
    }
    let longer = [table.as_slice(), b"x"].concat();
    assert!(matches!(
        Layer::decode(&longer),
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
        1 => (any::<bool>(), any::<u32>(), any::<u32>()).prop_map(|(block, major, minor)| Made::Device(block, major, minor)),
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
        let stored = Layer::decode(&layer.encode()).unwrap();
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
            let mut table = layer.encode();
            let position = position_in(&table, &memory);
            table[position] ^= 0x55;
            let _ = Layer::decode(&table);
        }
    }
}

/// Picks a position in a table that depends on what is in it.
fn position_in(table: &[u8], memory: &Memory) -> usize {
    (table.iter().map(|byte| usize::from(*byte)).sum::<usize>() + memory.0.lock().unwrap().len())
        % table.len()
}
