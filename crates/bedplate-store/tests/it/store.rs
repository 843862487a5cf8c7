//! The store from outside: what goes in comes out, at any time, beside anybody.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use bedplate_model::{FileContent, ImageName, RootDigest, RuleSet};
use bedplate_store::{
    BLOB_MAX, CheckoutOptions, DigestOnly, Finding, GcPolicy, PutError, ReadStoreError, RefTarget,
    Store, checkout, scan,
};
use tempfile::TempDir;

/// A store and a directory for trees, gone after the test.
struct Place {
    directory: TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(&directory.path().join("store")).unwrap();
        Self { directory, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn commit(&self, path: &Path, name: &str) -> RootDigest {
        let transaction = self.store.begin().unwrap();
        let tree = scan(path, &transaction, &()).unwrap();
        let root = transaction.put_image(&tree, RuleSet::Exact1).unwrap();
        transaction.set_ref(&image(name), target(root)).unwrap();
        transaction.commit().unwrap();
        root
    }

    fn untag(&self, name: &str) {
        let transaction = self.store.begin().unwrap();
        transaction.remove_ref(&image(name));
        transaction.commit().unwrap();
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.store
            .fsck(&mut |finding| findings.push(finding))
            .unwrap();
        findings
    }

    /// Lists everything in the store that is not there from the beginning.
    fn leftovers(&self) -> Vec<PathBuf> {
        ["tmp", "trash", "images", "blobs", "layers"]
            .iter()
            .flat_map(|name| fs::read_dir(self.store.path().join(name)).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect()
    }
}

fn image(name: &str) -> ImageName {
    name.parse().unwrap()
}

fn target(root: RootDigest) -> RefTarget {
    RefTarget::new(root, 1)
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Makes a directory that has one of everything.
fn awkward(path: &Path) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    fs::create_dir_all(path.join("usr/empty")).unwrap();
    fs::write(path.join("usr/empty-file"), "").unwrap();
    fs::write(path.join("usr/inline"), [7; 64]).unwrap();
    fs::write(path.join("usr/object"), [7; 65]).unwrap();
    fs::write(path.join("usr/same"), [7; 65]).unwrap();
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n >> 3) as u8).collect();
    fs::write(path.join("usr/large"), large).unwrap();
    fs::write(path.join(OsStr::from_bytes(b"not \xff utf-8\n")), "x").unwrap();
    fs::hard_link(path.join("usr/object"), path.join("linked")).unwrap();
    fs::hard_link(path.join("usr/object"), path.join("usr/empty/linked")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", path.join("usr/link")).unwrap();
    std::os::unix::fs::symlink("../..", path.join("usr/up")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(rustix::fs::CWD, path.join("fifo"), fifo, mode, 0).unwrap();
    if is_root() {
        let device = rustix::fs::makedev(1, 3);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, path.join("null"), kind, mode, device).unwrap();
        std::os::unix::fs::chown(path.join("usr/large"), Some(1000), Some(70_000)).unwrap();
        std::os::unix::fs::lchown(path.join("usr/link"), Some(7), Some(8)).unwrap();
        let name = "security.capability";
        let value = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(path.join("usr/object"), name, value, flags).unwrap();
    }
    fs::set_permissions(path.join("usr/inline"), PermissionsExt::from_mode(0o4751)).unwrap();
    fs::set_permissions(path.join("usr/empty"), PermissionsExt::from_mode(0o1777)).unwrap();
    let time = rustix::fs::Timespec {
        tv_sec: -5,
        tv_nsec: 123_456_789,
    };
    let times = rustix::fs::Timestamps {
        last_access: time,
        last_modification: time,
    };
    for name in ["usr/link", "usr/object", "usr", ""] {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, path.join(name), &times, flags).unwrap();
    }
}

#[test]
fn a_directory_comes_back_with_every_attribute() {
    let place = Place::new();
    let source = place.path("source");
    awkward(&source);
    let root = place.commit(&source, "os:v1");
    let found = place.store.resolve(&image("os:v1")).unwrap().unwrap();
    assert_eq!(found.root, root);
    let tree = place.store.tree(&root).unwrap();

    let copy = place.path("copy");
    checkout(&place.store, &tree, &copy, CheckoutOptions::default()).unwrap();
    let before = scan(&source, &DigestOnly(place.store.algorithm()), &()).unwrap();
    let after = scan(&copy, &DigestOnly(place.store.algorithm()), &()).unwrap();
    assert_eq!(bedplate_store::diff(&before, &after), []);
    assert!(before == after);
    assert!(before == tree);
    assert_eq!(place.commit(&copy, "os:v2"), root);
    assert!(place.findings().is_empty());
    assert!(checkout(&place.store, &tree, &copy, CheckoutOptions::default()).is_err());
}

