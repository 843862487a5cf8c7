//! What strangers send ends in a result or in a typed error.

use super::*;

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
            "giant map",
            vec![pax(&[("GNU.sparse.map", &b"1,0,".repeat(1 << 18))]), a()],
        ),
        (
            "many globals",
            (0..300)
                .map(|number| {
                    let key = format!("SCHILY.xattr.user.{number}");
                    member(b'g', b"g", b"", &record(&key, &[b'x'; 4096]))
                })
                .chain([a()])
                .collect(),
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
    let absent = [0x80, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0];
    assert!(matches!(sized(absent), Err(LayerError::Truncated { .. })));
    // One that no file system has.
    let endless = [0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    assert!(matches!(sized(endless), Err(LayerError::TooLarge { .. })));

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
fn names_never_lead_out_of_the_tree() {
    // What may be read is read as below the root; each line: members, and the tree they give.
    let cases: Vec<(Vec<Vec<u8>>, &str)> = vec![
        (vec![file("/etc/passwd", "x")], "/etc/ /etc/passwd=x"),
        (vec![file("//a//./b", "x")], "/a/ /a/b=x"),
        (vec![link("b", "/a")], "missing"),
        (vec![file("a", "x"), link("b", "/a")], "/a=x /b=x"),
        // A link's target is text: nothing goes there.
        (vec![symlink("a", "/etc/passwd"), file("a", "x")], "/a=x"),
        (
            vec![symlink("a", "/etc"), dir("a/"), file("a/b", "x")],
            "/a/ /a/b=x",
        ),
        (
            vec![dir("a/"), symlink("a", "/etc"), file("a/b", "x")],
            "through",
        ),
        (
            vec![symlink("a", "/etc"), link("b", "a"), file("b/c", "x")],
            "through",
        ),
        (vec![file("a", "x"), file("a/b", "y")], "through"),
        // The last of several counts, whatever they were.
        (vec![file("a", "1"), file("./a", "2")], "/a=2"),
        (vec![dir("a/"), file("a/b", "1"), file("a", "2")], "/a=2"),
        (vec![link("a", "a")], "missing"),
    ];
    for (members, wanted) in cases {
        let names: Vec<_> = members
            .iter()
            .map(|member| String::from_utf8_lossy(&member[..20]).into_owned())
            .collect();
        match (flat(std::slice::from_ref(&members)), wanted) {
            (Err(FlattenError::ThroughFile { .. }), "through")
            | (Err(FlattenError::MissingTarget { .. }), "missing") => {}
            (Ok(tree), wanted) => assert_eq!(listing(&tree), wanted, "{names:?}"),
            (Err(error), _) => panic!("{names:?}: {error}"),
        }
    }
}

#[test]
fn oddities_of_pax_and_gnu_have_one_meaning() {
    let long = |kind, text: &[u8]| member(kind, b"././@LongLink", b"", text);
    /// What it is, the members, and the tree that they give, where they give one.
    type Case = (&'static str, Vec<Vec<u8>>, Result<&'static str, ()>);
    let cases: Vec<Case> = vec![
        (
            "an empty path takes the record back",
            vec![pax(&[("path", b"")]), file("a", "x")],
            Ok("/a=x"),
        ),
        (
            "the last of two records counts",
            vec![pax(&[("path", b"b"), ("path", b"c")]), file("a", "x")],
            Ok("/c=x"),
        ),
        (
            "PAX before GNU",
            vec![
                long(b'L', b"gnu\0"),
                pax(&[("path", b"pax")]),
                file("a", "x"),
            ],
            Ok("/pax=x"),
        ),
        (
            "a long name ends at its NUL",
            vec![long(b'L', b"b\0/../c"), file("a", "x")],
            Ok("/b=x"),
        ),
        (
            "an empty long name",
            vec![long(b'L', b""), file("a", "x")],
            Err(()),
        ),
        (
            "a long name that climbs",
            vec![long(b'L', b"../b\0"), file("a", "x")],
            Err(()),
        ),
        (
            "a long link",
            vec![file("a", "x"), long(b'K', b"a\0"), link("b", "other")],
            Ok("/a=x /b=x"),
        ),
        (
            "a size for a directory",
            vec![pax(&[("size", b"512")]), dir("a/"), vec![0; 512]],
            Err(()),
        ),
        (
            "a size with a sign",
            vec![pax(&[("size", b"+1")]), file("a", "x")],
            Err(()),
        ),
        (
            "a size with a space",
            vec![pax(&[("size", b" 1")]), file("a", "x")],
            Err(()),
        ),
        (
            "a negative time",
            vec![pax(&[("mtime", b"-1.5")]), file("a", "x")],
            Ok("/a=x"),
        ),
        (
            "a time beyond all",
            vec![pax(&[("mtime", b"99999999999999999999")]), file("a", "x")],
            Err(()),
        ),
        (
            "sparse 0.0",
            vec![pax(&[("GNU.sparse.numblocks", b"1")]), file("a", "x")],
            Err(()),
        ),
        (
            "sparse 0.1",
            vec![pax(&[("GNU.sparse.map", b"0,1")]), file("a", "x")],
            Err(()),
        ),
        (
            "sparse for all",
            vec![
                member(b'g', b"g", b"", &record("GNU.sparse.major", b"1")),
                file("a", "x"),
            ],
            Err(()),
        ),
        ("many volumes", vec![member(b'M', b"a", b"", b"x")], Err(())),
        (
            "a volume's name",
            vec![member(b'V', b"a", b"", b"")],
            Err(()),
        ),
        (
            "an xattr without a name",
            vec![pax(&[("SCHILY.xattr.", b"x")]), file("a", "x")],
            Ok("/a=x"),
        ),
    ];
    for (what, members, wanted) in cases {
        let memory = Memory::default();
        match (memory.read(&tar(&members)), wanted) {
            (Ok(layer), Ok(wanted)) => {
                let tree = flatten(&[layer], RuleSet::Exact1).unwrap();
                assert_eq!(listing(&tree), wanted, "{what}");
            }
            (Err(LayerError::Read { .. }), _) => panic!("{what}: is no failure to read"),
            (Err(_), Err(())) => {}
            (outcome, _) => panic!("{what}: {:?}", outcome.map(|layer| layer.entries().len())),
        }
    }
}

#[test]
fn access_lists_become_attributes_and_unclear_ones_are_refused() {
    let list = |text: &[u8]| {
        let members = [pax(&[("SCHILY.acl.access", text)]), file("a", "x")];
        Memory::default().read(&tar(&members))
    };
    let attribute = |layer: &Layer| {
        layer.entries()[0]
            .metadata
            .xattrs
            .get(&b"system.posix_acl_access"[..])
            .cloned()
    };
    let layer = list(b"user::rw-,user:7:r--,group::r--,mask::r--,other::---").unwrap();
    assert_eq!(attribute(&layer).unwrap().len(), 4 + 5 * 8);
    let stored = Layer::decode(&layer.encode(&DIFF_ID), &DIFF_ID).unwrap();
    assert_eq!(stored.entries(), layer.entries());
    // No more than the mode says.
    assert_eq!(
        attribute(&list(b"user::rw-,group::r--,other::---").unwrap()),
        None
    );
    let named = list(b"user::rw-,user:lisa:r--,group::r--,mask::r--,other::---");
    assert!(matches!(named, Err(LayerError::NamesAlone { .. })));
    assert!(matches!(list(b"nonsense"), Err(LayerError::Pax { .. })));
    // The attribute is the exact one.
    let both: &[(&str, &[u8])] = &[
        ("SCHILY.acl.access", b"nonsense"),
        ("SCHILY.xattr.system.posix_acl_access", b"exact"),
    ];
    let layer = Memory::default()
        .read(&tar(&[pax(both), file("a", "x")]))
        .unwrap();
    assert_eq!(attribute(&layer).unwrap()[..], b"exact"[..]);
}

#[test]
fn an_endless_stream_ends_in_an_error() {
    let memory = Memory::default();
    // What a decompression bomb unpacks to: zeros after the end mark, and members without end.
    let error = layer::read(&mut io::repeat(0), &memory).unwrap_err();
    assert!(matches!(error, LayerError::TooLarge { .. }), "{error}");

    struct Members(Vec<u8>, usize);
    impl Read for Members {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let from = self.1 % self.0.len();
            let count = buffer.len().min(self.0.len() - from);
            buffer[..count].copy_from_slice(&self.0[from..from + count]);
            self.1 += count;
            Ok(count)
        }
    }
    let error = layer::read(&mut Members(file("a", ""), 0), &memory).unwrap_err();
    assert!(matches!(error, LayerError::TooLarge { .. }), "{error}");
    let body = member(b'L', b"a", b"", &[b'x'; 1 << 19]);
    let error = layer::read(&mut Members(body, 0), &memory).unwrap_err();
    assert!(!matches!(error, LayerError::Read { .. }), "{error}");
}

/// A tar of so many empty files in one directory, made as it is read.
struct Many {
    left: usize,
    header: Vec<u8>,
    position: usize,
}

impl Read for Many {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.header.len() {
            let Some(left) = self.left.checked_sub(1) else {
                return Ok(0);
            };
            self.left = left;
            self.header = file(&format!("d/{left}"), "");
            self.position = 0;
        }
        let rest = &self.header[self.position..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.position += count;
        Ok(count)
    }
}

#[test]
fn a_directory_of_a_million_entries_is_taken_through_a_tar_and_an_image() {
    let count = 1_000_000;
    let mut tar = Many {
        left: count,
        header: Vec::new(),
        position: 0,
    };
    let layer = layer::read(&mut tar, &Memory::default()).unwrap();
    let table = layer.encode(&DIFF_ID);
    let tree = flatten(&[layer], RuleSet::Exact1).unwrap();
    let directory = tree.lookup(&path("d")).unwrap();
    assert_eq!(tree.entries(directory).unwrap().len(), count);
    let stored = Layer::decode(&table, &DIFF_ID).unwrap();
    assert_eq!(stored.entries().len(), count);
    drop(stored);
    let options = erofs::Options {
        version: ErofsVersion::V1,
        hard_links: erofs::HardLinks::Keep,
    };
    let mut image = Vec::new();
    erofs::write(&tree, &options, &mut image).unwrap();
    assert!(erofs::read(&image).unwrap() == tree);
}

#[test]
fn zeros_without_end_are_no_content_either() {
    // A size that hardly a disk has, and a stream that would go on for ever: what stops it is the store.
    struct Small;
    impl Contents for Small {
        fn put(&self, content: &mut dyn Read, size: u64) -> Result<FileContent, PutError> {
            let found = io::copy(&mut content.take(1 << 24), &mut io::sink()).unwrap();
            assert!(found < size);
            Err(PutError::Read(io::ErrorKind::StorageFull.into()))
        }
        fn put_bytes(&self, _: &[u8]) -> Result<FileContent, PutError> {
            unreachable!("there is one large file")
        }
    }
    let mut header = member(b'0', b"a", b"", b"");
    header[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0]);
    sum(&mut header);
    let error = layer::read(&mut header.chain(io::repeat(0)), &Small).unwrap_err();
    assert!(matches!(error, LayerError::Store { .. }), "{error}");
}

