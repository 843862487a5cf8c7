//! What the surroundings do to the program: masks, closed outputs, missing privileges, damaged stores.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use crate::sandbox::{Sandbox, listing};

/// Runs a line of shell in which `$B` is the program and its store.
fn shell(sandbox: &Sandbox, line: &str) -> Output {
    let program = format!("{} --store store", env!("CARGO_BIN_EXE_bedplate"));
    Command::new("bash")
        .args(["-c", line])
        .env("B", program)
        .current_dir(sandbox.path("."))
        .output()
        .unwrap()
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_no_sudden_death() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("tree")).unwrap();
    std::fs::write(sandbox.path("tree/large"), vec![1; 400_000]).unwrap();
    let limited = Command::new("sh")
        .args(["-c", "ulimit -f 10; exec \"$@\"", "sh"])
        .arg(sandbox.command().get_program())
        .args(sandbox.command().get_args())
        .args(["commit", "tree", "os:1"])
        .current_dir(sandbox.path("."))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&limited.stderr);
    assert_eq!(limited.status.code(), Some(3), "{said}");
    assert!(said.contains("File too large"), "{said}");
}

#[test]
fn modes_are_the_same_whatever_mask_the_caller_left() {
    let modes = |mask: &str| {
        let sandbox = Sandbox::new();
        sandbox.tree("tree");
        let line = format!(
            "umask {mask}; $B commit tree os:v1 >/dev/null && $B checkout os:v1 copy \
             && $B export os:v1 -o os.tar && $B images --json >/dev/null"
        );
        let output = shell(&sandbox, &line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{mask}: {stderr}");
        let find = Command::new("find")
            .args(["store", "copy", "os.tar", "-printf", "%P %y %m\n"])
            .current_dir(sandbox.path("."))
            .output()
            .unwrap();
        let text = String::from_utf8(find.stdout).unwrap();
        // The tree's times, and so the name of its image, differ from run to run.
        let mut lines: Vec<String> = text
            .lines()
            .map(|line| match line.strip_prefix("images/") {
                Some(rest) => format!("images/… {}", &rest[rest.len() - 5..]),
                None => line.to_owned(),
            })
            .collect();
        lines.sort_unstable();
        lines
    };
    let usual = modes("022");
    assert_eq!(modes("777"), usual);
    assert_eq!(modes("000"), usual);
}

#[test]
fn output_that_nobody_can_have_is_an_error_and_a_reader_that_left_is_none() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    for line in [
        "$B images >&-",
        "$B cat os:v1 usr/bin/tool >&-",
        "$B images >/dev/full",
    ] {
        let output = shell(&sandbox, line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{line}: {stderr}");
        assert!(
            stderr.contains("cannot write to standard output"),
            "{line}: {stderr}"
        );
    }
    for line in [
        "$B images >/dev/null",
        "$B checkout os:v1 copy >&-",
        "$B ls -R os:v1 | head -1",
        "$B cat os:v1 usr/bin/tool | true",
    ] {
        let output = shell(&sandbox, &format!("set -o pipefail; {line}"));
        assert!(output.status.success(), "{line}");
        assert!(output.stderr.is_empty(), "{line}");
    }
}

#[test]
fn what_a_store_lost_is_damage() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    for (part, line) in [
        ("refs", "images"),
        ("refs", "gc"),
        ("objects", "commit tree os:v2"),
        ("images", "ls os:v1"),
        ("images", "df"),
        ("objects", "cat os:v1 usr/bin/tool"),
        ("objects", "checkout os:v1 copy"),
    ] {
        let store = sandbox.path("store");
        let _ = std::fs::remove_dir_all(&store);
        sandbox.good("commit tree os:v1");
        std::fs::remove_dir_all(store.join(part)).unwrap();
        let run = sandbox.run(line);
        assert_eq!(run.code, 5, "`{line}` without {part}/: {}", run.stderr);
        assert!(
            run.stderr.contains("hint: ") && run.stderr.contains("`bedplate fsck"),
            "{}",
            run.stderr
        );
    }
    for (part, line) in [
        ("tmp", "commit tree os:v2"),
        ("pins", "gc"),
        ("index", "fsck --rebuild-index"),
    ] {
        std::fs::remove_dir_all(sandbox.path("store")).unwrap();
        sandbox.good("commit tree os:v1");
        std::fs::remove_dir_all(sandbox.path("store").join(part)).unwrap();
        sandbox.good(line);
        sandbox.good("fsck");
    }
    assert!(
        !sandbox.path("copy").exists(),
        "a failed checkout leaves nothing"
    );
}