#[test]
fn a_dropped_transaction_leaves_nothing() {
    let place = Place::new();
    let source = place.path("source");
    awkward(&source);
    let transaction = place.store.begin().unwrap();
    scan(&source, &transaction, &()).unwrap();
    transaction.put_blob(b"{}").unwrap();
    drop(transaction);
    assert_eq!(place.leftovers(), Vec::<PathBuf>::new());
    assert_eq!(place.store.usage().unwrap().objects, 0);
}

#[test]
fn contents_of_another_length_than_promised_are_refused() {
    let place = Place::new();
    let transaction = place.store.begin().unwrap();
    let large = vec![1; 1_000_000];
    for (bytes, size) in [
        (&large[..100], 99),
        (&large[..100], 101),
        (&large[..], 999_999),
        (&large[..], 1_000_001),
        (&large[..3], 2),
    ] {
        assert!(transaction.put_object(&mut &*bytes, size).is_err());
    }
    let content = transaction.put_object(&mut &large[..], 1_000_000).unwrap();
    transaction.commit().unwrap();
    assert_eq!(place.store.read_small(&content, u64::MAX).unwrap(), large);
    assert!(place.store.read_small(&content, 1000).is_err());
}

#[test]
fn gc_removes_what_nothing_reaches_and_keeps_the_rest() {
    let place = Place::new();
    let (one, two) = (place.path("one"), place.path("two"));
    for (path, own) in [(&one, "one"), (&two, "two")] {
        fs::create_dir(path).unwrap();
        fs::write(path.join("shared"), [1; 1000]).unwrap();
        fs::write(path.join("own"), own.repeat(1000)).unwrap();
    }
    let first = place.commit(&one, "os:v1");
    let second = place.commit(&two, "os:v2");
    place.store.pin(&pin("mount-1", first)).unwrap();
    place.untag("os:v1");
    assert_eq!(gc(&place), 0, "the mount holds it");
    place.store.unpin("mount-1").unwrap();

    let planned = place.store.gc(&GcPolicy::default(), true).unwrap();
    let done = place.store.gc(&GcPolicy::default(), false).unwrap();
    assert_eq!(planned, done, "a dry run says what happens");
    assert_eq!(done.removed.len(), 2, "the image and its own object");
    assert!(place.store.tree(&first).is_err());
    place.store.tree(&second).unwrap();
    assert!(place.findings().is_empty());
    assert_eq!(gc(&place), 0);
}

