//! The damage matrix: every way to damage a file, every kind of file in a store, every verb that reads one.
//!
//! ```text
//! delete · truncate · flip a bit · swap with another of its kind
//!    × object · image · layer · manifest · config · ref · its time · journal · pin · format.json
//!    × ls cat checkout export inspect images log diff lint push pull tag commit mount gc fsck
//! ```
//!
//! Invariant: each run ends in an error (exit code 5) that names what is damaged, or in the answer that the
//! whole store gives; and fsck names all damage. [`exception`] has the cases that are neither, each with
//! its reason, and those where the damage is gone afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::registry::Registry;
use crate::sandbox::Sandbox;

/// What stands for the registry's address in a command line.
const REGISTRY: &str = "REGISTRY";

/// A kind of file in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Object,
    Image,
    Layer,
    Manifest,
    Config,
    Ref,
    /// A ref whose damage is in the digits of a time: it would be another, as good as the first.
    RefTime,
    /// What the last change of several names left, done.
    Journal,
    Pin,
    Format,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Delete,
    Truncate,
    Flip,
    Swap,
}

const DAMAGES: [Damage; 4] = [Damage::Delete, Damage::Truncate, Damage::Flip, Damage::Swap];

/// How a run ended, beside an error that names the damage and the right answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Otherwise {
    /// Exit code 2: what was asked for is not there, as after `untag`, and nobody can know that it was.
    NotThere,
    /// Another answer, which is right for the store without the file.
    Without,
    /// The right answer, and the store is whole again.
    Mended,
}

/// The verbs, each with what shows that its answer is right. All but the last few change nothing.
const READING: &[&[&str]] = &[
    &["ls -l -R os:v1"],
    &["cat os:v1 /usr/bin/tool"],
    &["checkout os:v1 copy", "digest copy"],
    &["export os:v1"],
    &["inspect --json os:v1"],
    &["images --json"],
    &["log os:v1"],
    &["diff --files os:v1 os:v2"],
    &["lint os:v1"],
    &["gc --dry-run"],
];
const CHANGING: &[&[&str]] = &[
    &["push os:v1 REGISTRY/copy:v1"],
    &["pull REGISTRY/os:v1", "cat REGISTRY/os:v1 /usr/bin/tool"],
    &["tag os:v1 os:v3", "ls os:v3"],
    &[
        "commit tree-1 os:v4",
        "checkout os:v4 copy-4",
        "digest copy-4",
    ],
    &["gc", "checkout os:v2 copy-2", "digest copy-2"],
];
const AS_ROOT: &[&[&str]] = &[&["mount os:v1 mnt", "umount mnt"]];

/// The cases that are neither an error that names the damage nor the right answer.
fn exception(kind: Kind, damage: Damage, verb: &str) -> Option<Otherwise> {
    match (kind, damage, verb) {
        // A name that is gone was taken away, for all that anybody knows.
        (Kind::Ref, Damage::Delete, "images" | "gc") => Some(Otherwise::Without),
        (Kind::Ref, Damage::Delete, "commit" | "pull") => None,
        (Kind::Ref, Damage::Delete, _) => Some(Otherwise::NotThere),
        // Without its description it is no store any more, and says so; what makes stores makes it one.
        (Kind::Format, Damage::Delete, "commit" | "pull") => None,
        (Kind::Format, Damage::Delete, _) => Some(Otherwise::NotThere),
        // What is gone is not counted.
        (Kind::Object | Kind::Layer | Kind::Manifest, Damage::Delete, "gc") => {
            Some(Otherwise::Without)
        }
        // Whoever has the right bytes puts them in the place of what is too short. A pull of what is here only
        // looks at the documents.
        (Kind::Object | Kind::Image, Damage::Truncate, "commit")
        | (Kind::Manifest | Kind::Config, Damage::Truncate, "pull") => Some(Otherwise::Mended),
        _ => None,
    }
}

/// Whether there is such a damage: of some kinds there is no other file, and a time is only ever another.
fn is_possible(kind: Kind, damage: Damage) -> bool {
    match kind {
        Kind::Format | Kind::Journal => damage != Damage::Swap,
        Kind::RefTime => damage == Damage::Flip,
        _ => true,
    }
}

/// Whether fsck can know.
fn fsck_finds(kind: Kind, damage: Damage) -> bool {
    match (kind, damage) {
        // A name, a pin or a layer's table that is gone may never have been there.
        (Kind::Ref | Kind::Pin | Kind::Layer | Kind::Journal, Damage::Delete) => false,
        // This bit is in the name of a member that may be missing.
        (Kind::Format, Damage::Flip) => false,
        _ => true,
    }
}

/// A store with two images that share little, and a registry that has both.
struct Bench {
    sandbox: Sandbox,
    registry: Registry,
}

