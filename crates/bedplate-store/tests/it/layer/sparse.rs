//! Files with holes: as GNU tar and others write them, and as a liar would.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::*;

/// Makes a file of this length with some bytes at some places, and holes between.
fn holey(path: &Path, length: u64, data: &[(u64, &[u8])]) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(length).unwrap();
    for (position, bytes) in data {
        file.write_all_at(bytes, *position).unwrap();
    }
}

/// What a tar becomes, and that it comes back to the byte from its table, too.
fn round(memory: &Memory, bytes: &[u8], what: &str) -> Tree {
    let layer = memory
        .read(bytes)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(memory.rewrite(&layer) == bytes, "{what}");
    let table = layer.encode(&DIFF_ID);
    let stored = Layer::decode(&table, &DIFF_ID).unwrap();
    assert_eq!(stored.entries(), layer.entries(), "{what}");
    assert!(
        memory.rewrite(&stored) == bytes,
        "{what}, from the stored table"
    );
    flatten(&[layer], RuleSet::Exact1).unwrap()
}

fn content(memory: &Memory, tree: &Tree, name: &str) -> Vec<u8> {
    let Content::File(content) = &tree.node(tree.lookup(&path(name)).unwrap()).content else {
        panic!("{name} is no file");
    };
    let mut bytes = Vec::new();
    memory
        .open(content)
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

#[test]
fn what_tars_leave_out_is_there_again_and_the_tar_comes_back_to_the_byte() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let block = [7; 5000];
    let many: Vec<(u64, &[u8])> = (0..60).map(|n| (n * 40_000, &block[..100])).collect();
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(120));
    std::fs::create_dir(root.join("d".repeat(90))).unwrap();
    holey(&root.join("nothing"), 3_000_000, &[]);
    holey(&root.join("begin"), 3_000_000, &[(0, &block)]);
    holey(&root.join("end"), 3_000_001, &[(2_995_001, &block)]);
    holey(&root.join("middle"), 100_000, &[(40_000, &block)]);
    holey(&root.join("many"), 2_500_000, &many);
    holey(&root.join(&long), 900_000, &[(500_000, &block)]);
    std::fs::write(root.join("dense"), block).unwrap();
    std::fs::write(root.join("empty"), "").unwrap();
    let mut tried = 0;
    for (tool, arguments) in [
        ("tar", &["--format=gnu", "--sparse"][..]),
        ("tar", &["--format=oldgnu", "--sparse"]),
        ("tar", &["--format=posix", "--sparse-version=0.0"]),
        ("tar", &["--format=posix", "--sparse-version=0.1"]),
        ("tar", &["--format=posix", "--sparse-version=1.0"]),
        ("bsdtar", &["--format=pax"]),
    ] {
        let what = format!("{tool} {arguments:?}");
        let out = place.path().join("out.tar");
        let mut command = Command::new(tool);
        command.args(arguments).arg("-cf").arg(&out);
        if !command
            .arg("-C")
            .arg(&root)
            .arg(".")
            .status()
            .is_ok_and(|status| status.success())
        {
            continue; // the tool is not on this machine
        }
        let bytes = std::fs::read(&out).unwrap();
        if bytes.len() > 2_000_000 {
            continue; // this file system has no holes
        }
        tried += 1;
        let memory = Memory::default();
        let tree = round(&memory, &bytes, &what);
        for name in [
            "nothing", "begin", "end", "middle", "many", &long, "dense", "empty",
        ] {
            let wanted = std::fs::read(root.join(name)).unwrap();
            assert!(content(&memory, &tree, name) == wanted, "{what}: {name}");
        }
        assert!(
            tree.walk()
                .all(|(path, _)| !path.to_string().contains("Sparse"))
        );
    }
    assert!(tried > 0 || Command::new("tar").arg("--version").output().is_err());
}

#[test]
fn a_table_with_holes_says_so_and_none_without_it_is_believed() {
    let memory = Memory::default();
    let plain = memory.read(&tar(&[file("a", "x")])).unwrap();
    assert_eq!(plain.encode(&DIFF_ID)[8..12], [0; 4]);
    let bytes = tar(&[gnu("a", 1000, &[(500, 3)], false), body(b"abc")]);
    let mut table = memory.read(&bytes).unwrap().encode(&DIFF_ID);
    assert_eq!(table[8..12], [1, 0, 0, 0]);
    table[8] = 0;
    let error = Layer::decode(&table, &DIFF_ID).unwrap_err();
    assert!(matches!(error, DecodeLayerError::Damaged(_)), "{error}");
}

