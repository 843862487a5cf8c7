//! Tars that are no layers: nothing vouches for them, and what they bring must fit into a file system.

use bedplate_model::FileContent;
use bedplate_store::layer::ImportError;
use bedplate_store::{CheckoutError, CheckoutOptions, Store, checkout};
use bedplate_sys::xattr;

use super::*;

const ACCESS: &[u8] = b"system.posix_acl_access";

fn import(tar: &[u8]) -> Result<Tree, LayerError> {
    layer::import(&mut &*tar, &Memory::default()).map_err(|error| match error {
        ImportError::Read(error) => error,
        ImportError::Flatten(error) => panic!("{error}"),
    })
}

/// Imports a file with these records before it, and returns its attributes.
fn import_file(records: &[(&str, &[u8])]) -> Result<Metadata, LayerError> {
    let tree = import(&tar(&[pax(records), file("etc/motd", "x")]))?;
    Ok(metadata(&tree, "etc/motd").clone())
}

fn metadata<'a>(tree: &'a Tree, at: &str) -> &'a Metadata {
    &tree.node(tree.lookup(&path(at)).unwrap()).metadata
}

fn export(tree: &Tree, kind: TarKind) -> Result<Vec<u8>, WriteTarError> {
    let mut tar = Vec::new();
    let open = |_: &FileContent| -> io::Result<Box<dyn Read>> { panic!("all contents are small") };
    write_tar(tree, kind, &open, &mut tar)?;
    Ok(tar)
}

/// An access list: owner rwx, user 7 rwx, group r-x, this mask, others r-x.
fn list(mask: u8) -> Vec<u8> {
    [
        &[2, 0, 0, 0][..],
        &[1, 0, 7, 0, 0xff, 0xff, 0xff, 0xff],
        &[2, 0, 7, 0, 7, 0, 0, 0],
        &[4, 0, 5, 0, 0xff, 0xff, 0xff, 0xff],
        &[0x10, 0, mask, 0, 0xff, 0xff, 0xff, 0xff],
        &[0x20, 0, 5, 0, 0xff, 0xff, 0xff, 0xff],
    ]
    .concat()
}

#[test]
fn an_owner_that_is_nobody_is_refused_on_every_way() {
    for field in ["uid", "gid"] {
        let records: &[(&str, &[u8])] = &[(field, b"4294967295")];
        let mut header = file("etc/motd", "x");
        let at = if field == "uid" { 108 } else { 116 };
        header[at..at + 8].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        sum(&mut header[..512]);
        for bytes in [tar(&[pax(records), file("etc/motd", "x")]), tar(&[header])] {
            for error in [
                import(&bytes).unwrap_err(),
                Memory::default().read(&bytes).unwrap_err(),
            ] {
                assert_eq!(
                    error.to_string(),
                    format!("/etc/motd in the tar has the {field} 4294967295, which is nobody's")
                );
            }
        }
        assert!(import_file(&[(field, b"4294967294")]).is_ok());
        assert!(matches!(
            import_file(&[(field, b"4294967296")]),
            Err(LayerError::Number { .. })
        ));

        // An image from elsewhere may have one.
        let mut tree = Tree::new(Metadata::root_owned(0o755));
        let mut metadata = Metadata::root_owned(0o4755);
        match field {
            "uid" => metadata.uid = u32::MAX,
            _ => metadata.gid = u32::MAX,
        }
        let node = Node::new(metadata, Content::Fifo);
        tree.insert(Tree::ROOT, name(b"su"), node).unwrap();
        for kind in [TarKind::Layer, TarKind::RootFileSystem] {
            assert!(matches!(
                export(&tree, kind),
                Err(WriteTarError::Nobody { .. })
            ));
        }
        let place = tempfile::tempdir().unwrap();
        let store = Store::create(&place.path().join("store")).unwrap();
        let copy = place.path().join("copy");
        let refused = checkout(&store, &tree, &copy, CheckoutOptions::default());
        assert!(matches!(refused, Err(CheckoutError::Nobody { .. })));
        assert!(!copy.exists());
        let options = CheckoutOptions { unprivileged: true };
        let made = checkout(&store, &tree, &copy, options).unwrap();
        assert_eq!(made.left_out, 2, "the owner, and setuid with it");
        use std::os::unix::fs::PermissionsExt as _;
        let mode = copy.join("su").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }
}