/// What one run printed, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ended {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Bench {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        for version in ["1", "2"] {
            let tree = sandbox.tree(&format!("tree-{version}"));
            let tool = format!("tool of version {version}\n").repeat(9000);
            fs::write(tree.join("usr/bin/tool"), tool).unwrap();
            fs::write(tree.join("usr/bin/other"), version.repeat(4000)).unwrap();
            sandbox.good(&format!("commit tree-{version} os:v{version}"));
        }
        // Several names at once leave a journal.
        sandbox.good("tag os:v1 kept:v1 kept:v2");
        sandbox.good("untag kept:v1 kept:v2");
        let registry = Registry::start(&sandbox);
        let bench = Self { sandbox, registry };
        for version in ["1", "2"] {
            bench.sandbox.good(&format!(
                "push os:v{version} {}",
                bench.registry.name(&format!("os:v{version}"))
            ));
            let image = bench.sandbox.json(&format!("inspect --json os:v{version}"));
            let pin = serde_json::json!({
                "format": "bedplate-pin", "version": 1, "name": format!("holder-{version}"),
                "root": image["root_digest"],
            });
            let path = format!("store/pins/holder-{version}");
            fs::write(bench.sandbox.path(&path), pin.to_string()).unwrap();
        }
        fs::create_dir(bench.sandbox.path("mnt")).unwrap();
        bench.copy("store", "whole");
        bench
    }

    fn copy(&self, from: &str, to: &str) {
        let path = self.sandbox.path(to);
        if path.exists() {
            fs::remove_dir_all(&path).unwrap();
        }
        let copied = Command::new("cp")
            .arg("-a")
            .args([self.sandbox.path(from), path])
            .status();
        assert!(copied.unwrap().success());
    }

    /// The file of that kind that belongs to version 1, and that of version 2.
    fn files(&self, kind: Kind) -> [PathBuf; 2] {
        [1, 2].map(|version| {
            let store = self.sandbox.path("whole");
            let image = self.sandbox.json(&format!("inspect --json os:v{version}"));
            let hex = |value: &serde_json::Value| {
                let text = value.as_str().unwrap();
                text.rsplit(':').next().unwrap().to_owned()
            };
            let manifest = store.join("blobs").join(hex(&image["manifest_digest"]));
            let document = |path: &Path| -> serde_json::Value {
                serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
            };
            let config = || {
                let digest = hex(&document(&manifest)["config"]["digest"]);
                store.join("blobs").join(digest)
            };
            let path = match kind {
                Kind::Object => {
                    let tool = self.sandbox.path(&format!("tree-{version}/usr/bin/tool"));
                    file_like(&store.join("objects"), &fs::read(tool).unwrap()).unwrap()
                }
                Kind::Image => store.join("images").join(hex(&image["root_digest"])),
                Kind::Layer => {
                    let diff_id = hex(&document(&config())["rootfs"]["diff_ids"][0]);
                    store.join("layers").join(diff_id)
                }
                Kind::Manifest => manifest,
                Kind::Config => config(),
                Kind::Ref | Kind::RefTime => {
                    store.join(format!("refs/localhost%2Fos%3Av{version}"))
                }
                Kind::Journal => store.join("journal"),
                Kind::Pin => store.join(format!("pins/holder-{version}")),
                Kind::Format => store.join("format.json"),
            };
            assert!(path.exists(), "{kind:?} of version {version}");
            path.strip_prefix(&store).unwrap().to_owned()
        })
    }

    /// Makes the store anew, with the damage.
    fn damaged(&self, kind: Kind, [file, other]: &[PathBuf; 2], damage: Damage) {
        self.copy("whole", "store");
        let store = self.sandbox.path("store");
        let (file, other) = (store.join(file), store.join(other));
        let bytes = fs::read(&file).unwrap();
        let write = |path: &Path, bytes: &[u8]| {
            fs::remove_file(path).unwrap();
            fs::write(path, bytes).unwrap();
        };
        match damage {
            Damage::Delete => fs::remove_file(&file).unwrap(),
            Damage::Truncate => write(&file, &bytes[..bytes.len() / 2]),
            Damage::Flip => {
                let mut bytes = bytes;
                let place = if kind == Kind::RefTime {
                    let text = String::from_utf8_lossy(&bytes);
                    text.find("\"created\": ").unwrap() + "\"created\": 123".len()
                } else {
                    bytes.len() / 2
                };
                bytes[place] ^= 1;
                write(&file, &bytes);
            }
            Damage::Swap => {
                let others = fs::read(&other).unwrap();
                write(&file, &others);
                write(&other, &bytes);
            }
        }
    }

    /// Runs lines until one fails, and returns all that was printed.
    fn run(&self, lines: &[&str]) -> Ended {
        for copy in ["copy", "copy-2", "copy-4"] {
            let _ = fs::remove_dir_all(self.sandbox.path(copy));
        }
        let mut all = Ended {
            code: 0,
            stdout: Vec::new(),
            stderr: String::new(),
        };
        for line in lines {
            let address = self.registry.name("");
            let line = line.replace(&format!("{REGISTRY}/"), &address);
            let output = self
                .sandbox
                .command()
                .args(line.split(' '))
                .output()
                .unwrap();
            all.code = output.status.code().unwrap_or(-1);
            all.stdout.extend(output.stdout);
            all.stderr += &String::from_utf8_lossy(&output.stderr);
            if all.code != 0 {
                break;
            }
        }
        all
    }
}

