//! Tar streams on their way into a real store: what they take of the disk, and what they leave.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bedplate_model::{FileContent, RuleSet, Sha256};
use bedplate_store::layer::{self, Layer, LayerError};
use bedplate_store::{PutError, Store};

use crate::layer::sparse::{body, gnu};
use crate::layer::{file, member, sum, tar};

/// Whose the table is.
const DIFF_ID: Sha256 = Sha256([7; 32]);

/// A store in a directory of its own.
fn store() -> (tempfile::TempDir, Store) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("store");
    let store = Store::create(&path).unwrap();
    (place, store)
}

/// Returns how many bytes of the disk everything below a directory takes, files of less than 64 KiB left out.
fn on_disk(directory: &Path) -> u64 {
    let mut pending = vec![directory.to_owned()];
    let mut total = 0;
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.len() >= 64 << 10 {
                total += metadata.blocks() * 512;
            }
        }
    }
    total
}

#[test]
fn holes_of_a_tar_are_holes_of_the_object_and_the_tar_comes_back() {
    let (_place, store) = store();
    // More than the disk has, and a map that begins and ends with a hole.
    let size = 40 << 30;
    let bytes = tar(&[
        gnu("disk", size, &[(3 << 30, 3), (30 << 30, 1000)], false),
        body(&[&b"abc"[..], &[7; 1000]].concat()),
        file("after", "x"),
    ]);
    let transaction = store.begin().unwrap();
    let layer = layer::read(&mut &*bytes, &transaction).unwrap();
    let table = layer.encode(&DIFF_ID);
    transaction.put_layer(DIFF_ID, &table).unwrap();
    let tree = layer::flatten(&[layer], RuleSet::Exact1).unwrap();
    transaction.put_image(&tree, RuleSet::Exact1).unwrap();
    transaction.commit().unwrap();
    assert!(on_disk(store.path()) < 1 << 20);

    let stored = Layer::decode(&store.layer(&DIFF_ID).unwrap().unwrap(), &DIFF_ID).unwrap();
    let open = |content: &FileContent| -> io::Result<Box<dyn Read + '_>> {
        Ok(store.read_content(content).map_err(io::Error::other)?)
    };
    let mut again = Vec::new();
    layer::rewrite_tar(&stored, &open, &mut again).unwrap();
    assert!(again == bytes);
    let mut findings = Vec::new();
    store
        .fsck(&mut |finding| findings.push(finding.to_string()))
        .unwrap();
    assert_eq!(findings, Vec::<String>::new());
}

#[test]
fn zeros_of_a_tar_take_no_room() {
    let (_place, store) = store();
    for megabytes in [1, 40] {
        let mut dense = vec![0; megabytes << 20];
        dense[500_000] = 7;
        let bytes = tar(&[member(b'0', b"a", b"", &dense)]);
        let transaction = store.begin().unwrap();
        let layer = layer::read(&mut &*bytes, &transaction).unwrap();
        let tree = layer::flatten(&[layer], RuleSet::Exact1).unwrap();
        transaction.put_image(&tree, RuleSet::Exact1).unwrap();
        transaction.commit().unwrap();
        assert!(on_disk(store.path()) < 300_000, "{megabytes} MiB");
    }
}

/// A source that looks at a directory when it ends.
struct Watching<'a> {
    bytes: &'a [u8],
    directory: PathBuf,
    seen: u64,
}

impl Read for Watching<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() {
            self.seen = self.seen.max(on_disk(&self.directory));
        }
        self.bytes.read(buffer)
    }
}

#[test]
fn what_a_header_claims_is_not_reserved_and_a_cut_off_tar_leaves_nothing() {
    let (_place, store) = store();
    let mut header = member(b'0', b"a", b"", b"");
    // 2 TiB, where the file system has such lengths at all.
    header[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0]);
    sum(&mut header);
    let bytes = [header, vec![7; 1 << 20]].concat();
    let transaction = store.begin().unwrap();
    let mut source = Watching {
        bytes: &bytes,
        directory: store.path().to_owned(),
        seen: 0,
    };
    match layer::read(&mut source, &transaction).unwrap_err() {
        LayerError::Truncated { .. } => assert!(source.seen < 32 << 20, "{}", source.seen),
        LayerError::Store {
            source: PutError::Write { .. },
            ..
        } => {}
        error => panic!("{error}"),
    }
    assert!(on_disk(store.path()) == 0);
    drop(transaction);
    assert_eq!(fs::read_dir(store.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn many_gigabytes_of_nothing_are_read_in_moments() {
    let (_place, store) = store();
    let transaction = store.begin().unwrap();
    let bytes = tar(&[
        gnu("lastlog", 1 << 34, &[(1 << 33, 3)], false),
        body(b"abc"),
    ]);
    let Ok(layer) = layer::read(&mut &*bytes, &transaction) else {
        return; // a file system without such lengths
    };
    transaction
        .put_layer(DIFF_ID, &layer.encode(&DIFF_ID))
        .unwrap();
    transaction.commit().unwrap();
    let begin = Instant::now();
    let content = layer.contents().next().unwrap();
    let mut reader = store.read_content(content).unwrap();
    let count = io::copy(&mut reader, &mut io::sink()).unwrap();
    assert_eq!(count, 1 << 34);
    // Hashed byte for byte it would be far more, with whatever else is at work.
    assert!(begin.elapsed() < Duration::from_secs(20));
}
