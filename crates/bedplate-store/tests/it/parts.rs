//! The store's own directories: what is not one is named, and nothing is written through a link.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bedplate_model::{ImageName, RuleSet};
use bedplate_store::{Finding, GcPolicy, PartError, Pin, RefTarget, Store, scan};

const DIRECTORIES: [&str; 10] = [
    "objects",
    "objects/ab",
    "images",
    "layers",
    "blobs",
    "refs",
    "pins",
    "index",
    "tmp",
    "trash",
];

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), [7; 500]).unwrap();
    let path = directory.path().join("store");
    let store = Store::create(&path).unwrap();
    commit(&store, &tree).unwrap();
    (directory, path)
}

fn commit(store: &Store, tree: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let transaction = store.begin()?;
    let tree = scan(tree, &transaction, &())?;
    let root = transaction.put_image(&tree, RuleSet::Exact1)?;
    let name: ImageName = "os:v1".parse()?;
    transaction.set_ref(&name, RefTarget::new(root, 1))?;
    Ok(transaction.commit()?)
}

fn findings(path: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let store = Store::open(path).unwrap();
    store.fsck(&mut |finding| findings.push(finding)).unwrap();
    findings
}

/// Everything that an error and its causes say.
fn text(error: &dyn std::error::Error) -> String {
    let source = error.source().map(text).unwrap_or_default();
    format!("{error}: {source}")
}

/// Every file below a directory.
fn files_below(path: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        }
        files.push(path);
    }
    files
}

#[test]
fn nothing_is_written_through_a_link_in_the_place_of_a_directory() {
    for part in DIRECTORIES {
        let (directory, path) = place();
        let elsewhere = directory.path().join("elsewhere");
        rustix::fs::rename(path.join(part), &elsewhere).unwrap();
        symlink(&elsewhere, path.join(part)).unwrap();
        let before = files_below(&elsewhere);

        let named = PartError::Link(path.join(part));
        let found = findings(&path);
        assert!(
            found
                .iter()
                .any(|finding| matches!(finding, Finding::Part(error) if *error == named)),
            "{part}: {found:?}"
        );
        let tree = directory.path().join("tree");
        fs::write(tree.join("more"), [8; 700]).unwrap();
        let store = Store::open(&path).unwrap();
        let pin = Pin {
            name: "mount-1".into(),
            root: store.refs().unwrap()[0].1.root,
            manifest: None,
            config: None,
        };
        let name: ImageName = "os:v1".parse().unwrap();
        let refusals = [
            text(&*commit(&store, &tree).unwrap_err()),
            text(&store.pin(&pin).unwrap_err()),
            text(&store.unpin("mount-1").unwrap_err()),
            text(&store.remove_refs(&[name]).unwrap_err()),
            text(&store.gc(&GcPolicy::default(), false).unwrap_err()),
            text(&store.gc(&GcPolicy::default(), true).unwrap_err()),
            text(&store.rebuild_index().unwrap_err()),
            text(&store.extend_index(Vec::new()).unwrap_err()),
            text(&store.repair(&[]).unwrap_err()),
        ];
        for refusal in refusals {
            assert!(refusal.contains(&named.to_string()), "{part}: {refusal}");
        }
        assert_eq!(files_below(&elsewhere), before, "{part}");
    }
}

#[test]
fn something_else_in_the_place_of_a_directory_or_the_lock_is_named() {
    for part in DIRECTORIES {
        let (directory, path) = place();
        fs::remove_dir_all(path.join(part)).unwrap();
        fs::write(path.join(part), "x").unwrap();
        let named = PartError::NotADirectory(path.join(part)).to_string();
        let found: Vec<String> = findings(&path).iter().map(ToString::to_string).collect();
        assert!(found.contains(&named), "{part}: {found:?}");
        let store = Store::open(&path).unwrap();
        let refusal = commit(&store, &directory.path().join("tree")).unwrap_err();
        assert!(text(&*refusal).contains(&named), "{part}: {refusal}");
    }
    let (directory, path) = place();
    fs::remove_file(path.join("lock")).unwrap();
    fs::create_dir(path.join("lock")).unwrap();
    let named = PartError::NotAFile(path.join("lock")).to_string();
    let found: Vec<String> = findings(&path).iter().map(ToString::to_string).collect();
    assert_eq!(found, [&*named]);
    let store = Store::open(&path).unwrap();
    let refusal = commit(&store, &directory.path().join("tree")).unwrap_err();
    assert!(text(&*refusal).contains(&named), "{refusal}");
}