/// Finds the file with these bytes.
fn file_like(directory: &Path, bytes: &[u8]) -> Option<PathBuf> {
    fs::read_dir(directory).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            file_like(&path, bytes)
        } else {
            (fs::read(&path).unwrap() == bytes).then_some(path)
        }
    })
}

/// What an error calls the file.
fn name_of(path: &Path) -> String {
    let text = path.to_str().unwrap();
    match text.split_once('/') {
        Some(("objects", rest)) => rest.replace('/', ""),
        Some((_, rest)) => rest.to_owned(),
        None => text.to_owned(),
    }
}

/// Tries every verb with every damage to a kind of file.
fn every_verb_with_damaged(kind: Kind) {
    let bench = Bench::new();
    let files = bench.files(kind);
    let names = files.each_ref().map(|file| name_of(file));
    // A ref or pin that leads elsewhere: what it leads to is named, or who is led there.
    let leads_astray = |text: &str| {
        matches!(kind, Kind::Ref | Kind::Pin)
            && ["localhost/os:v1", "holder-1", "the store has no image"]
                .iter()
                .any(|words| text.contains(words))
    };
    let named = |text: &str| names.iter().any(|name| text.contains(name)) || leads_astray(text);
    let root = fs::metadata("/proc/self").is_ok_and(|process| {
        use std::os::unix::fs::MetadataExt as _;
        process.uid() == 0
    });
    let mut lines: Vec<(&[&str], bool)> = Vec::new();
    lines.extend(READING.iter().map(|lines| (*lines, false)));
    lines.extend(CHANGING.iter().map(|lines| (*lines, true)));
    if root {
        lines.extend(AS_ROOT.iter().map(|lines| (*lines, true)));
    }
    let mut wrong = Vec::new();
    // The first push differs from those after it: what it sent is there.
    bench.run(CHANGING[0]);
    let whole = lines.iter().map(|(lines, _)| {
        bench.copy("whole", "store");
        let ended = bench.run(lines);
        assert!(matches!(ended.code, 0 | 1), "{lines:?}: {ended:?}");
        ended
    });
    let whole: Vec<Ended> = whole.collect();
    for damage in DAMAGES {
        if !is_possible(kind, damage) {
            continue;
        }
        bench.damaged(kind, &files, damage);
        let fsck = bench.run(&["fsck"]);
        let told = String::from_utf8_lossy(&fsck.stdout).into_owned() + &fsck.stderr;
        let right = match (fsck_finds(kind, damage), exception(kind, damage, "fsck")) {
            (true, None) => fsck.code == 5 && named(&told),
            (true, Some(_)) => fsck.code == 2,
            (false, _) => fsck.code == 0,
        };
        if !right {
            wrong.push(format!("{damage:?}: fsck: {} {told}", fsck.code));
        }
        for ((lines, changes), before) in lines.iter().zip(&whole) {
            if *changes {
                bench.damaged(kind, &files, damage);
            }
            let after = bench.run(lines);
            let verb = lines[0].split(' ').next().unwrap();
            let right = match exception(kind, damage, verb) {
                Some(Otherwise::NotThere) => after.code == 2,
                Some(Otherwise::Without) => after.code == 0,
                Some(Otherwise::Mended) => {
                    (after.code, &after.stdout) == (before.code, &before.stdout)
                        && bench.run(&["fsck"]).code == 0
                }
                _ => {
                    (after.code, &after.stdout) == (before.code, &before.stdout)
                        || (after.code == 5 && named(&after.stderr))
                }
            };
            if !right {
                wrong.push(format!(
                    "{damage:?}: {lines:?}: {} {}{}",
                    after.code,
                    String::from_utf8_lossy(&after.stdout[..after.stdout.len().min(300)]),
                    after.stderr
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{names:?}\n{}", wrong.join("\n"));
}

#[test]
fn a_damaged_object_is_named() {
    every_verb_with_damaged(Kind::Object);
}

#[test]
fn a_damaged_image_is_named() {
    every_verb_with_damaged(Kind::Image);
}

#[test]
fn a_damaged_layer_is_named() {
    every_verb_with_damaged(Kind::Layer);
}

#[test]
fn a_damaged_manifest_is_named() {
    every_verb_with_damaged(Kind::Manifest);
}

#[test]
fn a_damaged_config_is_named() {
    every_verb_with_damaged(Kind::Config);
}

#[test]
fn a_damaged_ref_is_named() {
    every_verb_with_damaged(Kind::Ref);
}

#[test]
fn another_time_in_a_ref_is_named() {
    every_verb_with_damaged(Kind::RefTime);
}

#[test]
fn a_damaged_journal_is_named() {
    every_verb_with_damaged(Kind::Journal);
}

#[test]
fn a_damaged_pin_is_named() {
    every_verb_with_damaged(Kind::Pin);
}

#[test]
fn a_damaged_description_is_named() {
    every_verb_with_damaged(Kind::Format);
}