#[test]
fn a_store_of_sha512_names_is_a_store_like_others() {
    let place = Place::new();
    let format = place.store.path().join("format.json");
    let text = fs::read_to_string(&format).unwrap();
    assert!(text.contains("\"sha256\""), "{text}");
    fs::write(&format, text.replace("\"sha256\"", "\"sha512\"")).unwrap();
    let store = Store::open(place.store.path()).unwrap();
    let place = Place { store, ..place };

    let tree = place.path("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("large"), vec![7; 100_000]).unwrap();
    fs::write(tree.join("small"), "x").unwrap();
    let root = place.commit(&tree, "localhost/os:1");
    assert_eq!(root.image.algorithm(), bedplate_model::Algorithm::Sha512);
    assert!(place.findings().is_empty());
    let copy = place.path("copy");
    let stored = place.store.tree(&root).unwrap();
    checkout(&place.store, &stored, &copy, CheckoutOptions::default()).unwrap();
    assert_eq!(fs::read(copy.join("large")).unwrap(), vec![7; 100_000]);

    place.untag("localhost/os:1");
    place.store.gc(&GcPolicy::default(), false).unwrap();
    assert_eq!(place.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn gc_takes_nothing_from_a_live_transaction() {
    let place = Place::new();
    let source = place.path("source");
    awkward(&source);
    let root = place.commit(&source, "os:v1");

    // The transaction reuses every object; then the only ref to them goes.
    let transaction = place.store.begin().unwrap();
    let tree = scan(&source, &transaction, &()).unwrap();
    place.untag("os:v1");
    gc(&place);
    assert_eq!(transaction.put_image(&tree, RuleSet::Exact1).unwrap(), root);
    gc(&place);
    transaction.set_ref(&image("os:v2"), target(root)).unwrap();
    transaction.commit().unwrap();
    gc(&place);
    assert!(place.findings().is_empty());
    let copy = place.path("copy");
    checkout(&place.store, &tree, &copy, CheckoutOptions::default()).unwrap();
}

#[test]
fn a_ref_to_an_image_that_gc_took_is_refused() {
    let place = Place::new();
    let source = place.path("source");
    awkward(&source);
    let root = place.commit(&source, "os:v1");
    place.untag("os:v1");
    gc(&place);
    let transaction = place.store.begin().unwrap();
    assert!(transaction.set_ref(&image("os:v2"), target(root)).is_err());
}

#[test]
fn commits_and_gc_side_by_side_leave_a_whole_store() {
    let place = Place::new();
    let sources: Vec<PathBuf> = (0..3)
        .map(|number| {
            let source = place.path(&format!("source-{number}"));
            awkward(&source);
            fs::write(source.join("own"), format!("{number}").repeat(500)).unwrap();
            source
        })
        .collect();
    std::thread::scope(|scope| {
        for (number, source) in sources.iter().enumerate() {
            let place = &place;
            scope.spawn(move || {
                for _ in 0..8 {
                    place.commit(source, &format!("os:v{number}"));
                    place.untag(&format!("os:v{number}"));
                }
                place.commit(source, &format!("os:v{number}"));
            });
        }
        // A second handle of the same store, as another process has it.
        let other = Store::open(place.store.path()).unwrap();
        scope.spawn(move || {
            for _ in 0..20 {
                other.gc(&GcPolicy::default(), false).unwrap();
            }
        });
    });
    assert!(place.findings().is_empty(), "{:?}", place.findings());
    for number in 0..3 {
        let name = image(&format!("os:v{number}"));
        let found = place.store.resolve(&name).unwrap().unwrap();
        let copy = place.path(&format!("copy-{number}"));
        let tree = place.store.tree(&found.root).unwrap();
        checkout(&place.store, &tree, &copy, CheckoutOptions::default()).unwrap();
    }
}

#[test]
fn what_a_dead_process_left_is_removed() {
    let place = Place::new();
    let dead = place.store.path().join("tmp/1-1");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("part-0"), "half").unwrap();
    let report = place.store.gc(&GcPolicy::default(), false).unwrap();
    assert_eq!(report.abandoned, 1);
    assert_eq!(place.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn damage_is_found_by_fsck_and_by_whoever_reads() {
    let place = Place::new();
    let source = place.path("source");
    awkward(&source);
    let root = place.commit(&source, "os:v1");
    let tree = place.store.tree(&root).unwrap();
    let objects = bedplate_store::objects_of(&tree);
    assert_eq!(objects.len(), 2);
    for id in objects {
        let path = place.store.objects_dir().join(id.object_path());
        let good = fs::read(&path).unwrap();
        let size = good.len() as u64;
        let content = FileContent::Object { id, size };
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bad in [flipped, good[..good.len() - 1].to_vec(), Vec::new()] {
            replace(&path, &bad);
            let error = place.store.read_small(&content, u64::MAX).unwrap_err();
            assert!(error.to_string().contains(&id.to_hex()), "{error}");
            let mut reader = place.store.read_content(&content).unwrap();
            assert!(std::io::copy(&mut reader, &mut std::io::sink()).is_err());
            assert!(place.findings()[0].to_string().contains(&id.to_hex()));
            let copy = place.path("copy");
            assert!(checkout(&place.store, &tree, &copy, CheckoutOptions::default()).is_err());
            assert!(!copy.exists(), "a failed checkout leaves nothing");
        }
        fs::remove_file(&path).unwrap();
        let findings: Vec<String> = place.findings().iter().map(ToString::to_string).collect();
        assert!(
            findings[0].contains("which the store does not have"),
            "{findings:?}"
        );
        fs::write(&path, &good).unwrap();
        assert!(place.findings().is_empty());
    }
    let path = place.store.path().join("images").join(root.image.to_hex());
    let mut bytes = fs::read(&path).unwrap();
    bytes[2000] ^= 1;
    replace(&path, &bytes);
    assert!(place.store.tree(&root).is_err());
    assert_eq!(place.findings().len(), 1);
    assert!(
        place.store.gc(&GcPolicy::default(), false).is_err(),
        "what a damaged image needs is not known, so nothing is collected"
    );
}

#[test]
fn a_document_that_is_larger_than_any_is_not_even_read() {
    let place = Place::new();
    let source = place.path("source");
    awkward(&source);
    let root = place.commit(&source, "os:v1");
    let transaction = place.store.begin().unwrap();
    let blob = transaction.put_blob(b"{}").unwrap();
    transaction.commit().unwrap();
    let too_large = vec![b' '; usize::try_from(BLOB_MAX).unwrap() + 1];
    let transaction = place.store.begin().unwrap();
    let refused = transaction.put_blob(&too_large);
    assert!(matches!(refused, Err(PutError::BlobTooLarge(_))));
    drop(transaction);

    // Sparse files: without a limit they would take all memory.
    for file in [
        format!("blobs/{}", blob.to_hex()),
        format!("images/{}", root.image.to_hex()),
    ] {
        let path = place.store.path().join(file);
        fs::remove_file(&path).unwrap();
        fs::File::create(&path).unwrap().set_len(6 << 40).unwrap();
    }
    let too_large = |error: ReadStoreError| matches!(error, ReadStoreError::TooLarge { .. });
    assert!(too_large(place.store.blob(&blob).unwrap_err()));
    assert!(too_large(place.store.tree(&root).unwrap_err()));
    assert_eq!(place.findings().len(), 2);
}

#[test]
fn two_processes_see_one_store() {
    let place = Place::new();
    let source = place.path("source");
    awkward(&source);
    let other = Store::open(place.store.path()).unwrap();
    let root = place.commit(&source, "os:v1");
    assert_eq!(other.resolve(&image("os:v1")).unwrap().unwrap().root, root);
    other.tree(&root).unwrap();
    let again = Store::create(place.store.path()).unwrap();
    assert_eq!(again.refs().unwrap().len(), 1);
}

#[test]
fn a_name_with_a_digest_finds_its_manifest() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    let root = place.commit(&source, "os:v1");
    let transaction = place.store.begin().unwrap();
    let manifest = transaction.put_blob(b"{\"manifest\":1}").unwrap();
    let mut with_manifest = target(root);
    with_manifest.manifest = Some(manifest);
    let name = image("quay.io/team/os:v1");
    transaction.set_ref(&name, with_manifest).unwrap();
    transaction.commit().unwrap();
    for text in [
        format!("quay.io/team/os@{manifest}"),
        format!("quay.io/team/os:other@{manifest}"),
        format!("somewhere.else/os@{manifest}"),
    ] {
        let found = place.store.resolve(&image(&text)).unwrap().unwrap();
        assert_eq!(found.manifest, Some(manifest), "{text}");
    }
    let unknown = format!("quay.io/team/os@sha256:{}", "0".repeat(64));
    assert_eq!(place.store.resolve(&image(&unknown)).unwrap(), None);
    assert_eq!(place.store.blob(&manifest).unwrap(), b"{\"manifest\":1}");
}

#[test]
fn digits_that_fit_two_images_find_neither() {
    use bedplate_model::ImageSelector;
    use bedplate_store::FindError;
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    // Two manifests whose digests begin alike: among so many there are some.
    let mut seen = std::collections::HashMap::new();
    let transaction = place.store.begin().unwrap();
    let mut number = 0_u32;
    let alike = loop {
        let manifest = transaction.put_blob(&number.to_le_bytes()).unwrap();
        if let Some(other) = seen.insert(manifest.to_hex()[..4].to_owned(), manifest) {
            break [other, manifest];
        }
        number += 1;
    };
    for (manifest, name) in alike.iter().zip(["os:v1", "os:v2"]) {
        fs::write(source.join("name"), name).unwrap();
        let tree = scan(&source, &transaction, &()).unwrap();
        let root = transaction.put_image(&tree, RuleSet::Exact1).unwrap();
        let mut with_manifest = target(root);
        with_manifest.manifest = Some(*manifest);
        transaction.set_ref(&image(name), with_manifest).unwrap();
    }
    transaction.commit().unwrap();
    let find = |digits: &str| place.store.find(&digits.parse::<ImageSelector>().unwrap());
    let hex = alike[0].to_hex();
    assert!(matches!(
        find(&hex[..4]),
        Err(FindError::Ambiguous { roots, .. }) if roots.len() == 2
    ));
    for digits in [&hex[..32], &hex, &alike[0].to_string()] {
        let found = find(digits).unwrap().unwrap();
        assert_eq!(found.name, Some(image("os:v1")), "{digits}");
        assert_eq!(found.target.manifest, Some(alike[0]));
    }
    assert_eq!(find("0000000000000000").unwrap(), None);
}

#[test]
fn a_directory_with_other_things_is_no_place_for_a_store() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("thesis.txt"), "…").unwrap();
    let error = Store::create(directory.path()).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    let error = Store::open(directory.path()).unwrap_err();
    assert!(error.to_string().contains("no store"), "{error}");
}

#[test]
fn a_store_of_a_newer_version_is_refused_by_what_it_needs() {
    let place = Place::new();
    let format = place.store.path().join("format.json");
    let text = fs::read_to_string(&format).unwrap();
    let later = text.replace("\"required\": []", "\"required\": [\"split-objects\"]");
    assert_ne!(text, later);
    fs::write(&format, later).unwrap();
    let error = Store::open(place.store.path()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("split-objects"), "{source}");
}

/// Copies a store that an earlier version wrote (`testdata/stores/README.md`). Directories without files are
/// not kept by git: they are made here, as whoever clones a repository has to.
fn frozen(version: &str) -> (TempDir, Store) {
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/stores");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    copy_directory(&frozen.join(version), &path);
    for name in ["index", "layers", "blobs", "pins", "tmp", "trash"] {
        fs::create_dir_all(path.join(name)).unwrap();
    }
    let store = Store::open(&path).unwrap();
    (directory, store)
}

fn findings(store: &Store) -> Vec<String> {
    let mut findings = Vec::new();
    store
        .fsck(&mut |finding| findings.push(finding.to_string()))
        .unwrap();
    findings
}

#[test]
fn the_frozen_store_with_histories_opens() {
    let (_directory, store) = frozen("v2");
    assert_eq!(findings(&store), Vec::<String>::new());
    let found = store.find_ref(&image("frozen:v1")).unwrap().unwrap();
    assert_eq!(found.history.len(), 1);
    assert!(found.target.manifest.is_some());
    let (old, new) = (found.history[0].root, found.target.root);
    let text = |root| {
        let tree = store.tree(root).unwrap();
        let path = bedplate_model::TreePath::try_from("usr/small").unwrap();
        let node = tree.node(tree.lookup(&path).unwrap());
        let bedplate_model::Content::File(content) = &node.content else {
            panic!("{path} is a file");
        };
        store.read_small(content, 1000).unwrap()
    };
    assert_eq!(text(&old), b"first\n");
    assert_eq!(text(&new), b"second\n");
    assert_eq!(store.pins().unwrap()[0].root, old);
    assert_eq!(store.refs().unwrap().len(), 3);
    assert_eq!(store.usage().unwrap().layers, 1);
    let garbage = store.gc(&GcPolicy::default(), true).unwrap();
    assert_eq!(garbage.removed, []);

    // Every file with a check is as it was written.
    let path = store.path().join("refs/localhost%2Ffrozen%3Av1");
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.replace("\"created\": 1", "\"created\": 2")).unwrap();
    let error = store.find_ref(&image("frozen:v1")).unwrap_err();
    assert!(error.to_string().contains("is damaged"), "{error}");
}