/// Makes an old GNU header of a sparse file; `more` says that a block of segments follows.
pub(crate) fn gnu(name: &str, size: u64, segments: &[(u64, u64)], more: bool) -> Vec<u8> {
    let data: u64 = segments.iter().map(|(_, length)| length).sum();
    let mut header = member(b'S', name.as_bytes(), b"", b"");
    header[257..265].copy_from_slice(b"ustar  \0");
    octal(&mut header[124..136], data);
    octal(&mut header[483..495], size);
    places(&mut header[386..482], segments);
    header[482] = more.into();
    sum(&mut header);
    header
}

fn octal(field: &mut [u8], number: u64) {
    if number >> 33 == 0 {
        field[..11].copy_from_slice(format!("{number:011o}").as_bytes());
    } else {
        field[..4].copy_from_slice(&[0x80, 0, 0, 0]);
        field[4..12].copy_from_slice(&number.to_be_bytes());
    }
}

fn places(field: &mut [u8], segments: &[(u64, u64)]) {
    for (place, (offset, length)) in field.chunks_exact_mut(24).zip(segments) {
        octal(&mut place[..12], *offset);
        octal(&mut place[12..], *length);
    }
}

/// Makes a body and its padding.
pub(crate) fn body(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn maps_that_lie_are_refused_by_the_name_of_their_file() {
    let old =
        |size, segments: &[(u64, u64)]| vec![gnu("liar", size, segments, false), body(b"abcdef")];
    let list = |records: &[(&str, &[u8])]| vec![pax(records), file("liar", "abcdef")];
    let text = |size: &[u8], text: &[u8]| {
        let records: &[(&str, &[u8])] = &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"liar"),
            ("GNU.sparse.realsize", size),
        ];
        let data = [&body(text)[..], b"abcdef"].concat();
        vec![pax(records), member(b'0', b"stand-in", b"", &data)]
    };
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut header = gnu("liar", 100, &[(0, 6)], false);
        change(&mut header);
        sum(&mut header);
        vec![header, body(b"abcdef")]
    };
    let huge = i64::MAX.to_string();
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("overlap", old(100, &[(0, 4), (3, 2)])),
        ("disorder", old(100, &[(50, 3), (10, 3)])),
        ("behind the end", old(5, &[(0, 6)])),
        ("behind the end, empty", old(5, &[(0, 5), (6, 0)])),
        (
            "larger than any",
            changed(&|header| {
                header[483..495].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0]);
            }),
        ),
        (
            "negative size",
            changed(&|header| header[483..495].fill(0xff)),
        ),
        (
            "negative offset",
            changed(&|header| header[386..398].fill(0xff)),
        ),
        (
            "negative length",
            changed(&|header| header[398..410].fill(0xff)),
        ),
        ("letters", changed(&|header| header[386..390].fill(b'z'))),
        (
            "half a segment",
            changed(&|header| header[398..410].fill(0)),
        ),
        (
            "after the end",
            changed(&|header| {
                let first = header[386..410].to_vec();
                header[410..434].fill(0);
                header[434..458].copy_from_slice(&first);
            }),
        ),
        ("more behind the end", changed(&|header| header[482] = 1)),
        (
            "POSIX header",
            changed(&|header| header[257..265].copy_from_slice(b"ustar\x0000")),
        ),
        (
            "data of another length",
            changed(&|header| octal(&mut header[124..136], 5)),
        ),
        ("no size", list(&[("GNU.sparse.map", b"0,6")])),
        (
            "empty size",
            list(&[("GNU.sparse.map", b"0,6"), ("GNU.sparse.size", b"")]),
        ),
        (
            "negative size",
            list(&[("GNU.sparse.map", b"0,6"), ("GNU.sparse.size", b"-1")]),
        ),
        (
            "huge size",
            list(&[
                ("GNU.sparse.map", b"0,6"),
                ("GNU.sparse.size", huge.as_bytes()),
            ]),
        ),
        (
            "odd list",
            list(&[("GNU.sparse.map", b"0,6,7"), ("GNU.sparse.size", b"9")]),
        ),
        (
            "list with a sign",
            list(&[("GNU.sparse.map", b"0,+6"), ("GNU.sparse.size", b"9")]),
        ),
        (
            "list with a gap",
            list(&[("GNU.sparse.map", b"0,,6,0"), ("GNU.sparse.size", b"9")]),
        ),
        (
            "sum wraps",
            list(&[
                ("GNU.sparse.map", b"5,18446744073709551615"),
                ("GNU.sparse.size", b"9"),
            ]),
        ),
        (
            "wrong count",
            list(&[
                ("GNU.sparse.map", b"0,6"),
                ("GNU.sparse.size", b"9"),
                ("GNU.sparse.numblocks", b"2"),
            ]),
        ),
        (
            "huge count",
            list(&[
                ("GNU.sparse.size", b"9"),
                ("GNU.sparse.numblocks", b"18446744073709551615"),
            ]),
        ),
        (
            "two offsets",
            list(&[
                ("GNU.sparse.size", b"9"),
                ("GNU.sparse.offset", b"0"),
                ("GNU.sparse.offset", b"1"),
                ("GNU.sparse.numbytes", b"6"),
            ]),
        ),
        (
            "length first",
            list(&[
                ("GNU.sparse.size", b"9"),
                ("GNU.sparse.numbytes", b"6"),
                ("GNU.sparse.offset", b"0"),
            ]),
        ),
        (
            "two formats",
            list(&[
                ("GNU.sparse.size", b"9"),
                ("GNU.sparse.map", b"0,6"),
                ("GNU.sparse.offset", b"0"),
            ]),
        ),
        (
            "unknown key",
            list(&[("GNU.sparse.size", b"9"), ("GNU.sparse.new", b"0")]),
        ),
        (
            "version 2",
            list(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")]),
        ),
        ("two maps", {
            let mut members = old(100, &[(0, 6)]);
            members.insert(0, pax(&[("GNU.sparse.size", b"9")]));
            members
        }),
        (
            "a sparse link",
            vec![pax(&[("GNU.sparse.size", b"9")]), link("liar", "a")],
        ),
        ("text without an end", text(b"9", b"1")),
        ("text that counts more", text(b"9", b"9\n0\n6\n")),
        ("text that counts too far", text(b"9", b"99999999\n0\n6\n")),
        (
            "text with a huge count",
            text(b"9", b"99999999999999999999\n0\n6\n"),
        ),
        ("text with endless digits", text(b"9", &[b'1'; 400])),
        ("negative text", text(b"9", b"1\n-1\n6\n")),
        ("text behind the end", text(b"5", b"1\n0\n6\n")),
        ("text of another length", text(b"9", b"1\n0\n5\n")),
    ];
    for (what, members) in cases {
        let error = Memory::default().read(&tar(&members)).unwrap_err();
        let LayerError::Sparse { path, .. } = &error else {
            panic!("{what}: {error}");
        };
        assert_eq!(path.to_string(), "/liar", "{what}");
    }
}

