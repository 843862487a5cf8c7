//! kill -9 at any time: the store stays whole, and the same command succeeds when it is run again.

use std::time::{Duration, Instant};

use crate::sandbox::Sandbox;

/// Runs a command once to learn how long it takes, then kills it at points spread over that time.
fn survives_being_killed(sandbox: &Sandbox, line: &[&str], between: impl Fn()) {
    let begin = Instant::now();
    assert!(sandbox.command().args(line).status().unwrap().success());
    let whole = begin.elapsed();
    for point in 0..12 {
        between();
        let mut child = sandbox.command().args(line).spawn().unwrap();
        std::thread::sleep(
            whole
                .mul_f64(f64::from(point) / 11.0)
                .min(Duration::from_secs(5)),
        );
        // It may be done already: then this was the cut after the last write.
        let _ = child.kill();
        child.wait().unwrap();
        let fsck = sandbox.run("fsck");
        assert_eq!(fsck.code, 0, "after a kill at {point}/11: {}", fsck.stdout);
    }
    between();
    assert!(sandbox.command().args(line).status().unwrap().success());
    assert_eq!(sandbox.run("fsck").code, 0);
}

fn many_files(sandbox: &Sandbox) {
    let tree = sandbox.tree("tree");
    for number in 0..600 {
        let text = format!("file number {number}, ").repeat(40 + number);
        std::fs::write(tree.join(format!("usr/file-{number}")), text).unwrap();
    }
}

#[test]
fn a_commit_that_is_killed_leaves_a_whole_store() {
    let sandbox = Sandbox::new();
    many_files(&sandbox);
    let clear = || {
        // Also what was stored before goes, so that there is something to do.
        if sandbox.run("untag os:v1").code == 0 {
            sandbox.good("gc");
        }
    };
    survives_being_killed(&sandbox, &["commit", "tree", "os:v1"], clear);
    sandbox.good("checkout os:v1 copy");
    assert_eq!(sandbox.good("digest copy"), sandbox.good("digest tree"));
}

#[test]
fn a_pull_that_is_killed_leaves_a_whole_store() {
    let sandbox = Sandbox::new();
    many_files(&sandbox);
    sandbox.good("commit tree os:v1");
    let registry = crate::registry::Registry::start(&sandbox);
    let name = registry.name("os:v1");
    sandbox.good(&format!("push os:v1 {name}"));
    let digest = sandbox.good("digest tree");
    let clear = || {
        let _ = sandbox.run("untag os:v1");
        if sandbox.run(&format!("untag {name}")).code == 0 {
            sandbox.good("gc");
        }
    };
    clear();
    survives_being_killed(&sandbox, &["pull", &name], clear);
    assert_eq!(
        sandbox.json(&format!("inspect --json {name}"))["root_digest"],
        digest
    );
}