#[test]
fn attributes_that_no_file_can_have_are_refused_by_name() {
    let long = format!("user.{}", "n".repeat(251));
    for (name, what) in [
        ("user.a\0b", "has a NUL in it"),
        ("plain", "has no namespace, such as `user.`"),
        (".hidden", "has no namespace, such as `user.`"),
        ("user.", "is nothing but a namespace"),
        (&long, "is longer than 255 bytes"),
    ] {
        let key = format!("SCHILY.xattr.{name}");
        let members = [pax(&[(&key, b"v")]), file("etc/motd", "x")];
        let error = Memory::default().read(&tar(&members)).unwrap_err();
        let LayerError::XattrName {
            path, what: why, ..
        } = &error
        else {
            panic!("{name}: {error}");
        };
        assert_eq!((path.to_string().as_str(), *why), ("/etc/motd", what));
    }
    for name in ["user.a", "com.apple.quarantine", &long[..255]] {
        let key = format!("SCHILY.xattr.{name}");
        let members = [pax(&[(&key, b"v")]), file("etc/motd", "x")];
        assert!(Memory::default().read(&tar(&members)).is_ok(), "{name}");
    }
}

#[test]
fn a_mode_is_permissions_and_perhaps_a_type_and_nothing_more() {
    let with = |mode: &[u8; 8]| {
        let mut header = file("a", "");
        header[100..108].copy_from_slice(mode);
        sum(&mut header);
        let layer = Memory::default().read(&tar(&[header]))?;
        Ok::<u16, LayerError>(layer.entries()[0].metadata.mode)
    };
    assert_eq!(with(b"0000644\0").unwrap(), 0o644);
    assert_eq!(with(b"0104755\0").unwrap(), 0o4755);
    assert_eq!(with(b"0177777\0").unwrap(), 0o7777);
    for impossible in [
        b"0200000\0",
        b"7777777\0",
        &[0xff; 8],
        b"\x80\0\0\0\x01\0\0\0",
    ] {
        assert!(matches!(
            with(impossible),
            Err(LayerError::Number { field: "mode", .. })
        ));
    }
}