#[test]
fn what_is_empty_by_nature_is_made_again() {
    let (directory, path) = place();
    let empty = DIRECTORIES
        .iter()
        .filter(|part| !matches!(**part, "objects" | "images" | "refs"));
    for part in empty {
        let _ = fs::remove_dir_all(path.join(part));
    }
    fs::remove_file(path.join("lock")).unwrap();
    assert!(findings(&path).is_empty(), "{:?}", findings(&path));
    let store = Store::open(&path).unwrap();
    store.gc(&GcPolicy::default(), true).unwrap();
    assert_eq!(store.pins().unwrap(), []);
    assert!(!path.join("tmp").exists(), "who only reads makes nothing");

    commit(&store, &directory.path().join("tree")).unwrap();
    for part in DIRECTORIES {
        assert!(path.join(part).is_dir(), "{part}");
    }
    assert!(path.join("lock").is_file());
    store.gc(&GcPolicy::default(), false).unwrap();
    assert!(findings(&path).is_empty(), "{:?}", findings(&path));
}

#[test]
fn the_index_is_made_anew_where_its_directory_is_gone() {
    let (_directory, path) = place();
    fs::remove_dir_all(path.join("index")).unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.rebuild_index().unwrap().entries, 1);
    assert!(path.join("index/sha256").is_file());
}

#[test]
fn what_holds_all_that_a_store_is_for_is_missed() {
    for part in ["objects", "images", "refs"] {
        let (directory, path) = place();
        fs::remove_dir_all(path.join(part)).unwrap();
        let named = PartError::Missing(path.join(part)).to_string();
        let found: Vec<String> = findings(&path).iter().map(ToString::to_string).collect();
        assert!(found.contains(&named), "{part}: {found:?}");
        let store = Store::open(&path).unwrap();
        let refusal = commit(&store, &directory.path().join("tree")).unwrap_err();
        assert!(text(&*refusal).contains(&named), "{part}: {refusal}");
        assert!(!path.join(part).exists(), "{part}");
    }
}

#[test]
fn strange_files_in_the_index_and_among_the_names_are_named() {
    let (_directory, path) = place();
    let store = Store::open(&path).unwrap();
    store.rebuild_index().unwrap();
    for fine in [
        "index/sha256.new",
        "index/stat-0123456789abcdef",
        "index/stat-0123456789abcdef.1-1.new",
        "refs/localhost%2Fos%3Av2.new",
        "pins/mount-1.new",
    ] {
        fs::write(path.join(fine), "").unwrap();
    }
    assert!(findings(&path).is_empty(), "{:?}", findings(&path));
    for strange in [
        "index/sha512",
        "index/stat-1",
        "index/notes.txt",
        "refs/notes.txt",
        "pins/notes.txt",
        "pins/other notes",
    ] {
        fs::write(path.join(strange), "x").unwrap();
    }
    for strange in [
        "index/sha256.d",
        "refs/a.new",
        "refs/directory",
        "pins/b.new",
    ] {
        fs::create_dir(path.join(strange)).unwrap();
    }
    symlink("/etc/hostname", path.join("index/stat-fedcba9876543210")).unwrap();
    let found: Vec<String> = findings(&path).iter().map(ToString::to_string).collect();
    for strange in [
        "index/sha512",
        "index/stat-1",
        "index/notes.txt",
        "index/sha256.d",
        "index/stat-fedcba9876543210",
        "refs/notes.txt",
        "refs/a.new",
        "refs/directory",
        "pins/notes.txt",
        "pins/other notes",
        "pins/b.new",
    ] {
        let named = path.join(strange).display().to_string();
        assert!(
            found.iter().any(|text| text.contains(&named)),
            "{strange}: {found:?}"
        );
    }
    assert_eq!(found.len(), 11, "{found:?}");
}
