//! The tools that people use, against our registry and our client.
//!
//! Each test runs where its tools are installed, and says so where they are not.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use bedplate_transport::serve::Running;

/// Returns whether all programs are here; names one that is not.
fn have(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| {
        !["/usr/bin", "/usr/sbin", "/usr/local/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(program).exists())
    });
    if let Some(program) = missing {
        eprintln!("skipped: {program} is not installed");
    }
    missing.is_none()
}

/// Runs a program that must succeed, and returns what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Makes an OCI layout with one image of two layers, `<dir>/layout:v1`, by umoci.
fn layout(dir: &Path) -> String {
    let layout = dir.join("layout");
    let image = format!("{}:v1", layout.display());
    let bundle = dir.join("bundle");
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    run("umoci", &["init", "--layout", &path(&layout)]);
    run("umoci", &["new", "--image", &image]);
    for round in ["one", "two"] {
        run(
            "umoci",
            &["unpack", "--rootless", "--image", &image, &path(&bundle)],
        );
        let usr = bundle.join("rootfs/usr/share");
        std::fs::create_dir_all(&usr).unwrap();
        std::fs::write(usr.join(round), round.repeat(100_000)).unwrap();
        std::os::unix::fs::symlink("one", usr.join(format!("link-{round}"))).unwrap();
        run("umoci", &["repack", "--image", &image, &path(&bundle)]);
        std::fs::remove_dir_all(&bundle).unwrap();
    }
    image
}

fn serve(dir: &Path) -> Running {
    Running::start(SocketAddr::from(([127, 0, 0, 1], 0)), dir).unwrap()
}

#[test]
fn skopeo_copies_to_our_registry_and_back() {
    if !have(&["skopeo", "umoci"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = format!("oci:{}", layout(dir.path()));
    let registry = serve(&dir.path().join("registry"));
    let remote = format!("docker://{}/team/os:v1", registry.local_addr());
    run(
        "skopeo",
        &["copy", "--dest-tls-verify=false", &source, &remote],
    );
    let digest = |image: &str| {
        run(
            "skopeo",
            &[
                "inspect",
                "--tls-verify=false",
                "--format",
                "{{.Digest}}",
                image,
            ],
        )
    };
    assert_eq!(digest(&source), digest(&remote));

    let back = format!("oci:{}:v1", dir.path().join("back").display());
    run(
        "skopeo",
        &["copy", "--src-tls-verify=false", &remote, &back],
    );
    assert_eq!(digest(&source), digest(&back));
    let tags = run(
        "skopeo",
        &[
            "list-tags",
            "--tls-verify=false",
            &remote.replace(":v1", ""),
        ],
    );
    assert!(tags.contains("\"v1\""), "{tags}");

    // The second push finds every blob; a second repository mounts or sends them.
    run(
        "skopeo",
        &["copy", "--dest-tls-verify=false", &source, &remote],
    );
    let other = remote.replace("team/os", "team/other");
    run(
        "skopeo",
        &[
            "copy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            &remote,
            &other,
        ],
    );
    run("skopeo", &["delete", "--tls-verify=false", &remote]);
    assert_eq!(digest(&source), digest(&other));
}
