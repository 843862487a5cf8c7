//! Beside the tools of others.

use super::*;

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
        let stored = Layer::decode(&layer.encode(&DIFF_ID), &DIFF_ID).unwrap();
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
fn access_lists_travel_through_gnu_tar_both_ways() {
    use bedplate_sys::xattr;
    const LIST: &[u8] = b"system.posix_acl_access";
    let list = [
        &[2, 0, 0, 0][..],
        &[1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff],
        &[2, 0, 4, 0, 0x39, 0x30, 0, 0], // user 12345, who has no name
        &[4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff],
        &[0x10, 0, 4, 0, 0xff, 0xff, 0xff, 0xff],
        &[0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
    ]
    .concat();
    let place = tempfile::tempdir().unwrap();
    let (from, to) = (place.path().join("from"), place.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    std::fs::create_dir(&to).unwrap();
    std::fs::write(from.join("file"), "x").unwrap();
    let file = std::fs::File::open(from.join("file")).unwrap();
    if xattr::set_on_file(&file, LIST, &list).is_err() {
        return; // a file system without access lists
    }
    let out = place.path().join("tar");
    let tar = |arguments: &[&str], directory: &std::path::Path, members: &[&str]| {
        let mut command = Command::new("tar");
        command.args(arguments).arg(&out).arg("-C").arg(directory);
        let status = command.args(members).status();
        status.is_ok_and(|status| status.success())
    };
    if !tar(&["--acls", "--numeric-owner", "-cf"], &from, &["."]) {
        return; // no tar that knows them
    }
    let memory = Memory::default();
    let layer = memory.read(&std::fs::read(&out).unwrap()).unwrap();
    let tree = flatten(&[layer], RuleSet::Exact1).unwrap();
    let node = tree.node(tree.lookup(&path("file")).unwrap());
    assert_eq!(
        node.metadata.xattrs.get(LIST).map(|list| &list[..]),
        Some(&list[..])
    );

    let written = memory.write(&tree).unwrap();
    let again = flatten(&[memory.read(&written).unwrap()], RuleSet::Exact1).unwrap();
    assert_eq!(again.node(again.lookup(&path("file")).unwrap()), node);
    std::fs::write(&out, &written).unwrap();
    assert!(tar(&["--acls", "-xf"], &to, &[]));
    let file = std::fs::File::open(to.join("file")).unwrap();
    assert_eq!(
        xattr::of_file(&file)
            .unwrap()
            .get(LIST)
            .map(|list| &list[..]),
        Some(&list[..])
    );
}