#[test]
fn maps_that_are_cut_off_are_truncated_and_long_ones_are_bounded() {
    let memory = Memory::default();
    let segments: Vec<(u64, u64)> = (0..100).map(|n| (n * 10, 1)).collect();
    let mut header = gnu("a", 1000, &segments[..4], true);
    octal(&mut header[124..136], 100);
    sum(&mut header);
    let mut blocks = vec![header];
    for (index, some) in segments[4..].chunks(21).enumerate() {
        let mut block = vec![0; 512];
        places(&mut block[..504], some);
        block[504] = u8::from(4 + 21 * (index + 1) < segments.len());
        blocks.push(block);
    }
    blocks.push(body(&[b'x'; 100]));
    let bytes = blocks.concat();
    let tree = round(&memory, &[&bytes[..], &[0; 1024]].concat(), "many blocks");
    let wanted: Vec<u8> = [&b"x"[..], &[0; 9]].concat().repeat(100);
    assert_eq!(content(&memory, &tree, "a"), wanted);
    for length in (512..bytes.len() - 412).step_by(100) {
        let error = memory.read(&bytes[..length]).unwrap_err();
        assert!(
            matches!(error, LayerError::Truncated { .. }),
            "{length}: {error}"
        );
    }

    // A map without end: only empty segments, block after block.
    struct Endless(Vec<u8>, u64);
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                self.0 = vec![0; 512];
                places(&mut self.0[..504], &[(0, 0); 21]);
                self.0[504] = 1;
            }
            let count = buffer.len().min(self.0.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0.drain(..count);
            self.1 += count as u64;
            Ok(count)
        }
    }
    let mut endless = Endless(gnu("a", 1000, &[(0, 0); 4], true), 0);
    let error = layer::read(&mut endless, &memory).unwrap_err();
    assert!(matches!(error, LayerError::Sparse { .. }), "{error}");
    assert!(endless.1 < 32 << 20, "{} bytes were read", endless.1);
}
