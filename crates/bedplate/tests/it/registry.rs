//! serve, push and pull; and podman's family as the other side.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use crate::sandbox::Sandbox;

/// Our own registry on a free port, until it is dropped.
pub(crate) struct Registry {
    server: Child,
    address: String,
}

impl Registry {
    pub(crate) fn start(sandbox: &Sandbox) -> Self {
        let mut server = sandbox
            .command()
            .args(["serve", "--listen", "127.0.0.1:0", "--dir", "registry"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().rsplit("http://").next().unwrap().to_owned();
        Self { server, address }
    }

    pub(crate) fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[expect(clippy::print_stdout, reason = "a part that is left out says so")]
fn is_installed(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|run| run.status.success());
    if !found {
        println!("{program} is not installed: this part of the test has nothing to compare with");
    }
    found
}

#[test]
fn what_is_pushed_is_pulled_with_the_same_digests() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    let digest = sandbox.good("commit tree os:v1");
    let registry = Registry::start(&sandbox);
    let name = registry.name("team/os:v1");
    let pushed = sandbox.json(&format!("push --json os:v1 {name}"));
    let pulled = sandbox.json_with("other", &format!("pull --json {name}"));
    assert_eq!(pulled["root_digest"], digest);
    assert_eq!(pulled["manifest_digest"], pushed["manifest_digest"]);
    let by_digest = format!(
        "{}@{}",
        registry.name("team/os"),
        pushed["manifest_digest"].as_str().unwrap()
    );
    assert_eq!(
        sandbox.json_with("third", &format!("pull --json {by_digest}"))["root_digest"],
        digest
    );
    let missing = sandbox.run(&format!("pull {}", registry.name("team/os:v9")));
    assert_eq!(missing.code, 2, "{}", missing.stderr);
}

#[test]
fn skopeo_copies_what_was_pushed_and_its_copy_pulls_as_the_same_image() {
    if !is_installed("skopeo") {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    let digest = sandbox.good("commit tree os:v1");
    let registry = Registry::start(&sandbox);
    sandbox.good(&format!("push os:v1 {}", registry.name("os:v1")));
    let copy = Command::new("skopeo")
        .args(["copy", "--src-tls-verify=false", "--dest-tls-verify=false"])
        .arg(format!("docker://{}", registry.name("os:v1")))
        .arg(format!("docker://{}", registry.name("copy:v1")))
        .output()
        .unwrap();
    assert!(
        copy.status.success(),
        "{}",
        String::from_utf8_lossy(&copy.stderr)
    );
    let pulled = sandbox.json_with(
        "other",
        &format!("pull --json {}", registry.name("copy:v1")),
    );
    assert_eq!(pulled["root_digest"], digest);
}

#[test]
fn an_annotation_that_a_derived_image_inherited_is_void() {
    if !is_installed("skopeo") {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    let registry = Registry::start(&sandbox);
    sandbox.good(&format!(
        "push --compression gzip os:v1 {}",
        registry.name("os:v1")
    ));
    // What podman commit does, in short: another config, the base's annotations.
    let layout = sandbox.path("layout");
    let copy = |from: String, to: String| {
        let run = Command::new("skopeo")
            .args([
                "copy",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
                &from,
                &to,
            ])
            .output()
            .unwrap();
        assert!(
            run.status.success(),
            "{}",
            String::from_utf8_lossy(&run.stderr)
        );
    };
    copy(
        format!("docker://{}", registry.name("os:v1")),
        format!("dir:{}", layout.display()),
    );
    let manifest_path = layout.join("manifest.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&manifest_path).unwrap()).unwrap();
    let digest = manifest["config"]["digest"]
        .as_str()
        .unwrap()
        .replace("sha256:", "");
    let config = std::fs::read_to_string(layout.join(&digest)).unwrap();
    let derived = config.replacen('{', "{\"author\":\"somebody\",", 1);
    let output = {
        std::fs::write(sandbox.path("config"), &derived).unwrap();
        Command::new("sha256sum")
            .arg(sandbox.path("config"))
            .output()
            .unwrap()
    };
    let derived_digest = String::from_utf8(output.stdout).unwrap()[..64].to_owned();
    std::fs::write(layout.join(&derived_digest), &derived).unwrap();
    manifest["config"]["digest"] = format!("sha256:{derived_digest}").into();
    manifest["config"]["size"] = derived.len().into();
    std::fs::write(&manifest_path, serde_json::to_vec(&manifest).unwrap()).unwrap();
    copy(
        format!("dir:{}", layout.display()),
        format!("docker://{}", registry.name("derived:v1")),
    );

    let pulled = sandbox.json_with(
        "other",
        &format!("pull --json {}", registry.name("derived:v1")),
    );
    let root = pulled["root_digest"].as_str().unwrap();
    assert!(root.starts_with("bootc-1/"), "{root}");
}

#[test]
fn tls_that_is_asked_for_is_not_given_up_on_loopback() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    let registry = Registry::start(&sandbox);
    let name = registry.name("os:v1");
    sandbox.good(&format!("push os:v1 {name}"));
    let run = sandbox.run(&format!("pull --tls-verify=true {name}"));
    assert_eq!(run.code, 4, "{}{}", run.stdout, run.stderr);
}

#[test]
fn damage_is_repaired_from_the_registry_that_the_image_came_from() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    let registry = Registry::start(&sandbox);
    let name = registry.name("team/os:v1");
    sandbox.good(&format!("push os:v1 {name}"));
    let other = |line: &str| {
        let run = sandbox.run_with("pulled", line);
        (run.code, run.stdout + &run.stderr)
    };
    sandbox.json_with("pulled", &format!("pull --json {name}"));
    // Everything that the store holds, each file alone and then all of them at once.
    let places = ["objects", "images", "layers", "blobs"];
    let files: Vec<_> = places
        .iter()
        .flat_map(|place| files_below(&sandbox.path("pulled").join(place)))
        .collect();
    assert_eq!(files.len(), 5, "{files:?}");
    for damaged in files.iter().map(std::slice::from_ref).chain([&files[..]]) {
        for file in damaged {
            std::fs::remove_file(file).unwrap();
            std::fs::write(file, "damaged").unwrap();
        }
        assert_eq!(other("fsck").0, 5);
        let (code, text) = other("fsck --repair");
        assert_eq!(code, 0, "{damaged:?}: {text}");
        assert_eq!(other("fsck").0, 0);
    }
    drop(registry);
    std::fs::remove_file(&files[0]).unwrap();
    let (code, text) = other("fsck --repair");
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("2 findings left"), "{text}");
    assert_eq!(other("fsck --repair --from store").0, 0);
}

fn files_below(path: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}
