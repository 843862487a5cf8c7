//! Refs over time: histories, several at once, and what gc keeps of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bedplate_model::{
    Content, FileContent, ImageName, Metadata, Name, Node, RootDigest, RuleSet, Tree,
};
use bedplate_store::gc::Reason;
use bedplate_store::{GcPolicy, Item, Pin, RefTarget, Store, Transaction};
use proptest::prelude::*;

/// A store in memory where there is such a place: these tests ask what is there, not what is durable.
struct Place {
    _directory: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() {
            tempfile::tempdir_in(memory).unwrap()
        } else {
            tempfile::tempdir().unwrap()
        };
        let store = Store::create(&directory.path().join("store")).unwrap();
        Self {
            _directory: directory,
            store,
        }
    }

    /// Stores an image and gives it a name.
    fn commit(&self, name: &str, number: u8, now: i64) -> RootDigest {
        let transaction = self.store.begin().unwrap();
        let root = put(&transaction, number);
        transaction
            .set_ref(&image(name), target(root, now))
            .unwrap();
        transaction.commit().unwrap();
        root
    }

    /// Gives an image several names at once.
    fn tag(&self, root: RootDigest, names: &[&str], now: i64) {
        let transaction = self.store.begin().unwrap();
        for name in names {
            transaction
                .set_ref(&image(name), target(root, now))
                .unwrap();
        }
        transaction.commit().unwrap();
    }

    fn roots(&self, name: &str) -> Vec<RootDigest> {
        let found = self.store.find_ref(&image(name)).unwrap();
        found.map_or_else(Vec::new, |found| {
            found.images().map(|target| target.root).collect()
        })
    }

    fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        self.store
            .fsck(&mut |finding| findings.push(finding.to_string()))
            .unwrap();
        findings
    }
}

/// Stores an image with an object of its own and one that its neighbour has, too.
fn put(transaction: &Transaction<'_>, number: u8) -> RootDigest {
    let mut tree = Tree::new(Metadata::root_owned(0o755));
    for (name, byte) in [("own", number), ("shared", 100 + number / 2)] {
        let content: FileContent = transaction.put_bytes(&[byte; 200]).unwrap();
        let node = Node::new(Metadata::root_owned(0o644), Content::File(content));
        tree.insert(Tree::ROOT, Name::try_from(name).unwrap(), node)
            .unwrap();
    }
    transaction.put_image(&tree, RuleSet::Exact1).unwrap()
}

fn image(name: &str) -> ImageName {
    name.parse().unwrap()
}

fn target(root: RootDigest, created: i64) -> RefTarget {
    RefTarget::new(root, created)
}

#[test]
fn a_tag_that_ends_like_an_unfinished_file_is_a_tag() {
    let place = Place::new();
    let root = place.commit("os:v1.new", 1, 1);
    place.commit("os:v1", 2, 2);
    place.tag(root, &["os:v1", "os:v2"], 3);
    assert_eq!(place.roots("os:v1.new"), [root]);
    assert_eq!(place.store.all_refs().unwrap().len(), 3);
    place.store.gc(&GcPolicy::default(), false).unwrap();
    place.store.tree(&root).unwrap();
}

#[test]
fn what_a_killed_change_of_names_left_goes_with_the_next_gc() {
    let place = Place::new();
    place.commit("os:v1", 1, 1);
    let refs = place.store.path().join("refs");
    let left = refs.join("localhost%2Fos%3Av2.new");
    fs::write(&left, "half").unwrap();
    place.store.gc(&GcPolicy::default(), true).unwrap();
    assert!(left.exists(), "a dry run changes nothing");
    place.store.gc(&GcPolicy::default(), false).unwrap();
    assert!(!left.exists());
    assert_eq!(fs::read_dir(refs).unwrap().count(), 1);
}

#[test]
fn the_index_is_not_written_through_a_link() {
    let place = Place::new();
    place.commit("os:v1", 1, 1);
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "precious").unwrap();
    let index = place.store.path().join("index");
    let _ = fs::remove_file(index.join("sha256"));
    std::os::unix::fs::symlink(outside.path(), index.join("sha256.new")).unwrap();
    place.store.rebuild_index().unwrap();
    assert_eq!(fs::read_to_string(outside.path()).unwrap(), "precious");
    assert!(
        fs::symlink_metadata(index.join("sha256"))
            .unwrap()
            .is_file()
    );
}