#[test]
fn a_path_that_is_too_long_is_said_in_a_sentence() {
    let members = [pax(&[("path", &b"d/".repeat(2100))]), file("a", "x")];
    let error = Memory::default().read(&tar(&members)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the tar member at byte 5120 has a path of more than 4095 bytes"
    );
}

#[test]
fn a_few_bytes_that_stand_for_much_are_refused_before_they_are_kept() {
    // One global attribute is every member's; together they would take more than a gigabyte.
    let global = record("SCHILY.xattr.user.x", &[b'x'; 60_000]);
    let members: Vec<Vec<u8>> = [member(b'g', b"g", b"", &global)]
        .into_iter()
        .chain((0..20_000).map(|number| file(&format!("{number}"), "")))
        .collect();
    let error = Memory::default().read(&tar(&members)).unwrap_err();
    assert!(matches!(error, LayerError::TooLarge { .. }), "{error}");

    // So are targets of links, and names of many parts.
    let long = b"t/".repeat(2000);
    let members: Vec<Vec<u8>> = (0..30_000)
        .flat_map(|number| {
            [
                pax(&[("linkpath", &long)]),
                symlink(&format!("{number}"), "t"),
            ]
        })
        .collect();
    let error = Memory::default().read(&tar(&members)).unwrap_err();
    assert!(matches!(error, LayerError::TooLarge { .. }), "{error}");
}

#[test]
fn directories_that_only_names_speak_of_are_bounded() {
    let members: Vec<Vec<u8>> = (0..60)
        .flat_map(|number| {
            let path = format!("{number}/{}f", "d/".repeat(1990));
            [pax(&[("path", path.as_bytes())]), file("f", "")]
        })
        .collect();
    let read = Memory::default().read(&tar(&members)).unwrap();
    let error = flatten(&[read], RuleSet::Exact1).unwrap_err();
    assert!(matches!(error, FlattenError::Implied { .. }), "{error}");
}
