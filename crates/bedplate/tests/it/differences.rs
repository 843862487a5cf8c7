//! What `diff` says first: kernels, packages, and what is no news.

use std::fs;
use std::path::Path;

use crate::sandbox::Sandbox;

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

const HTOP: &str = "Package: htop\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n";

#[test]
fn kernels_are_compared_as_sets_and_by_their_bytes() {
    let sandbox = Sandbox::new();
    let (old, new) = (sandbox.tree("old"), sandbox.tree("new"));
    for root in [&old, &new] {
        write(root, "usr/lib/modules/6.1.0-1/vmlinuz", "the same");
    }
    let diff = sandbox.good("diff ./old ./new");
    assert!(diff.contains("Kernel:   the same (6.1.0-1)"), "{diff}");
    write(&new, "usr/lib/modules/6.2.0-1/vmlinuz", "another");
    let diff = sandbox.good("diff ./old ./new");
    assert!(
        diff.contains("Kernel:   6.1.0-1 → 6.1.0-1, 6.2.0-1\n"),
        "{diff}"
    );
    write(&new, "usr/lib/modules/6.1.0-1/vmlinuz", "built anew");
    let diff = sandbox.good("diff ./old ./new");
    assert!(diff.contains("~ 6.1.0-1: another kernel"), "{diff}");
    let json = sandbox.json("diff ./old ./new --json");
    assert_eq!(json["kernels_added"], serde_json::json!(["6.2.0-1"]));
    assert_eq!(json["kernels_changed"], serde_json::json!(["6.1.0-1"]));
}

#[test]
fn a_broken_database_of_packages_keeps_nobody_from_the_rest() {
    let sandbox = Sandbox::new();
    let (old, new) = (sandbox.tree("old"), sandbox.tree("new"));
    for root in [&old, &new] {
        write(root, "var/lib/dpkg/status", HTOP);
    }
    write(&new, "var/lib/dpkg/status", &format!("{HTOP}no field\n"));
    write(&new, "etc/new", "x");
    sandbox.good("commit new os:new");
    for line in ["diff ./old ./new --json", "diff ./old os:new --json"] {
        let run = sandbox.run(line);
        assert_eq!(run.code, 5, "{}", run.stderr);
        assert!(run.stderr.contains("status"), "{}", run.stderr);
        let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(json["packages"], serde_json::Value::Null);
        assert_eq!(json["packages_unreadable"].as_array().unwrap().len(), 1);
        assert_eq!(json["paths_added"], 1);
    }
    let run = sandbox.run("diff ./old ./new");
    assert!(
        run.stdout.contains("Packages: not compared"),
        "{}",
        run.stdout
    );
}

#[test]
fn every_kind_of_package_database_is_read() {
    let sandbox = Sandbox::new();
    let (old, new) = (sandbox.tree("old"), sandbox.tree("new"));
    for root in [&old, &new] {
        write(root, "var/lib/dpkg/status", HTOP);
        write(root, "lib/apk/db/installed", "P:musl\nV:1\nA:noarch\n\n");
    }
    write(&new, "lib/apk/db/installed", "P:musl\nV:2\nA:noarch\n\n");
    let diff = sandbox.good("diff ./old ./new");
    assert!(diff.contains("~ musl 1 → 2"), "{diff}");
}

#[test]
fn what_was_only_touched_is_no_news_of_a_unit_and_a_difference_can_be_an_exit_code() {
    let sandbox = Sandbox::new();
    let tree = sandbox.tree("tree");
    write(&tree, "usr/lib/systemd/system/a.service", "[Service]\n");
    sandbox.good("commit tree os:old");
    assert_eq!(sandbox.run("diff os:old ./tree --exit-code").code, 0);
    let unit = fs::File::open(tree.join("usr/lib/systemd/system/a.service")).unwrap();
    unit.set_modified(std::time::UNIX_EPOCH).unwrap();
    let json = sandbox.json("diff os:old ./tree --files --json");
    assert_eq!(json["units"]["changed"], serde_json::json!([]));
    assert_eq!(json["paths_changed"], 1);
    assert_eq!(sandbox.run("diff os:old ./tree").code, 0);
    assert_eq!(sandbox.run("diff os:old ./tree --exit-code").code, 1);
}

#[test]
fn a_store_is_not_committed_into_itself_and_an_earlier_image_not_untagged() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    for directory in ["store", "store/objects"] {
        let run = sandbox.run(&format!("commit {directory} os:v2"));
        assert_eq!(run.code, 2, "{}", run.stderr);
        assert!(run.stderr.contains("the store itself"), "{}", run.stderr);
    }
    let run = sandbox.run("untag os:v1~1");
    assert_eq!(run.code, 2);
    assert!(
        run.stderr.contains("an earlier image of os:v1"),
        "{}",
        run.stderr
    );
}
