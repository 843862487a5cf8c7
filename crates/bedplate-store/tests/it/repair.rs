//! Repair from outside: every kind of damage, and what a source can do about it.

use std::fs;
use std::path::{Path, PathBuf};

use bedplate_model::{ImageName, RootDigest, RuleSet};
use bedplate_store::fsck::Source;
use bedplate_store::{Item, RefTarget, Store, StoreSource, objects_of, scan};

fn source_directory(at: &Path) -> PathBuf {
    let path = at.join("source");
    if path.is_dir() {
        return path;
    }
    fs::create_dir_all(path.join("usr")).unwrap();
    for number in 0..5_u8 {
        fs::write(path.join(format!("usr/file-{number}")), [number; 5000]).unwrap();
    }
    path
}

fn store(at: &Path, name: &str) -> (Store, RootDigest) {
    let store = Store::create(&at.join(name)).unwrap();
    let transaction = store.begin().unwrap();
    let tree = scan(&source_directory(at), &transaction, &()).unwrap();
    let root = transaction.put_image(&tree, RuleSet::Exact1).unwrap();
    let manifest = transaction.put_blob(b"{\"a\":\"manifest\"}").unwrap();
    let image: ImageName = "os:v1".parse().unwrap();
    let target = RefTarget {
        manifest: Some(manifest),
        ..RefTarget::new(root, 1)
    };
    transaction.set_ref(&image, target).unwrap();
    transaction.commit().unwrap();
    (store, root)
}

fn findings(store: &Store, quick: bool) -> Vec<String> {
    let mut findings = Vec::new();
    let mut tell = |finding: bedplate_store::Finding| findings.push(finding.to_string());
    if quick {
        store.fsck_quick(&mut tell).unwrap();
    } else {
        store.fsck(&mut tell).unwrap();
    }
    findings
}

/// One way to damage a file.
type Damage = fn(&Path, &Path);

const DAMAGES: [(&str, Damage); 5] = [
    ("deleted", |path, _| fs::remove_file(path).unwrap()),
    ("truncated", |path, _| {
        let bytes = fs::read(path).unwrap();
        replace(path, &bytes[..bytes.len() / 2]);
    }),
    ("one bit flipped", |path, _| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        replace(path, &bytes);
    }),
    ("swapped with another file", |path, other| {
        let bytes = fs::read(other).unwrap();
        replace(path, &bytes);
    }),
    ("replaced by a directory", |path, _| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
        fs::write(path.join("x"), "x").unwrap();
    }),
];

fn replace(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn every_damage_is_found_and_repaired_from_another_store() {
    let directory = tempfile::tempdir().unwrap();
    let (good, root) = store(directory.path(), "good");
    let (bad, _) = store(directory.path(), "bad");
    let manifest = bad.refs().unwrap()[0].1.manifest.unwrap();
    let objects = objects_of(&bad.tree(&root).unwrap());
    let items = [
        Item::Object(objects[0]),
        Item::Image(root.image),
        Item::Blob(manifest),
    ];
    let other = bad.path().join(Item::Object(objects[1]).path());
    let source = StoreSource::new(Store::open(good.path()).unwrap());
    for item in items {
        for (what, damage) in DAMAGES {
            let path = bad.path().join(item.path());
            let whole = fs::read(&path).unwrap();
            damage(&path, &other);
            let found = findings(&bad, false);
            assert!(!found.is_empty(), "{item} {what} is not found");
            if !matches!(what, "one bit flipped" | "swapped with another file")
                && matches!(item, Item::Object(_))
            {
                assert!(!findings(&bad, true).is_empty(), "{item} {what}, quickly");
            }

            let hopeless = bad.repair(&[]).unwrap();
            assert_eq!(hopeless.repaired, []);
            assert_eq!(hopeless.left.len(), found.len(), "{item} {what}");
            let report = bad.repair(&[&source]).unwrap();
            assert_eq!(report.repaired, [(item, source.name())], "{item} {what}");
            assert!(report.left.is_empty(), "{item} {what}: {:?}", report.left);
            assert_eq!(fs::read(&path).unwrap(), whole);
            assert_eq!(findings(&bad, false), Vec::<String>::new());
        }
    }
    let staging = fs::read_dir(bad.path().join("tmp")).unwrap();
    assert_eq!(staging.count(), 0, "nothing is left over");
}

#[test]
fn a_damaged_file_stays_until_there_is_something_better() {
    let directory = tempfile::tempdir().unwrap();
    let (good, root) = store(directory.path(), "good");
    let (bad, _) = store(directory.path(), "bad");
    let object = Item::Object(objects_of(&bad.tree(&root).unwrap())[0]);
    for store in [&good, &bad] {
        let path = store.path().join(object.path());
        let mut bytes = fs::read(&path).unwrap();
        bytes[7] ^= 1;
        replace(&path, &bytes);
    }
    let before = fs::read(bad.path().join(object.path())).unwrap();
    let source = StoreSource::new(Store::open(good.path()).unwrap());
    let report = bad.repair(&[&source]).unwrap();
    assert_eq!(report.repaired, []);
    assert_eq!(report.left.len(), 1);
    assert_eq!(fs::read(bad.path().join(object.path())).unwrap(), before);
}

#[test]
fn an_image_that_comes_back_brings_the_objects_that_nobody_missed() {
    let directory = tempfile::tempdir().unwrap();
    let (good, root) = store(directory.path(), "good");
    let (bad, _) = store(directory.path(), "bad");
    let objects = objects_of(&bad.tree(&root).unwrap());
    fs::remove_file(bad.path().join(Item::Image(root.image).path())).unwrap();
    for id in &objects {
        fs::remove_file(bad.path().join(Item::Object(*id).path())).unwrap();
    }
    let source = StoreSource::new(Store::open(good.path()).unwrap());
    let report = bad.repair(&[&source]).unwrap();
    assert_eq!(report.repaired.len(), objects.len() + 1);
    assert!(report.left.is_empty());
    assert_eq!(findings(&bad, false), Vec::<String>::new());
}

#[test]
fn a_source_that_offers_more_than_the_image_says_is_not_read_to_its_end() {
    let place = tempfile::tempdir().unwrap();
    let (damaged, root) = store(place.path(), "damaged");
    let (hostile, _) = store(place.path(), "hostile");
    let object = objects_of(&damaged.tree(&root).unwrap())[0];
    let path = Item::Object(object).path();
    fs::remove_file(damaged.path().join(&path)).unwrap();
    let offered = hostile.path().join(&path);
    fs::remove_file(&offered).unwrap();
    let grown = fs::File::create(&offered).unwrap();
    grown.set_len(1 << 42).unwrap(); // hours to read

    let source = StoreSource::new(hostile);
    let report = damaged.repair(&[&source]).unwrap();
    assert!(report.repaired.is_empty());
    assert!(
        report
            .left
            .iter()
            .any(|finding| finding.wanted() == Some(Item::Object(object)))
    );
}
