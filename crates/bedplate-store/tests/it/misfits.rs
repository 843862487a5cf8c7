//! What stands in the place of something known, and cannot be it: who has the right bytes puts them there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use bedplate_model::{FileContent, ImageName, RootDigest, RuleSet};
use bedplate_store::{
    Item, Misfit, PutError, RefTarget, Remembering, Store, objects_of, scan, sized_objects_of,
};

const MANIFEST: &[u8] = b"{\"a\":\"manifest\"}";

/// A place for a tree with a small object, a large one and one with a hole, and a store with that tree.
fn place() -> (tempfile::TempDir, Store, RootDigest) {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("small"), [b's'; 500]).unwrap();
    fs::write(tree.join("large"), vec![b'l'; 3_000_000]).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(5_000_000).unwrap();
    let store = Store::create(&directory.path().join("store")).unwrap();
    let root = commit(&store, &tree, "os:v1").unwrap();
    (directory, store, root)
}

fn commit(store: &Store, tree: &Path, name: &str) -> Result<RootDigest, PutError> {
    let transaction = store.begin().unwrap();
    let tree = scan(tree, &transaction, &()).unwrap();
    let root = transaction.put_image(&tree, RuleSet::Exact1)?;
    let target = RefTarget {
        manifest: Some(transaction.put_blob(MANIFEST)?),
        ..RefTarget::new(root, 1)
    };
    let name: ImageName = name.parse().unwrap();
    transaction.set_ref(&name, target)?;
    transaction.commit().unwrap();
    Ok(root)
}

fn findings(store: &Store) -> Vec<String> {
    let mut findings = Vec::new();
    store
        .fsck(&mut |finding| findings.push(finding.to_string()))
        .unwrap();
    findings
}

/// Every way in which a file shows without being read that it is not the right one.
type Damage = fn(&Path);

const DAMAGES: [(&str, Damage); 6] = [
    ("empty", |path| fs::write(path, "").unwrap()),
    ("short", |path| fs::write(path, "short").unwrap()),
    ("long", |path| fs::write(path, vec![1; 6_000_000]).unwrap()),
    ("a directory", |path| {
        fs::create_dir(path).unwrap();
        fs::write(path.join("x"), "x").unwrap();
    }),
    ("a link", |path| symlink("../lock", path).unwrap()),
    ("a pipe", |path| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    }),
];

/// Objects, the image, the manifest.
fn items(store: &Store, root: RootDigest) -> Vec<Item> {
    let objects = objects_of(&store.tree(&root).unwrap());
    let manifest = store.refs().unwrap()[0].1.manifest.unwrap();
    let others = [Item::Image(root.image), Item::Blob(manifest)];
    objects
        .into_iter()
        .map(Item::Object)
        .chain(others)
        .collect()
}

#[test]
fn a_commit_puts_the_right_bytes_in_the_place_of_what_cannot_be_right() {
    let (directory, store, root) = place();
    let tree = directory.path().join("tree");
    for item in items(&store, root) {
        for (what, damage) in DAMAGES {
            let path = store.path().join(item.path());
            let whole = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            damage(&path);
            assert_eq!(commit(&store, &tree, "os:v2").unwrap(), root);
            assert_eq!(fs::read(&path).unwrap(), whole, "{item}: {what}");
            assert_eq!(findings(&store), Vec::<String>::new(), "{item}: {what}");
        }
    }
    let staging = fs::read_dir(store.path().join("tmp")).unwrap();
    assert_eq!(staging.count(), 0, "nothing is left over");
}

#[test]
fn a_store_without_images_is_not_trusted_either() {
    let (directory, store, root) = place();
    let items = items(&store, root);
    for (what, damage) in DAMAGES {
        fs::remove_file(store.path().join(Item::Image(root.image).path())).unwrap();
        for item in &items {
            let path = store.path().join(item.path());
            if !matches!(item, Item::Image(_)) {
                fs::remove_file(&path).unwrap();
                damage(&path);
            }
        }
        commit(&store, &directory.path().join("tree"), "os:v1").unwrap();
        assert_eq!(findings(&store), Vec::<String>::new(), "{what}");
    }
}

#[test]
fn several_commits_at_once_mend_the_same_damage() {
    let (directory, store, root) = place();
    for _ in 0..10 {
        for item in items(&store, root) {
            let path = store.path().join(item.path());
            fs::remove_file(&path).unwrap();
            fs::write(&path, "x").unwrap();
            std::thread::scope(|scope| {
                for number in 0..4 {
                    let (store, tree) = (&store, directory.path().join("tree"));
                    scope.spawn(move || commit(store, &tree, &format!("os:v{number}")).unwrap());
                }
            });
            assert_eq!(findings(&store), Vec::<String>::new(), "{item}");
        }
    }
}