#[test]
fn a_name_leads_back_to_its_earlier_images() {
    let place = Place::new();
    let roots: Vec<RootDigest> = (0..4)
        .map(|number| place.commit("os:v1", number, number.into()))
        .collect();
    place.commit("os:v1", 3, 9);
    let newest_first: Vec<RootDigest> = roots.iter().rev().copied().collect();
    assert_eq!(place.roots("os:v1"), newest_first);
    for (back, root) in newest_first.iter().enumerate() {
        let revision = format!("os:v1~{back}").parse().unwrap();
        let found = place.store.resolve_revision(&revision).unwrap().unwrap();
        assert_eq!(found.root, *root);
    }
    let beyond = "os:v1~4".parse().unwrap();
    assert_eq!(place.store.resolve_revision(&beyond).unwrap(), None);
    // Going back is an event like any other.
    place.tag(roots[2], &["os:v1"], 10);
    assert_eq!(place.roots("os:v1").len(), 5);
    assert_eq!(place.roots("os:v1")[..2], [roots[2], roots[3]]);
    let garbage = place.store.gc(&GcPolicy::default(), false).unwrap();
    assert_eq!(garbage.removed, [], "everything can be gone back to");
}

#[test]
fn gc_forgets_by_count_age_and_size() {
    let policy = GcPolicy::default();
    let setup = || {
        let place = Place::new();
        // Replaced at 10, 20, 30 and never.
        for number in 0..4 {
            place.commit("os:v1", number * 2, i64::from(number) * 10);
        }
        place
    };
    let size = {
        let usage = setup().store.usage().unwrap();
        usage.object_bytes + usage.image_bytes
    };
    for (policy, left, reason) in [
        (
            GcPolicy {
                keep: NonZeroU32::new(2),
                ..policy
            },
            2,
            Reason::Count,
        ),
        (
            GcPolicy {
                replaced_before: Some(20),
                ..policy
            },
            3,
            Reason::Age,
        ),
        (
            GcPolicy {
                max_bytes: Some(size - 1),
                ..policy
            },
            3,
            Reason::Size,
        ),
        (
            GcPolicy {
                max_bytes: Some(0),
                ..policy
            },
            1,
            Reason::Size,
        ),
    ] {
        let place = setup();
        let before = place.roots("os:v1");
        let planned = place.store.gc(&policy, true).unwrap();
        assert_eq!(place.roots("os:v1"), before, "a dry run changes nothing");
        let done = place.store.gc(&policy, false).unwrap();
        assert_eq!(planned, done);
        assert_eq!(place.roots("os:v1"), before[..left]);
        assert!(done.forgotten.iter().all(|it| it.reason == reason));
        assert_eq!(done.forgotten.len(), 4 - left);
        let images = done.removed.iter();
        let images = images.filter(|(item, _)| matches!(item, Item::Image(_)));
        assert_eq!(images.count(), 4 - left);
        assert_eq!(place.findings(), Vec::<String>::new());
    }
}

#[test]
fn a_size_makes_no_name_forget_what_another_one_keeps() {
    let place = Place::new();
    let kept = place.commit("os", 1, 10);
    place.tag(kept, &["release"], 15);
    place.commit("os", 2, 20);
    place.commit("os", 3, 30);
    let policy = GcPolicy {
        max_bytes: Some(1),
        ..GcPolicy::default()
    };
    let report = place.store.gc(&policy, false).unwrap();
    let forgotten: Vec<_> = report.forgotten.iter().map(|it| it.back).collect();
    assert_eq!(forgotten, [1], "the second image, and not the first");
    assert_eq!(place.roots("os").len(), 2);
    assert_eq!(place.roots("os")[1], kept);
    // It cannot be reached: this much stays.
    let least = report.too_much.unwrap();
    let all = GcPolicy {
        max_bytes: Some(least),
        ..GcPolicy::default()
    };
    let report = place.store.gc(&all, false).unwrap();
    assert_eq!((report.forgotten.len(), report.too_much), (0, None));
}