#[test]
fn an_archive_that_ends_early_is_refused_wherever_it_was_cut() {
    let whole = tar(&[file("a", "xyz"), file("b", &"long ".repeat(100))]);
    for length in 0..=whole.len() {
        let outcome = import(&whole[..length]);
        if length >= whole.len() - 512 {
            assert!(outcome.is_ok(), "one zero block is an end, {length}");
            continue;
        }
        match outcome.unwrap_err() {
            LayerError::NoEnd { .. } => assert!(length == 0 || length >= 515, "{length}"),
            LayerError::Truncated { .. } => assert!(length % 512 != 0 || length < 2048, "{length}"),
            error => panic!("{length}: {error}"),
        }
    }
    let boundary = import(&whole[..whole.len() - 1024]).unwrap_err();
    assert_eq!(
        boundary.to_string(),
        "the tar ends at byte 2048 without its end mark: something may be missing"
    );
    let mut trailing = whole.clone();
    trailing.extend_from_slice(b"whatever follows the end");
    assert!(import(&trailing).is_ok());
}

#[test]
fn the_mode_beside_an_access_list_is_the_one_that_linux_derives() {
    let text: &[u8] = b"user::rwx,user:7:rwx,group::r-x,mask::rwx,other::r-x";
    let binary = list(7);
    for records in [
        [("SCHILY.acl.access", text)],
        [("SCHILY.xattr.system.posix_acl_access", &binary[..])],
    ] {
        let found = import_file(&records).unwrap();
        assert_eq!(found.mode, 0o775);
        assert_eq!(found.xattrs[ACCESS][..], binary[..]);
    }
    // Without a mask it is the group's own; a list that says no more is none.
    let found = import_file(&[("SCHILY.acl.access", b"u::rw-,g::-w-,o::--x")]).unwrap();
    assert_eq!((found.mode, found.xattrs.len()), (0o621, 0));
    // Bits that no list has stay.
    let mut header = member(b'5', b"etc/motd", b"", b"");
    header[100..107].copy_from_slice(b"0006700");
    sum(&mut header);
    let tree = import(&tar(&[pax(&[("SCHILY.acl.access", text)]), header])).unwrap();
    assert_eq!(metadata(&tree, "etc/motd").mode, 0o6775);

    // Of a registry's layer every tool keeps the mode of the header.
    let layer = tar(&[pax(&[("SCHILY.acl.access", text)]), file("etc/motd", "x")]);
    let layer = Memory::default().read(&layer).unwrap();
    assert_eq!(layer.entries()[0].metadata.mode, 0o755);
    let stored = Layer::decode(&layer.encode(&DIFF_ID), &DIFF_ID).unwrap();
    assert_eq!(stored.entries(), layer.entries());
}

#[test]
fn a_mode_that_contradicts_its_access_list_is_checked_out_as_the_list_and_told() {
    let mut tree = Tree::new(Metadata::root_owned(0o755));
    let mut insert = |at: &[u8], mode, mask, content| {
        let mut metadata = Metadata::root_owned(mode);
        (metadata.uid, metadata.gid) = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        if let Some(mask) = mask {
            metadata.xattrs.insert(ACCESS.into(), list(mask).into());
        }
        tree.insert(Tree::ROOT, name(at), Node::new(metadata, content))
            .unwrap();
    };
    insert(b"agrees", 0o775, Some(7), Content::Fifo);
    insert(b"contradicts", 0o755, Some(7), Content::empty_directory());
    insert(b"link", 0o777, None, Content::Symlink(b"x"[..].into()));
    insert(b"odd-link", 0o644, None, Content::Symlink(b"x"[..].into()));
    let place = tempfile::tempdir().unwrap();
    let probe = std::fs::File::open(place.path()).unwrap();
    if xattr::set_on_file(&probe, ACCESS, &list(7)).is_err() {
        return; // a file system without access lists
    }
    let store = Store::create(&place.path().join("store")).unwrap();
    let copy = place.path().join("copy");
    let options = CheckoutOptions { unprivileged: true };
    let made = checkout(&store, &tree, &copy, options).unwrap();
    assert_eq!(made.other_modes.count, 2);
    let (_, wanted, found) = made.other_modes.example.unwrap();
    assert!([(0o755, 0o775), (0o644, 0o777)].contains(&(wanted, found)));
    let directory = std::fs::File::open(copy.join("contradicts")).unwrap();
    assert_eq!(xattr::of_file(&directory).unwrap()[ACCESS][..], list(7)[..]);
}

