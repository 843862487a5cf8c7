//! The stat cache from outside: what it saves, and that nothing that happens to it or to the files gives
//! a wrong answer.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bedplate_model::{ImageName, RootDigest, RuleSet};
use bedplate_store::{DigestOnly, GcPolicy, RefTarget, Remembering, Store, scan};
use bedplate_sys::stamp::FileSystem;
use tempfile::TempDir;

struct Place {
    directory: TempDir,
    store: Store,
}

/// Longer than any kernel's tick: the next change of a file gets another time.
fn next_tick() {
    std::thread::sleep(Duration::from_millis(25));
}

impl Place {
    /// `None` where tests lie on a file system that is never trusted.
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let trusted = FileSystem::of(File::open(directory.path()).unwrap()).unwrap();
        if !trusted.notices_changes() {
            return None;
        }
        let store = Store::create(&directory.path().join("store")).unwrap();
        let source = directory.path().join("source");
        fs::create_dir_all(source.join("below")).unwrap();
        for number in 0..40 {
            fs::write(source.join(format!("below/{number}")), content(number, 'a')).unwrap();
        }
        next_tick();
        Some(Self { directory, store })
    }

    fn source(&self) -> PathBuf {
        self.directory.path().join("source")
    }

    fn file(&self, number: u32) -> PathBuf {
        self.source().join(format!("below/{number}"))
    }

    /// Commits as if every file had been left alone for long; returns how many were not read.
    fn commit(&self) -> (RootDigest, usize) {
        self.commit_trusting(Some(i64::MAX))
    }

    fn commit_trusting(&self, until: Option<i64>) -> (RootDigest, usize) {
        let committed = self.commit_unchecked(until);
        let findings = self.findings();
        assert!(findings.is_empty(), "{findings:?}");
        committed
    }

    fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        self.store
            .fsck(&mut |finding| findings.push(finding.to_string()))
            .unwrap();
        findings
    }

    fn commit_unchecked(&self, until: Option<i64>) -> (RootDigest, usize) {
        let transaction = self.store.begin().unwrap();
        let contents = match until {
            Some(until) => Remembering::trusting_until(&transaction, &self.source(), until),
            None => Remembering::new(&transaction, &self.source()),
        };
        let tree = scan(&self.source(), &contents, &()).unwrap();
        let hits = contents.hits();
        contents.save();
        let root = transaction.put_image(&tree, RuleSet::Exact1).unwrap();
        let name: ImageName = "localhost/os:v1".parse().unwrap();
        transaction.set_ref(&name, target(root)).unwrap();
        transaction.commit().unwrap();
        assert_eq!(root.image, self.truth(), "the cache gave a wrong answer");
        (root, hits)
    }

    /// The image of the directory, of everything that is in it now.
    fn truth(&self) -> bedplate_model::ObjectId {
        let tree = scan(&self.source(), &DigestOnly(self.store.algorithm()), &()).unwrap();
        let options = bedplate_store::erofs::Options {
            version: bedplate_model::ErofsVersion::V1,
            hard_links: bedplate_store::erofs::HardLinks::Keep,
        };
        bedplate_store::erofs::write(&tree, &options, &mut std::io::sink())
            .unwrap()
            .id
    }

    fn caches(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.store.path().join("index")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

fn content(number: u32, letter: char) -> String {
    format!("{number:03} {}", String::from(letter).repeat(200))
}

fn target(root: RootDigest) -> RefTarget {
    RefTarget::new(root, 0)
}

/// Replaces a file's content by one of the same length, and sets its mtime back.
fn change_secretly(path: &Path, letter: char) {
    let before = fs::metadata(path).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    file.write_all_at(String::from(letter).repeat(100).as_bytes(), 10)
        .unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    let after = fs::metadata(path).unwrap();
    assert_eq!(
        (before.len(), before.mtime_nsec(), before.ino()),
        (after.len(), after.mtime_nsec(), after.ino())
    );
}

#[test]
fn an_unchanged_directory_is_committed_again_without_reading_a_file() {
    let Some(place) = Place::new() else { return };
    let (first, hits) = place.commit();
    assert_eq!(hits, 0);
    assert_eq!(place.commit(), (first, 40));
    let inode = fs::metadata(&place.caches()[0]).unwrap().ino();
    assert_eq!(place.commit(), (first, 40));
    assert_eq!(
        fs::metadata(&place.caches()[0]).unwrap().ino(),
        inode,
        "written without need"
    );
}

#[test]
fn a_file_that_keeps_its_size_and_mtime_is_noticed() {
    let Some(place) = Place::new() else { return };
    let (first, _) = place.commit();
    change_secretly(&place.file(7), 'b');
    let (second, hits) = place.commit();
    assert_ne!(first, second);
    assert_eq!(hits, 39);
}

#[test]
fn a_file_in_the_place_of_another_is_noticed() {
    let Some(place) = Place::new() else { return };
    place.commit();
    // Same size; the names change hands.
    bedplate_sys::durable::exchange(&place.file(1), &place.file(2)).unwrap();
    place.commit();
    fs::remove_file(place.file(3)).unwrap();
    fs::write(place.file(3), content(3, 'c')).unwrap(); // perhaps with the inode of the old one
    place.commit();
}

#[test]
fn what_changed_just_now_is_never_remembered() {
    let Some(place) = Place::new() else { return };
    // No waiting: each change may fall into the tick of the commit before it.
    for letter in ['b', 'c', 'd', 'e', 'f', 'g', 'h', 'i'] {
        change_secretly(&place.file(5), letter);
        assert_eq!(
            place.commit_trusting(None).1,
            0,
            "racy files were remembered"
        );
    }
    // Times ahead of the clock: only the mtime can be set.
    let file = File::options().write(true).open(place.file(6)).unwrap();
    let future = std::time::UNIX_EPOCH + Duration::from_secs(20_000_000_000);
    file.set_modified(future).unwrap();
    assert_eq!(place.commit_trusting(None).1, 0);
    assert_eq!(place.commit_trusting(None).1, 0);
}

#[test]
fn a_file_that_changes_while_it_is_read_is_not_remembered() {
    let Some(place) = Place::new() else { return };
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let files: Vec<_> = (0..40)
                .map(|number| {
                    File::options()
                        .write(true)
                        .open(place.file(number))
                        .unwrap()
                })
                .collect();
            let mut byte = b'a';
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                byte = if byte == b'z' { b'a' } else { byte + 1 };
                for file in &files {
                    file.write_all_at(&[byte; 150], 20).unwrap();
                }
            }
        });
        for _ in 0..10 {
            let transaction = place.store.begin().unwrap();
            let contents = Remembering::new(&transaction, &place.source());
            scan(&place.source(), &contents, &()).unwrap();
            contents.save();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    place.commit_trusting(None); // compares with the truth
}

