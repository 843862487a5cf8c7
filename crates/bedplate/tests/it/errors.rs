//! Errors say what was attempted, on what, why, and who must act.

use crate::sandbox::Sandbox;

#[test]
fn each_failure_has_the_exit_code_of_who_must_act() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    std::fs::write(
        sandbox.path("junk.tar"),
        "this is not a tar at all".repeat(100),
    )
    .unwrap();
    std::fs::write(sandbox.path("empty"), "").unwrap();
    std::fs::write(sandbox.path("tree.xz"), b"\xfd7zXZ\0rest").unwrap();
    let odd = sandbox.tree("odd");
    std::fs::write(odd.join("usr/.wh.name"), "").unwrap();
    sandbox.good("commit odd os:odd");
    for (line, code, words) in [
        ("commit missing os:v1", 2, &["missing", "No such file"][..]),
        ("commit tree OS", 2, &["OS", "lower-case"]),
        ("commit tree os@sha256:12", 2, &["digest"]),
        (
            "checkout os:v9 copy",
            2,
            &["no image localhost/os:v9", "hint"],
        ),
        ("untag os:v9", 2, &["no name localhost/os:v9"]),
        (
            "untag os:v1@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            2,
            &["no name"],
        ),
        (
            "import empty os:v1",
            2,
            &["cannot import empty", "it is empty"],
        ),
        ("import tree.xz os:v1", 2, &["compressed with xz"]),
        (
            "push os:odd 127.0.0.1:1/os:odd",
            2,
            &["/usr/.wh.name", "whiteout"],
        ),
        ("cat os:v1 /etc", 2, &["directory"]),
        ("cat os:v1 /nothing", 2, &["no /nothing"]),
        ("import junk.tar os:junk", 2, &["cannot import junk.tar"]),
        ("pull os:v1", 2, &["local name", "hint: name a registry"]),
        ("push os:v1", 2, &["local name"]),
        (
            "pull 127.0.0.1:1/os:v1",
            4,
            &["cannot pull 127.0.0.1:1/os:v1"],
        ),
        ("status", 2, &["not booted by bedplate"]),
        ("upgrade", 2, &["not booted by bedplate"]),
        ("rollback --to 1", 2, &["not booted by bedplate"]),
        ("rollback --to 1f", 2, &["`1f`", "0 is the newest"]),
        ("kargs", 2, &["not booted by bedplate"]),
        ("kargs --append debug --dry-run --apply", 2, &["--apply"]),
        ("pin 0", 2, &["not booted by bedplate"]),
        ("unpin a6d22225", 2, &["not booted by bedplate"]),
        ("undeploy a6d --dry-run", 2, &["not booted by bedplate"]),
        (
            "build --rootfs tree -t os:v2 --init tree/etc/motd",
            2,
            &["cannot build"],
        ),
        (
            "install to-disk disk.raw --image os:v1",
            2,
            &["cannot install"],
        ),
        ("frobnicate", 2, &["frobnicate"]),
        (
            "build --rootfs tree -t os:v2 --skip-lint nosuch",
            2,
            &["nosuch", "possible values", "nonempty-boot"],
        ),
        ("lint os:v1 --skip nosuch", 2, &["nosuch", "nonempty-boot"]),
    ] {
        let run = sandbox.run(line);
        assert_eq!(run.code, code, "`{line}`: {}", run.stderr);
        for word in words {
            assert!(
                run.stderr.contains(word),
                "`{line}` does not say `{word}`: {}",
                run.stderr
            );
        }
    }
    assert!(!sandbox.path("disk.raw").exists());
    assert_eq!(
        sandbox.json("images --json").as_array().unwrap().len(),
        2,
        "nothing was named"
    );
}

#[test]
fn a_store_of_a_newer_version_is_refused_by_name() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    let path = sandbox.path("store/format.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        text.replace("\"required\": []", "\"required\": [\"split-layers\"]"),
    )
    .unwrap();
    let run = sandbox.run("images");
    assert_eq!(run.code, 3, "{}", run.stderr);
    assert!(run.stderr.contains("split-layers"), "{}", run.stderr);
}

#[test]
fn a_reader_that_had_enough_is_no_failure() {
    use std::process::Stdio;
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    let mut child = sandbox
        .command()
        .args(["cat", "os:v1", "/usr/bin/tool"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