#[test]
fn attributes_that_no_file_system_takes_are_refused_with_their_file() {
    let refused = |records: &[(&str, &[u8])]| {
        let error = import_file(records).unwrap_err();
        assert!(matches!(error, LayerError::XattrValue { .. }), "{error}");
        let text = error.to_string();
        assert!(text.starts_with("/etc/motd in the tar has"), "{text}");
        // A layer is taken as the other tools take it.
        let layer = tar(&[pax(records), file("etc/motd", "x")]);
        assert!(Memory::default().read(&layer).is_ok());
    };
    let mut unsorted = list(7);
    unsorted[4..20].rotate_left(8);
    for (key, value) in [
        ("SCHILY.xattr.system.posix_acl_access", &b"x"[..]),
        ("SCHILY.xattr.system.posix_acl_access", &unsorted),
        ("SCHILY.xattr.system.posix_acl_access", &list(8)),
        ("SCHILY.xattr.system.posix_acl_default", &list(7)), // on a file
        ("SCHILY.xattr.security.capability", b"junk"),
        ("SCHILY.xattr.security.capability", b""),
        ("SCHILY.xattr.system.foo", b"x"),
    ] {
        refused(&[(key, value)]);
    }
    let records: &[(&str, &[u8])] = &[("SCHILY.xattr.system.posix_acl_default", &list(7))];
    assert!(import(&tar(&[pax(records), dir("d")])).is_ok());
    let records: &[(&str, &[u8])] = &[("SCHILY.xattr.system.posix_acl_access", &list(7))];
    assert!(import(&tar(&[pax(records), symlink("s", "t")])).is_err());
    let capability = [&[1, 0, 0, 2][..], &[0; 16]].concat();
    assert!(import_file(&[("SCHILY.xattr.security.capability", &capability)]).is_ok());
}

#[test]
fn a_symbolic_link_has_the_one_mode_that_linux_gives_it() {
    let link = tar(&[symlink("s", "t")]); // with mode 0755
    assert_eq!(metadata(&import(&link).unwrap(), "s").mode, 0o777);
    let layer = Memory::default().read(&link).unwrap();
    assert_eq!(
        layer.entries()[0].metadata.mode,
        0o755,
        "in a layer it stays"
    );
}

#[test]
fn paths_of_up_to_64_kib_go_out_and_come_back() {
    for length in [4094, 4095, 4096, 30_000, 65_536] {
        let components = length / 2; // `a/` each, but the last
        let mut tree = Tree::new(Metadata::root_owned(0o755));
        let mut at = Tree::ROOT;
        for depth in 1..components {
            // Long names keep the tree flat enough for a quick test.
            if depth * 256 > length - 256 {
                break;
            }
            let node = Node::new(Metadata::root_owned(0o755), Content::empty_directory());
            at = tree.insert(at, name(&[b'd'; 255]), node).unwrap();
        }
        let left = length - (length - 256) / 256 * 256;
        let mut left = left;
        while left > 255 {
            let node = Node::new(Metadata::root_owned(0o755), Content::empty_directory());
            at = tree.insert(at, name(b"e"), node).unwrap();
            left -= 2;
        }
        let content = Content::File(FileContent::Inline(b"x"[..].into()));
        let node = Node::new(Metadata::root_owned(0o644), content);
        let id = tree.insert(at, name(&vec![b'f'; left]), node).unwrap();
        tree.link(Tree::ROOT, name(b"z"), id).unwrap();
        let deepest = tree.walk().map(|(path, _)| path.to_bytes().len()).max();
        assert_eq!(deepest, Some(length));

        let written = export(&tree, TarKind::RootFileSystem).unwrap();
        assert!(import(&written).unwrap() == tree, "{length}");
        let as_layer = export(&tree, TarKind::Layer);
        if length <= 4095 {
            assert!(as_layer.is_ok(), "{length}");
        } else {
            assert!(matches!(
                as_layer,
                Err(WriteTarError::PathTooLong { limit: 4095, .. })
            ));
            assert!(matches!(
                Memory::default().read(&written),
                Err(LayerError::LongPath { limit: 4095, .. })
            ));
        }
    }
    let long = [&b"d/".repeat(32 << 10)[..], b"f"].concat();
    let members = [
        member(b'L', b"././@LongLink", b"", &[&long[..], b"\0"].concat()),
        file("d", "x"),
    ];
    let error = import(&tar(&members)).unwrap_err();
    assert!(matches!(error, LayerError::LongPath { limit: 65_536, .. }));
    // What walks a tree holds something for each level.
    let deep = [&b"d/".repeat(2048)[..], b"f"].concat();
    let members = [pax(&[("path", &deep[2..])]), file("f", "x")];
    let mut tree = import(&tar(&members)).unwrap();
    let members = [pax(&[("path", &deep)]), file("f", "x")];
    assert!(matches!(
        import(&tar(&members)),
        Err(LayerError::TooLarge { limit: 2048, .. })
    ));
    let deepest = tree.lookup(&TreePath::parse(&deep[2..deep.len() - 2]).unwrap());
    let node = Node::new(Metadata::root_owned(0o755), Content::empty_directory());
    let below = tree.insert(deepest.unwrap(), name(b"e"), node).unwrap();
    let node = Node::new(Metadata::root_owned(0o644), Content::Fifo);
    tree.insert(below, name(b"f"), node).unwrap();
    assert!(matches!(
        export(&tree, TarKind::RootFileSystem),
        Err(WriteTarError::TooDeep { .. })
    ));
    // Targets of symbolic links are bounded by the kernel.
    let target = pax(&[("linkpath", &[b't'; 4096])]);
    assert!(import(&tar(&[target, symlink("s", "t")])).is_err());
}