#[test]
fn the_frozen_change_of_several_names_is_seen_whole_and_finished() {
    let (_directory, store) = frozen("v2");
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/stores");
    let journal = store.path().join("journal");
    fs::copy(frozen.join("v2-interrupted/journal"), &journal).unwrap();
    let root = |name: &str| store.resolve(&image(name)).unwrap().unwrap().root;
    let seen = || ["frozen:a", "frozen:b", "frozen:c"].map(root);
    let [a, b, c] = seen();
    assert_eq!(a, store.pins().unwrap()[0].root);
    assert_eq!((a == c, a == b), (true, false));
    assert_eq!(findings(&store), Vec::<String>::new());
    // Whoever changes a name next finishes it.
    store
        .remove_refs(&["frozen:v1", "frozen:none"].map(image))
        .unwrap();
    fs::remove_file(&journal).unwrap();
    assert_eq!(seen(), [a, b, c]);
    assert_eq!(findings(&store), Vec::<String>::new());
}

#[test]
fn the_frozen_store_of_version_1_opens() {
    let (_directory, store) = frozen("v1");
    let found = store.resolve(&image("frozen:v1")).unwrap().unwrap();
    let tree = store.tree(&found.root).unwrap();
    let file = bedplate_model::TreePath::try_from("usr/object").unwrap();
    let node = tree.node(tree.lookup(&file).unwrap());
    let bedplate_model::Content::File(content) = &node.content else {
        panic!("{file} is a file");
    };
    assert_eq!(store.read_small(content, 1000).unwrap(), [7; 65]);
    assert_eq!(findings(&store), Vec::<String>::new());
    let garbage = store.gc(&GcPolicy::default(), true).unwrap();
    assert_eq!((garbage.removed.len(), garbage.kept), (0, 6), "{garbage:?}");
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn pin(name: &str, root: RootDigest) -> bedplate_store::Pin {
    bedplate_store::Pin {
        name: name.to_owned(),
        root,
        manifest: None,
        config: None,
    }
}

fn gc(place: &Place) -> usize {
    let report = place.store.gc(&GcPolicy::default(), false).unwrap();
    report.removed.len()
}

/// Replaces a file, which may be read-only or sealed.
fn replace(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_file_of_holes_is_stored_and_restored_as_holes() {
    use std::os::unix::fs::FileExt as _;
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    let file = fs::File::create(source.join("disk.img")).unwrap();
    if file.set_len(40 << 30).is_err() {
        return; // a file system without such lengths
    }
    file.write_all_at(b"boot sector", 0).unwrap();
    file.write_all_at(&[7; 70_000], 3 << 30).unwrap();
    let root = place.commit(&source, "localhost/os:v1");
    assert_eq!(place.commit(&source, "localhost/os:v1"), root);
    assert!(place.store.usage().unwrap().disk_bytes < 1 << 20);
    assert!(place.findings().is_empty());

    let copy = place.path("copy");
    let tree = place.store.tree(&root).unwrap();
    checkout(&place.store, &tree, &copy, CheckoutOptions::default()).unwrap();
    let copied = fs::File::open(copy.join("disk.img")).unwrap();
    let metadata = copied.metadata().unwrap();
    assert_eq!(metadata.len(), 40 << 30);
    assert!(metadata.blocks() * 512 < 1 << 20);
    let mut bytes = [0; 70_002];
    copied.read_exact_at(&mut bytes, (3 << 30) - 1).unwrap();
    assert_eq!(
        (bytes[0], bytes[1], bytes[70_000], bytes[70_001]),
        (0, 7, 7, 0)
    );

    // What is not there is checked as what is.
    let object = fs::read_dir(place.store.objects_dir())
        .unwrap()
        .flat_map(|entry| fs::read_dir(entry.unwrap().path()).unwrap())
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::set_permissions(&object, fs::Permissions::from_mode(0o600)).unwrap();
    let damaged = fs::File::options().write(true).open(&object).unwrap();
    damaged.write_all_at(b"x", 20 << 30).unwrap();
    assert_eq!(place.findings().len(), 1);
    let again = place.path("again");
    assert!(checkout(&place.store, &tree, &again, CheckoutOptions::default()).is_err());
}

#[test]
fn what_dead_transactions_wrote_and_holes_leave_out_is_counted_as_the_disk_has_it() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    let sparse = fs::File::create(source.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &[1; 8192], 1 << 20).unwrap();
    sparse.sync_all().unwrap();
    place.commit(&source, "os:v1");
    let usage = place.store.usage().unwrap();
    assert!(usage.object_bytes < 1 << 20, "{usage:?}");
    let image = &place.store.image_usage().unwrap()[0];
    assert!((8192..1 << 20).contains(&image.unique_bytes), "{image:?}");

    // A transaction that died: one file of its own, one that is the store's, too.
    let dead = place.store.path().join("tmp/1-1");
    fs::create_dir(&dead).unwrap();
    let part = fs::File::create(dead.join("part-0")).unwrap();
    std::io::Write::write_all(&mut &part, &[7; 100_000]).unwrap();
    part.sync_all().unwrap();
    let object = objects_below(place.store.objects_dir()).remove(0);
    fs::hard_link(object, dead.join("object-1")).unwrap();
    for dry_run in [true, false] {
        let report = place.store.gc(&GcPolicy::default(), dry_run).unwrap();
        assert_eq!((report.abandoned, report.abandoned_bytes), (1, 100_000));
        assert_eq!((report.removed_bytes(), report.freed_bytes()), (0, 100_000));
    }
    place.untag("os:v1");
    let report = place.store.gc(&GcPolicy::default(), false).unwrap();
    assert_eq!(report.removed.len(), 2);
    assert!(
        (8192..1 << 20).contains(&report.freed_bytes()),
        "{report:?}"
    );
}

fn objects_below(objects: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(objects).unwrap();
    let below = entries.flat_map(|entry| fs::read_dir(entry.unwrap().path()).unwrap());
    below.map(|entry| entry.unwrap().path()).collect()
}