#[test]
fn what_another_name_or_a_pin_holds_stays_when_one_forgets_it() {
    let place = Place::new();
    let first = place.commit("os:v1", 0, 1);
    let second = place.commit("os:v1", 2, 2);
    place.commit("os:v1", 4, 3);
    place.tag(first, &["os:good"], 4);
    place
        .store
        .pin(&Pin {
            name: "deployment-1".into(),
            root: second,
            manifest: None,
            config: None,
        })
        .unwrap();
    let policy = GcPolicy {
        keep: NonZeroU32::new(1),
        ..GcPolicy::default()
    };
    let report = place.store.gc(&policy, false).unwrap();
    assert_eq!(report.forgotten.len(), 2);
    assert_eq!(report.removed, []);
    place.store.tree(&first).unwrap();
    place.store.tree(&second).unwrap();
}

/// The journal is the commit point of a change of several refs: from then on everybody sees all of it,
/// whatever became of the process.
#[test]
fn a_change_that_a_crash_interrupted_is_seen_whole_and_finished_by_the_next() {
    let place = Place::new();
    let old = place.commit("os:a", 0, 1);
    place.tag(old, &["os:b", "os:c"], 1);
    let refs = place.store.path().join("refs");
    let before: Vec<(_, Vec<u8>)> = fs::read_dir(&refs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    let transaction = place.store.begin().unwrap();
    let new = put(&transaction, 2);
    for name in ["os:a", "os:b", "os:d"] {
        transaction.set_ref(&image(name), target(new, 2)).unwrap();
    }
    transaction.remove_ref(&image("os:c"));
    transaction.commit().unwrap();

    // The same journal, and none, one or all of its documents in their places: what a power cut leaves.
    let journal = place.store.path().join("journal");
    let after: BTreeMap<_, _> = ["os:a", "os:b", "os:d"]
        .into_iter()
        .map(|name| {
            let file = name.replace(':', "%3A");
            let path = refs.join(format!("localhost%2F{file}"));
            (path.clone(), fs::read(path).unwrap())
        })
        .collect();
    let mut documents: Vec<serde_json::Value> = after
        .values()
        .map(|bytes| {
            let document: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            serde_json::json!({"name": document["name"], "document": document})
        })
        .chain([serde_json::json!({"name": "localhost/os:c", "document": null})])
        .collect();
    let journal_of = |documents: &[serde_json::Value]| {
        serde_json::json!({
            "format": "bedplate-journal", "version": 1, "required": [], "optional": [],
            "generation": 8, "refs": documents,
        })
    };
    // As an older version wrote it, and as this one does: with what each name was.
    let without = journal_of(&documents);
    let before_of = |name: &serde_json::Value| {
        let file = name
            .as_str()
            .unwrap()
            .replace('/', "%2F")
            .replace(':', "%3A");
        let bytes = before.iter().find(|(path, _)| path.ends_with(&file));
        bytes.map_or("nothing".to_owned(), |(_, bytes)| sha256(bytes))
    };
    for document in &mut documents {
        document["replaces"] = before_of(&document["name"]).into();
    }
    let with = journal_of(&documents);
    let seen = |store: &Store| -> Vec<(String, bool)> {
        let refs = store.refs().unwrap().into_iter();
        refs.map(|(name, target)| (name.to_string(), target.root == new))
            .collect()
    };
    let wanted: Vec<(String, bool)> = ["localhost/os:a", "localhost/os:b", "localhost/os:d"]
        .into_iter()
        .map(|name| (name.to_owned(), true))
        .collect();
    let rounds = (0..=after.len()).flat_map(|applied| [(applied, &without), (applied, &with)]);
    for (applied, cut) in rounds {
        for entry in fs::read_dir(&refs).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (path, bytes) in &before {
            fs::write(path, bytes).unwrap();
        }
        for (path, bytes) in after.iter().take(applied) {
            fs::write(path, bytes).unwrap();
        }
        fs::write(&journal, cut.to_string()).unwrap();
        let store = Store::open(place.store.path()).unwrap();
        assert_eq!(seen(&store), wanted);
        assert_eq!(store.resolve(&image("os:c")).unwrap(), None);
        assert_eq!(place.findings(), Vec::<String>::new());
        let garbage = store.gc(&GcPolicy::default(), false).unwrap();
        assert_eq!(garbage.removed, [], "the old image is in the history");
        place.tag(new, &["os:other"], 3);
        fs::remove_file(&journal).unwrap();
        assert_eq!(seen(&store)[..2], wanted[..2], "it was finished");
        assert_eq!(store.resolve(&image("os:c")).unwrap(), None);
        fs::remove_file(refs.join("localhost%2Fos%3Aother")).unwrap();
    }
}

/// A version that knows of no journals changes a name after a crash: what it set must not be undone.
#[test]
fn a_journal_that_an_older_version_overtook_is_set_aside() {
    let place = Place::new();
    let old = place.commit("os:a", 0, 1);
    place.tag(old, &["os:b"], 1);
    let newer = place.commit("os:newer", 2, 2);
    let path = |name: &str| {
        place
            .store
            .path()
            .join(format!("refs/localhost%2Fos%3A{name}"))
    };
    let document = |name: &str, root: RootDigest| {
        // Without a check, as an older version writes it.
        serde_json::json!({
            "format": "bedplate-ref", "version": 1, "name": format!("localhost/os:{name}"),
            "target": {"root": root, "created": 9},
        })
    };
    let entry = |name: &str| {
        serde_json::json!({
            "name": format!("localhost/os:{name}"), "document": document(name, newer),
            "replaces": sha256(&fs::read(path(name)).unwrap()),
        })
    };
    let cut = serde_json::json!({
        "format": "bedplate-journal", "version": 1, "generation": 8,
        "refs": [entry("a"), entry("b")],
    });
    let journal = place.store.path().join("journal");
    fs::write(&journal, cut.to_string()).unwrap();
    assert_eq!(place.roots("os:a")[..1], [newer], "it counts");

    let third = place.commit("os:third", 4, 3); // finishes it
    fs::write(&journal, cut.to_string()).unwrap();
    assert_eq!(place.roots("os:a")[..1], [newer], "it is in its place");
    fs::write(path("b"), document("b", third).to_string()).unwrap();
    let root_of = |name: &str| place.roots(name).first().copied();
    let seen = || (root_of("os:a"), root_of("os:b"));
    assert_eq!(seen(), (Some(newer), Some(third)));
    let listed = place.store.refs().unwrap();
    assert!(
        listed
            .iter()
            .any(|(_, target)| target.root == third && target.created == 9)
    );
    let findings = place.findings();
    assert!(
        findings.len() == 1 && findings[0].contains("journal"),
        "{findings:?}"
    );

    place.tag(newer, &["os:c", "os:d"], 4);
    assert_eq!(seen(), (Some(newer), Some(third)));
    let findings = place.findings();
    assert!(
        findings.len() == 1 && findings[0].contains("journal.stale"),
        "{findings:?}"
    );
    fs::remove_file(place.store.path().join("journal.stale")).unwrap();
    assert_eq!(place.findings(), Vec::<String>::new());
}

#[test]
fn a_journal_with_a_flipped_bit_is_damaged_and_named() {
    let place = Place::new();
    let root = place.commit("os:a", 0, 1);
    place.tag(root, &["os:b", "os:c"], 1);
    let path = place.store.path().join("journal");
    let whole = fs::read(&path).unwrap();
    let at = String::from_utf8_lossy(&whole)
        .find("\"generation\": ")
        .unwrap()
        + 14;
    let mut flipped = whole;
    flipped[at] ^= 1;
    fs::write(&path, flipped).unwrap();
    let error = place.store.refs().unwrap_err();
    assert!(error.to_string().contains("journal is damaged"), "{error}");
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    bedplate_model::Sha256(sha2::Sha256::digest(bytes).into()).to_string()
}

#[test]
fn nobody_sees_half_of_a_change_of_several_names() {
    let place = Place::new();
    let names = ["os:a", "os:b", "os:c", "os:d"];
    let roots = [place.commit("os:one", 0, 1), place.commit("os:two", 2, 1)];
    place.tag(roots[0], &names, 1);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                // Another handle, as another process has it.
                let store = Store::open(place.store.path()).unwrap();
                while !ended.load(Ordering::Relaxed) {
                    let refs = store.refs().unwrap();
                    let seen: BTreeSet<String> = refs
                        .iter()
                        .filter(|(name, _)| names.iter().any(|it| image(it) == *name))
                        .map(|(_, target)| target.root.to_string())
                        .collect();
                    assert_eq!(seen.len(), 1, "half of a change: {refs:?}");
                }
            });
        }
        for round in 0..60 {
            place.tag(roots[round % 2], &names, round as i64);
        }
        ended.store(true, Ordering::Relaxed);
    });
    assert_eq!(place.roots("os:a").len(), 60);
}