#[test]
fn labels_and_attributes_of_gnu_tar_and_libarchive_are_read() {
    let label = b"system_u:object_r:etc_t:s0";
    let found = import_file(&[
        ("RHT.security.selinux", label),
        ("LIBARCHIVE.xattr.user.a%3Db", b"AAEC/w"),
    ])
    .unwrap();
    let with_nul = [&label[..], b"\0"].concat();
    assert_eq!(found.xattrs[&b"security.selinux"[..]][..], with_nul[..]);
    assert_eq!(found.xattrs[&b"user.a=b"[..]][..], *b"\0\x01\x02\xff");
    // Where several say it, the one that all tools know counts.
    let found = import_file(&[
        ("SCHILY.xattr.security.selinux", b"exact"),
        ("RHT.security.selinux", label),
        ("LIBARCHIVE.xattr.user.a", b"eA=="),
        ("SCHILY.xattr.user.a", b"y"),
    ])
    .unwrap();
    assert_eq!(found.xattrs[&b"security.selinux"[..]][..], *b"exact");
    assert_eq!(found.xattrs[&b"user.a"[..]][..], *b"y");
    for (key, value) in [
        ("LIBARCHIVE.xattr.user.a", &b"x"[..]),
        ("LIBARCHIVE.xattr.user.%", b"eA"),
    ] {
        assert!(matches!(
            import_file(&[(key, value)]),
            Err(LayerError::Pax { .. })
        ));
    }
    // Tools for containers see neither, and other images would come of it.
    let layer = tar(&[pax(&[("RHT.security.selinux", label)]), file("a", "x")]);
    let layer = Memory::default().read(&layer).unwrap();
    assert!(layer.entries()[0].metadata.xattrs.is_empty());
}

#[test]
fn what_bsdtar_writes_of_attributes_is_read_from_either_of_its_records() {
    let place = tempfile::tempdir().unwrap();
    let from = place.path().join("file");
    std::fs::write(&from, "x").unwrap();
    let handle = std::fs::File::open(&from).unwrap();
    let value = b"\0binary\xff=\n";
    let names = [&b"user.plain"[..], b"user.with space"];
    let set = |name| xattr::set_on_file(&handle, name, value);
    if names.into_iter().any(|name| set(name).is_err()) {
        return; // a file system without attributes
    }
    for header in ["SCHILY", "LIBARCHIVE", "ALL"] {
        let out = place.path().join(header);
        let written = Command::new("bsdtar")
            .args(["--format=pax", "--xattrs"])
            .arg(format!("--options=xattrheader={header}"))
            .arg("-cf")
            .arg(&out)
            .arg("-C")
            .arg(place.path())
            .arg("file")
            .status();
        if !written.is_ok_and(|status| status.success()) {
            return; // no bsdtar on this machine, or one that knows no such option
        }
        let tree = import(&std::fs::read(&out).unwrap()).unwrap();
        let found = &metadata(&tree, "file").xattrs;
        assert_eq!(found[names[0]][..], value[..], "{header}");
        // Nothing tells whose a record of star's is, and only libarchive escapes in it.
        if header != "SCHILY" {
            assert_eq!(found.len(), 2, "{header}");
            assert_eq!(found[names[1]][..], value[..], "{header}");
        }
    }
}