#[test]
fn a_store_is_not_written_through_a_link_and_says_what_to_do() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    let (refs, elsewhere) = (sandbox.path("store/refs"), sandbox.path("elsewhere"));
    rustix::fs::rename(&refs, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &refs).unwrap();
    for line in [
        "commit tree os:v2",
        "tag os:v1 os:v2",
        "untag os:v1",
        "gc",
        "fsck --repair",
    ] {
        let run = sandbox.run(line);
        assert_eq!(run.code, 5, "{line}: {}", run.stderr);
        assert!(
            run.stderr.contains("store/refs is a symbolic link"),
            "{line}: {}",
            run.stderr
        );
        assert!(
            run.stderr.contains("hint: put the directory"),
            "{line}: {}",
            run.stderr
        );
    }
    let fsck = sandbox.run("fsck");
    assert_eq!(fsck.code, 5);
    assert!(
        fsck.stdout.contains("store/refs is a symbolic link"),
        "{}",
        fsck.stdout
    );
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 1);
}

#[test]
fn a_plain_user_checks_out_what_he_may_or_nothing() {
    const NOBODY: u32 = 65_534;
    let sandbox = Sandbox::new();
    let tree = sandbox.tree("tree");
    let tool = tree.join("usr/bin/tool");
    std::fs::set_permissions(&tool, PermissionsExt::from_mode(0o4755)).unwrap();
    std::fs::set_permissions(tree.join("etc"), PermissionsExt::from_mode(0o555)).unwrap();
    let tar = Command::new("tar")
        .args([
            "-C",
            "tree",
            "--owner=12345",
            "--group=12345",
            "-cf",
            "os.tar",
            ".",
        ])
        .current_dir(sandbox.path("."))
        .status()
        .unwrap();
    assert!(tar.success());
    // Root becomes somebody else, who can reach neither a home nor a build directory of root's.
    let program = sandbox.path("program");
    std::fs::copy(env!("CARGO_BIN_EXE_bedplate"), &program).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let root = rustix::process::geteuid().is_root();
    if root {
        chown(sandbox.path("."), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let run = |line: &str| {
        let mut command = Command::new(&program);
        command
            .args(["--store", "store"])
            .args(line.split_whitespace())
            .current_dir(sandbox.path("."));
        if root {
            command.uid(NOBODY).gid(NOBODY);
        }
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    assert_eq!(run("import os.tar os:v1").0, Some(0));
    std::fs::create_dir(sandbox.path("there")).unwrap();
    if root {
        chown(sandbox.path("there"), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    for place in ["copy", "there"] {
        let (code, _, stderr) = run(&format!("checkout os:v1 {place}"));
        assert_eq!(code, Some(3), "{stderr}");
        assert!(stderr.contains("--unprivileged"), "{stderr}");
    }
    assert!(!sandbox.path("copy").exists());
    assert_eq!(
        listing(&sandbox.path("there")).lines().count(),
        1,
        "empty as before"
    );

    let (code, stdout, stderr) = run("checkout --unprivileged os:v1 copy");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("left out"), "{stdout}");
    let mode = |path: &str| {
        let metadata = std::fs::metadata(sandbox.path("copy").join(path)).unwrap();
        metadata.permissions().mode() & 0o7777
    };
    assert_eq!(mode("usr/bin/tool"), 0o755, "nobody lends his rights");
    assert_eq!(mode("etc"), 0o555);
    let motd = std::fs::read_to_string(sandbox.path("copy/etc/motd")).unwrap();
    assert_eq!(motd, "welcome\n");
}
