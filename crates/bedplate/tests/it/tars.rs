//! Tars in and out of the program: what is refused and why, and what an export that failed leaves.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::sandbox::Sandbox;

/// One member, and the end of the archive unless that is to be missing.
fn tar(records: &[(&str, &str)], end: bool) -> Vec<u8> {
    let member = |kind: u8, name: &str, body: &[u8]| {
        let mut tar = vec![0; 512];
        tar[..name.len()].copy_from_slice(name.as_bytes());
        tar[100..107].copy_from_slice(b"0000644");
        tar[124..135].copy_from_slice(format!("{:011o}", body.len()).as_bytes());
        tar[156] = kind;
        tar[257..265].copy_from_slice(b"ustar\x0000");
        tar[148..156].fill(b' ');
        let sum: u32 = tar.iter().map(|byte| u32::from(*byte)).sum();
        tar[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        tar.extend_from_slice(body);
        tar.resize(tar.len().next_multiple_of(512), 0);
        tar
    };
    let mut text = String::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (1..9)
            .map(|digits| rest + digits)
            .find(|length| rest + length.to_string().len() == *length)
            .unwrap();
        text.push_str(&format!("{length} {key}={value}\n"));
    }
    let mut tar = Vec::new();
    if !records.is_empty() {
        tar.extend(member(b'x', "pax", text.as_bytes()));
    }
    tar.extend(member(b'0', "etc/motd", b"hello\n"));
    if end {
        tar.extend([0; 1024]);
    }
    tar
}

#[test]
fn a_tar_that_cannot_be_imported_says_why_and_what_helps() {
    let sandbox = Sandbox::new();
    let acl = "user::rw-,user:lisa:rwx,group::r--,mask::rwx,other::r--";
    for (records, end, words) in [
        (
            &[][..],
            false,
            &["without its end mark", "hint: where nothing is missing"][..],
        ),
        (
            &[("SCHILY.acl.access", acl)][..],
            true,
            &["/etc/motd", "tar --numeric-owner"],
        ),
        (
            &[("size", "99999999999999")][..],
            true,
            &["file sizes exceed the limit"],
        ),
        (&[("uid", "4294967295")][..], true, &["/etc/motd", "nobody"]),
        (
            &[("SCHILY.xattr.system.foo", "x")][..],
            true,
            &["/etc/motd", "`system.foo`"],
        ),
    ] {
        std::fs::write(sandbox.path("bad.tar"), tar(records, end)).unwrap();
        let run = sandbox.run("import bad.tar os:v1");
        assert_eq!(run.code, 2, "{}", run.stderr);
        for word in words {
            assert!(run.stderr.contains(word), "`{word}` in {}", run.stderr);
        }
    }
    let mut padded = tar(&[], false);
    padded.extend([0; 512]);
    std::fs::write(sandbox.path("good.tar"), padded).unwrap();
    sandbox.good("import good.tar os:v1");
    assert_eq!(sandbox.good("cat os:v1 /etc/motd"), "hello");
}

/// A store whose one image takes a while to export.
fn large(sandbox: &Sandbox) {
    let tree = sandbox.tree("tree");
    let file = std::fs::File::create(tree.join("usr/large")).unwrap();
    file.set_len(1 << 36).unwrap();
    sandbox.good("commit tree os:v1");
}

/// The names in the sandbox that begin so.
fn named(sandbox: &Sandbox, start: &str) -> Vec<String> {
    let entries = std::fs::read_dir(sandbox.path(".")).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(start))
        .collect()
}

#[test]
fn an_export_that_fails_or_is_ended_leaves_nothing() {
    let sandbox = Sandbox::new();
    large(&sandbox);
    let limited = Command::new("sh")
        .args(["-c", "ulimit -f 200; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_bedplate"))
        .args(["--store", "store", "export", "os:v1", "-o", "os.tar"])
        .current_dir(sandbox.path("."))
        .output()
        .unwrap();
    assert_eq!(limited.status.code(), Some(3));
    assert_eq!(named(&sandbox, "os.tar"), Vec::<String>::new());

    let unnamed =
        bedplate_sys::files::create_unnamed(std::fs::File::open(sandbox.path(".")).unwrap(), 0o600);
    if unnamed.unwrap().is_none() {
        return; // a file system where a file needs a name
    }
    for signal in ["TERM", "INT", "KILL"] {
        let mut child = sandbox
            .command()
            .args(["export", "os:v1", "-o", "os.tar"])
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "it takes longer");
        let id = child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &id]).status();
        assert!(sent.unwrap().success());
        assert!(!child.wait().unwrap().success());
        assert_eq!(named(&sandbox, "os.tar"), Vec::<String>::new(), "{signal}");
    }
}

#[test]
fn an_export_whose_reader_ends_early_has_failed() {
    use std::io::Read as _;
    let sandbox = Sandbox::new();
    large(&sandbox);
    for arguments in [&["export", "os:v1"][..], &["export", "os:v1", "-o", "-"]] {
        let mut child = sandbox
            .command()
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 100]).unwrap();
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("not the whole image"), "{said}");
    }
}

#[test]
fn a_small_export_whose_reader_is_gone_has_failed_too() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("tree")).unwrap();
    sandbox.good("commit tree os:v1");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = sandbox
        .command()
        .args(["export", "os:v1"])
        .stdout(writer)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(ended.code(), Some(3));
}

#[test]
fn a_tree_deeper_than_a_path_can_say_goes_through_every_verb() {
    let sandbox = Sandbox::new();
    let begin = Instant::now();
    std::fs::create_dir(sandbox.path("tree")).unwrap();
    let top = std::fs::File::open(sandbox.path("tree")).unwrap();
    let name = "d".repeat(200);
    let mut directory: rustix::fd::OwnedFd = top.into();
    for _ in 0..40 {
        rustix::fs::mkdirat(&directory, &*name, 0o755.into()).unwrap();
        directory = bedplate_sys::files::open_directory(&directory, name.as_ref()).unwrap();
    }
    drop(bedplate_sys::files::create_file(&directory, "file".as_ref(), 0o644).unwrap());
    sandbox.good("commit tree os:v1");
    let digest = sandbox.good("digest tree");
    sandbox.good("export os:v1 -o os.tar");
    assert_eq!(sandbox.good("import os.tar os:v2"), digest);
    sandbox.good("checkout os:v2 copy");
    assert_eq!(sandbox.good("digest copy"), digest);
    let gnu = Command::new("tar")
        .args(["--format=posix", "-cf", "gnu.tar", "-C", "tree", "."])
        .current_dir(sandbox.path("."))
        .status();
    if gnu.is_ok_and(|status| status.success()) {
        sandbox.good("import gnu.tar os:gnu");
        let listed = sandbox.good("ls -R os:gnu");
        assert!(listed.lines().count() >= 41);
    }
    assert!(begin.elapsed() < Duration::from_secs(60));
}