#[test]
fn a_damaged_cache_is_no_cache() {
    let Some(place) = Place::new() else { return };
    place.commit();
    let path = place.caches().remove(0);
    let good = fs::read(&path).unwrap();
    let mut damaged: Vec<Vec<u8>> = vec![Vec::new(), good[..good.len() - 1].to_vec()];
    for position in [0, 16, 17, 60, good.len() / 2, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[position] ^= 1;
        damaged.push(bytes);
    }
    damaged.push([&good[..], &[0]].concat());
    for bytes in damaged {
        fs::write(&path, &bytes).unwrap();
        assert_eq!(place.commit().1, 0);
        assert_eq!(place.commit().1, 40);
    }
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    assert_eq!(place.commit().1, 0);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap(); // cannot be replaced
    assert_eq!(place.commit_unchecked(Some(i64::MAX)).1, 0);
    assert_eq!(place.commit_unchecked(Some(i64::MAX)).1, 0);
    assert_eq!(place.findings().len(), 1, "and fsck names it");
}

#[test]
fn objects_that_are_gone_or_cut_short_are_stored_again() {
    let Some(place) = Place::new() else { return };
    place.commit();
    let objects = place.store.path().join("objects");
    let object = |skip| {
        fs::read_dir(&objects)
            .unwrap()
            .flat_map(|entry| fs::read_dir(entry.unwrap().path()).unwrap())
            .map(|entry| entry.unwrap().path())
            .nth(skip)
            .unwrap()
    };
    fs::remove_file(object(0)).unwrap();
    assert_eq!(place.commit().1, 39); // and fsck finds nothing
    fs::remove_file(place.store.path().join("refs/localhost%2Fos%3Av1")).unwrap();
    place.store.gc(&GcPolicy::default(), false).unwrap();
    assert_eq!(place.commit().1, 0);
}

#[test]
fn many_directories_share_a_bounded_number_of_files() {
    let Some(place) = Place::new() else { return };
    for number in 0..40 {
        let directory = place.source().join(format!("{number}"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("file"), content(number, 'x')).unwrap();
        let transaction = place.store.begin().unwrap();
        let contents = Remembering::trusting_until(&transaction, &directory, i64::MAX);
        scan(&directory, &contents, &()).unwrap();
        contents.save();
    }
    assert_eq!(place.caches().len(), 16);
}

#[test]
fn commits_of_one_directory_at_once_leave_a_whole_cache() {
    let Some(place) = Place::new() else { return };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let transaction = place.store.begin().unwrap();
                    let contents =
                        Remembering::trusting_until(&transaction, &place.source(), i64::MAX);
                    let tree = scan(&place.source(), &contents, &()).unwrap();
                    contents.save();
                    transaction.put_image(&tree, RuleSet::Exact1).unwrap();
                    transaction.commit().unwrap();
                }
            });
        }
    });
    place.commit();
    assert_eq!(place.commit().1, 40);
    assert_eq!(place.caches().len(), 1);
}