#[test]
fn two_who_set_one_name_at_once_are_both_in_its_history() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for thread in 0..3_u8 {
            let place = &place;
            scope.spawn(move || {
                for round in 0..10 {
                    place.commit("os:v1", thread * 10 + round, 1);
                }
            });
        }
    });
    let roots: BTreeSet<_> = place.roots("os:v1").into_iter().collect();
    assert_eq!(roots.len(), 30);
}

/// What a store should hold, in the simplest way to say it.
#[derive(Clone, Debug, Default)]
struct Model {
    /// For each name, its images and when each was set, the newest first.
    refs: BTreeMap<String, Vec<(u8, i64)>>,
    pins: BTreeMap<String, u8>,
    stored: BTreeSet<u8>,
}

impl Model {
    fn set(&mut self, name: &str, number: u8, now: i64) {
        let history = self.refs.entry(name.to_owned()).or_default();
        match history.first_mut() {
            Some((current, set)) if *current == number => *set = now,
            _ => history.insert(0, (number, now)),
        }
    }

    fn gc(&mut self, keep: Option<u32>, before: Option<i64>) {
        for history in self.refs.values_mut() {
            let replaced: Vec<i64> = history.iter().map(|(_, set)| *set).collect();
            let mut at = 0;
            history.retain(|_| {
                let position = at;
                at += 1;
                position == 0
                    || keep.is_none_or(|keep| position < keep as usize)
                        && before.is_none_or(|before| replaced[position - 1] >= before)
            });
        }
        let named = self.refs.values().flatten().map(|(number, _)| *number);
        self.stored = named.chain(self.pins.values().copied()).collect();
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Commit(usize, u8),
    Tag(u8, Vec<usize>),
    Untag(Vec<usize>),
    Pin(usize, u8),
    Unpin(usize),
    Gc(Option<u32>, Option<i64>),
    /// A transaction that stores something and is given up.
    Abandon(u8),
}

const NAMES: [&str; 3] = ["os:a", "os:b", "team/os:c"];

fn operation() -> impl Strategy<Value = Operation> {
    let number = 0..6_u8;
    let name = 0..NAMES.len();
    let names = proptest::collection::vec(0..NAMES.len(), 1..=3);
    prop_oneof![
        4 => (name.clone(), number.clone()).prop_map(|(name, number)| Operation::Commit(name, number)),
        3 => (number.clone(), names.clone()).prop_map(|(number, names)| Operation::Tag(number, names)),
        1 => names.prop_map(Operation::Untag),
        1 => (name.clone(), number.clone()).prop_map(|(name, number)| Operation::Pin(name, number)),
        1 => name.prop_map(Operation::Unpin),
        3 => (proptest::option::of(1..4_u32), proptest::option::of(0..30_i64))
            .prop_map(|(keep, before)| Operation::Gc(keep, before)),
        1 => number.prop_map(Operation::Abandon),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_store_holds_what_its_model_says(operations in proptest::collection::vec(operation(), 1..30)) {
        let place = Place::new();
        let mut model = Model::default();
        // What every image is called.
        let roots: Vec<RootDigest> = {
            let transaction = place.store.begin().unwrap();
            (0..6).map(|number| put(&transaction, number)).collect()
        };
        for (now, operation) in operations.into_iter().enumerate() {
            let now = now as i64;
            match operation {
                Operation::Commit(name, number) => {
                    prop_assert_eq!(place.commit(NAMES[name], number, now), roots[usize::from(number)]);
                    model.stored.insert(number);
                    model.set(NAMES[name], number, now);
                }
                Operation::Tag(number, names) => {
                    let names: BTreeSet<&str> = names.into_iter().map(|at| NAMES[at]).collect();
                    let names: Vec<&str> = names.into_iter().collect();
                    if model.stored.contains(&number) {
                        place.tag(roots[usize::from(number)], &names, now);
                        for name in names {
                            model.set(name, number, now);
                        }
                    } else {
                        let transaction = place.store.begin().unwrap();
                        let target = target(roots[usize::from(number)], now);
                        prop_assert!(transaction.set_ref(&image(names[0]), target).is_err());
                    }
                }
                Operation::Untag(names) => {
                    let transaction = place.store.begin().unwrap();
                    for at in names {
                        transaction.remove_ref(&image(NAMES[at]));
                        model.refs.remove(NAMES[at]);
                    }
                    transaction.commit().unwrap();
                }
                Operation::Pin(name, number) => {
                    let pin = Pin {
                        name: format!("pin-{name}"),
                        root: roots[usize::from(number)],
                        manifest: None,
                        config: None,
                    };
                    prop_assert_eq!(place.store.pin(&pin).is_ok(), model.stored.contains(&number));
                    if model.stored.contains(&number) {
                        model.pins.insert(pin.name, number);
                    }
                }
                Operation::Unpin(name) => {
                    place.store.unpin(&format!("pin-{name}")).unwrap();
                    model.pins.remove(&format!("pin-{name}"));
                }
                Operation::Gc(keep, replaced_before) => {
                    let policy = GcPolicy {
                        keep: keep.and_then(NonZeroU32::new),
                        replaced_before,
                        ..GcPolicy::default()
                    };
                    let planned = place.store.gc(&policy, true).unwrap();
                    prop_assert_eq!(planned, place.store.gc(&policy, false).unwrap());
                    model.gc(keep, replaced_before);
                    let usage = place.store.usage().unwrap();
                    let shared: BTreeSet<u8> = model.stored.iter().map(|number| number / 2).collect();
                    prop_assert_eq!(usage.objects, (model.stored.len() + shared.len()) as u64);
                    prop_assert_eq!(usage.staging_bytes, 0);
                    prop_assert_eq!(place.findings(), Vec::<String>::new());
                }
                Operation::Abandon(number) => {
                    let transaction = place.store.begin().unwrap();
                    put(&transaction, number);
                }
            }
            let found: BTreeMap<String, Vec<(RootDigest, i64)>> = place
                .store
                .all_refs()
                .unwrap()
                .into_iter()
                .map(|it| {
                    let images = it.images().map(|target| (target.root, target.created));
                    (it.name.to_string(), images.collect())
                })
                .collect();
            let wanted: BTreeMap<String, Vec<(RootDigest, i64)>> = model
                .refs
                .iter()
                .map(|(name, history)| {
                    let images = history.iter().map(|(number, set)| (roots[usize::from(*number)], *set));
                    (image(name).to_string(), images.collect())
                })
                .collect();
            prop_assert_eq!(found, wanted);
            for (number, root) in roots.iter().enumerate() {
                let there = place.store.has(&Item::Image(root.image));
                prop_assert_eq!(there, model.stored.contains(&(number as u8)), "image {}", number);
            }
        }
        prop_assert_eq!(place.findings(), Vec::<String>::new());
        // What an image has alone is what goes with it.
        place.store.gc(&GcPolicy::default(), false).unwrap();
        model.gc(None, None);
        for number in model.stored.clone() {
            let id = roots[usize::from(number)].image;
            let usages = place.store.image_usage().unwrap();
            let usage = usages.into_iter().find(|usage| usage.image == id).unwrap();
            model.refs.values_mut().for_each(|history| history.retain(|(it, _)| *it != number));
            model.pins.retain(|_, it| *it != number);
            for (name, history) in &model.refs {
                let transaction = place.store.begin().unwrap();
                transaction.remove_ref(&image(name));
                transaction.commit().unwrap();
                for (number, set) in history.iter().rev() {
                    place.tag(roots[usize::from(*number)], &[name], *set);
                }
            }
            for pin in place.store.pins().unwrap() {
                if pin.root.image == id {
                    place.store.unpin(&pin.name).unwrap();
                }
            }
            let freed = place.store.gc(&GcPolicy::default(), false).unwrap().freed_bytes();
            prop_assert_eq!(freed, usage.unique_bytes);
        }
    }
}