#[test]
fn what_is_known_by_name_alone_is_refused_with_its_file() {
    let (_directory, store, root) = place();
    let tree = store.tree(&root).unwrap();
    let (id, size) = sized_objects_of(&tree)[0];
    let path = store.path().join(Item::Object(id).path());
    let whole = fs::read(&path).unwrap();
    let transaction = store.begin().unwrap();
    transaction.hold_objects([(id, size)]).unwrap();
    drop(transaction);
    for (what, damage) in DAMAGES {
        fs::remove_file(&path).unwrap();
        damage(&path);
        let transaction = store.begin().unwrap();
        let refused = transaction.hold_objects([(id, size)]).unwrap_err();
        assert!(
            matches!(&refused, PutError::Damaged { path: named, .. } if *named == path),
            "{what}: {refused:?}"
        );
        drop(transaction);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap();
            fs::write(&path, "").unwrap();
        }
    }
    fs::remove_file(&path).unwrap();
    fs::write(&path, whole).unwrap();

    // Of an image without its bytes nobody knows the length, but that it is a file.
    let image = store.path().join(Item::Image(root.image).path());
    fs::remove_file(&image).unwrap();
    fs::create_dir(&image).unwrap();
    let transaction = store.begin().unwrap();
    let name: ImageName = "os:v2".parse().unwrap();
    let refused = transaction.set_ref(&name, RefTarget::new(root, 1));
    assert!(matches!(
        refused,
        Err(PutError::Damaged {
            source: Misfit::NotAFile,
            ..
        })
    ));
}

#[test]
fn a_file_that_was_remembered_is_read_again_where_its_object_cannot_be_right() {
    let (directory, store, root) = place();
    let tree = directory.path().join("tree");
    let id = objects_of(&store.tree(&root).unwrap())[0];
    let path = store.path().join(Item::Object(id).path());
    for (what, damage) in DAMAGES {
        let transaction = store.begin().unwrap();
        let contents = Remembering::new(&transaction, &tree);
        scan(&tree, &contents, &()).unwrap();
        contents.save();
        drop(transaction);
        fs::remove_file(&path).unwrap();
        damage(&path);
        let transaction = store.begin().unwrap();
        let contents = Remembering::new(&transaction, &tree);
        let scanned = scan(&tree, &contents, &()).unwrap();
        transaction.put_image(&scanned, RuleSet::Exact1).unwrap();
        let target = RefTarget::new(root, 1);
        transaction
            .set_ref(&"os:v3".parse().unwrap(), target)
            .unwrap();
        transaction.commit().unwrap();
        assert_eq!(findings(&store), Vec::<String>::new(), "{what}");
    }
}

#[test]
fn a_layers_table_that_cannot_be_right_is_replaced() {
    let (_directory, store, _) = place();
    let tar = [0; 1024]; // the end of an archive, and nothing before
    let transaction = store.begin().unwrap();
    let layer = bedplate_store::layer::read(&mut &tar[..], &transaction).unwrap();
    let diff_id = bedplate_model::Sha256(sha(&tar));
    let table = layer.encode(&diff_id);
    transaction.put_layer(diff_id, &table).unwrap();
    transaction.commit().unwrap();
    let path = store.path().join(Item::Layer(diff_id).path());
    for (what, damage) in DAMAGES {
        fs::remove_file(&path).unwrap();
        damage(&path);
        let transaction = store.begin().unwrap();
        transaction.put_layer(diff_id, &table).unwrap();
        transaction.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), table, "{what}");
    }
}

fn sha(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).into()
}

#[test]
fn a_content_that_the_store_has_whole_is_not_written_again() {
    use std::os::unix::fs::MetadataExt as _;
    let (directory, store, root) = place();
    let inodes = |store: &Store| -> Vec<u64> {
        let items = items(store, root).into_iter();
        items
            .map(|item| fs::metadata(store.path().join(item.path())).unwrap().ino())
            .collect()
    };
    let before = inodes(&store);
    commit(&store, &directory.path().join("tree"), "os:v2").unwrap();
    assert_eq!(inodes(&store), before);
    let bytes = store.begin().unwrap().put_bytes(&[b's'; 500]).unwrap();
    assert!(matches!(bytes, FileContent::Object { size: 500, .. }));
}
