//! The tools that people use, against our registry and our client.
//!
//! Each test runs where its tools are installed, and says so where they are not.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bedplate_model::tree::{Content, Node};
use bedplate_model::{ImageName, Metadata, Name, RootDigest, RuleSet, Timestamp, Tree};
use bedplate_store::{RefTarget, Store};
use bedplate_transport::{
    Client, ClientOptions, LayoutError, PackageOptions, PullError, PullOptions, PushOptions,
    Recipe, RegistryError,
};

use crate::tls::{tls, trust};
use crate::transfer::{client, name, quiet, serve};

/// Returns whether all programs are here; names one that is not.
#[expect(clippy::print_stderr, reason = "a skipped test says why")]
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

/// Commits a small tree with what only exact layers keep, as `localhost/mine:v1`.
fn committed(store: &Store) -> (ImageName, RootDigest) {
    let metadata = |mode| Metadata {
        mtime: Timestamp {
            seconds: 1_700_000_000,
            nanoseconds: 123_456_789,
        },
        ..Metadata::root_owned(mode)
    };
    let component = |text: &str| Name::try_from(text).unwrap();
    let transaction = store.begin().unwrap();
    let mut tree = Tree::new(metadata(0o755));
    let directory = Node::new(metadata(0o755), Content::empty_directory());
    let usr = tree
        .insert(Tree::ROOT, component("usr"), directory)
        .unwrap();
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    for (file, bytes) in [("big", &big[..]), ("small", b"inline"), ("empty", b"")] {
        let content = transaction.put_bytes(bytes).unwrap();
        let node = Node::new(metadata(0o4755), Content::File(content));
        let id = tree.insert(usr, component(file), node).unwrap();
        tree.link(usr, component(&format!("{file}-link")), id)
            .unwrap();
    }
    let root = transaction.put_image(&tree, RuleSet::Exact1).unwrap();
    let image: ImageName = "localhost/mine:v1".parse().unwrap();
    let target = RefTarget::new(root, 0);
    transaction.set_ref(&image, target).unwrap();
    transaction.commit().unwrap();
    (image, root)
}

fn options(recipe: Recipe) -> PushOptions {
    PushOptions {
        package: PackageOptions {
            recipe,
            ..PackageOptions::default()
        },
        ..PushOptions::default()
    }
}

#[test]
fn a_tree_of_ours_comes_back_with_the_same_root_digest() {
    let mut manifests = Vec::new();
    for recipe in [Recipe::ZSTD, Recipe::GZIP, Recipe::None, Recipe::ZSTD] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(&dir.path().join("store")).unwrap();
        let (image, root) = committed(&store);
        let registry = serve(&dir.path().join("registry"));
        let there = name(registry.local_addr(), "a/b:v1");
        let pushed = client()
            .push(&store, &image, &there, &options(recipe), &quiet)
            .unwrap();
        assert!(!pushed.remade, "{recipe}");
        let other = Store::create(&dir.path().join("other")).unwrap();
        let pulled = client()
            .pull(&other, &there, &PullOptions::new(0), &quiet)
            .unwrap();
        assert_eq!(
            (pulled.root, pulled.manifest),
            (root, pushed.manifest),
            "{recipe}"
        );
        manifests.push(pushed.manifest);
    }
    assert_eq!(
        manifests[0], manifests[3],
        "the same tree, the same manifest"
    );
}

#[test]
fn umoci_unpacks_what_skopeo_fetches_of_ours() {
    if !have(&["skopeo", "umoci"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("store")).unwrap();
    let (image, _) = committed(&store);
    let registry = serve(&dir.path().join("registry"));
    let there = name(registry.local_addr(), "a/b:v1");
    client()
        .push(&store, &image, &there, &options(Recipe::GZIP), &quiet)
        .unwrap();

    let layout = format!("{}:v1", dir.path().join("layout").display());
    let (remote, local) = (format!("docker://{there}"), format!("oci:{layout}"));
    run(
        "skopeo",
        &["copy", "--src-tls-verify=false", &remote, &local],
    );
    let bundle = dir.path().join("bundle");
    run(
        "umoci",
        &[
            "unpack",
            "--rootless",
            "--image",
            &layout,
            bundle.to_str().unwrap(),
        ],
    );
    let usr = bundle.join("rootfs/usr");
    assert_eq!(std::fs::metadata(usr.join("big")).unwrap().len(), 3_000_000);
    assert_eq!(std::fs::read(usr.join("small-link")).unwrap(), b"inline");
}

#[test]
fn an_image_of_umoci_is_pulled_and_pushed_on() {
    if !have(&["skopeo", "umoci"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = format!("oci:{}", layout(dir.path()));
    let registry = serve(&dir.path().join("registry"));
    let there = name(registry.local_addr(), "theirs:v1");
    let remote = format!("docker://{there}");
    run(
        "skopeo",
        &["copy", "--dest-tls-verify=false", &source, &remote],
    );

    let store = Store::create(&dir.path().join("store")).unwrap();
    let pulled = client()
        .pull(&store, &there, &PullOptions::new(0), &quiet)
        .unwrap();
    assert_eq!(pulled.layers, 2);
    let onward = name(registry.local_addr(), "onward:v1");
    let pushed = client()
        .push(&store, &there, &onward, &options(Recipe::GZIP), &quiet)
        .unwrap();
    // The repository lies on the same registry, so its layers are mounted as they are.
    assert_eq!((pushed.remade, pushed.layers_reused), (false, 2));
    let back = format!("oci:{}:v1", dir.path().join("back").display());
    run(
        "skopeo",
        &[
            "copy",
            "--src-tls-verify=false",
            &format!("docker://{onward}"),
            &back,
        ],
    );
}

/// A layout on a disk that somebody carried: by umoci, and by skopeo from our registry.
#[test]
fn an_image_is_pulled_from_a_layout_as_from_its_registry() {
    if !have(&["skopeo", "umoci"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let from = |layout: &Path| PullOptions {
        layout: Some(layout.to_owned()),
        ..PullOptions::new(0)
    };
    // 1. umoci's own.
    let theirs = layout(dir.path());
    let by_umoci: ImageName = "registry.invalid/os:v1".parse().unwrap();
    let store = Store::create(&dir.path().join("store")).unwrap();
    let options_of = from(&dir.path().join("layout"));
    let pulled = client()
        .pull(&store, &by_umoci, &options_of, &quiet)
        .unwrap();
    assert_eq!(pulled.layers, 2);
    let missing: ImageName = "registry.invalid/os:v2".parse().unwrap();
    let error = client()
        .pull(&store, &missing, &options_of, &quiet)
        .unwrap_err();
    assert!(
        matches!(&error, PullError::Layout(LayoutError::NotFound { there, .. }) if there == "v1"),
        "{error}"
    );

    // 2. skopeo's of one of ours, by way of a registry.
    let (image, root) = committed(&store);
    let registry = serve(&dir.path().join("registry"));
    let there = name(registry.local_addr(), "a/b:v1");
    client()
        .push(&store, &image, &there, &options(Recipe::ZSTD), &quiet)
        .unwrap();
    let carried = dir.path().join("carried");
    let remote = format!("docker://{there}");
    let target = format!("oci:{}:v1", carried.display());
    run(
        "skopeo",
        &["copy", "--src-tls-verify=false", &remote, &target],
    );
    // A second image in the same layout.
    let second = format!("oci:{}:other", carried.display());
    run(
        "skopeo",
        &[
            "copy",
            &format!("oci:{}", theirs.trim_start_matches("oci:")),
            &second,
        ],
    );
    let other = Store::create(&dir.path().join("other")).unwrap();
    let pulled = client()
        .pull(&other, &there, &from(&carried), &quiet)
        .unwrap();
    assert_eq!(pulled.root, root);
    assert_eq!(
        client().look(&there, &from(&carried)).unwrap(),
        pulled.manifest
    );
    let asked = client().look(&there, &PullOptions::new(0)).unwrap();
    assert_eq!(asked, pulled.manifest, "the registry has the same");

    // 3. A blob of it that is something else is refused, and nothing has a name.
    let manifest = carried.join("blobs/sha256").join(pulled.config.to_hex());
    std::fs::write(&manifest, "{}").unwrap();
    let third = Store::create(&dir.path().join("third")).unwrap();
    let error = client()
        .pull(&third, &there, &from(&carried), &quiet)
        .unwrap_err();
    assert!(
        matches!(&error, PullError::Layout(LayoutError::WrongLength { .. })),
        "{error}"
    );
    assert!(third.resolve(&there).unwrap().is_none());
}

#[test]
fn podman_pulls_ours_and_pushes_to_us() {
    if !have(&["podman"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("store")).unwrap();
    let (image, _) = committed(&store);
    let registry = serve(&dir.path().join("registry"));
    let there = name(registry.local_addr(), "a/b:v1");
    client()
        .push(&store, &image, &there, &options(Recipe::ZSTD), &quiet)
        .unwrap();

    let (root, run_root) = (dir.path().join("podman"), dir.path().join("run"));
    let global = [
        "--root",
        root.to_str().unwrap(),
        "--runroot",
        run_root.to_str().unwrap(),
        "--storage-driver",
        "vfs",
    ];
    let podman = |arguments: &[&str]| run("podman", &[&global[..], arguments].concat());
    let theirs = name(registry.local_addr(), "podman/os:v1");
    podman(&["pull", "--tls-verify=false", &there.to_string()]);
    podman(&["tag", &there.to_string(), &theirs.to_string()]);
    podman(&["push", "--tls-verify=false", &theirs.to_string()]);

    let other = Store::create(&dir.path().join("other")).unwrap();
    let pulled = client()
        .pull(&other, &theirs, &PullOptions::new(0), &quiet)
        .unwrap();
    assert_eq!(pulled.layers, 1);
}

/// Debian's docker-registry with TLS, a user and a password; ends when dropped.
struct DockerRegistry {
    child: Child,
    address: SocketAddr,
}

impl DockerRegistry {
    fn start(dir: &Path) -> Self {
        let address = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .unwrap()
            .local_addr()
            .unwrap();
        // The password is `pass`.
        std::fs::write(
            dir.join("htpasswd"),
            "user:$2b$04$cPVrSzBRhec59SAlbRztoe0bvBgoOsH9V8C3C1swSg.amwFZ6.f3m\n",
        )
        .unwrap();
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {dir}/data\nhttp:\n  addr: {address}\n  tls:\n    certificate: {tls}/registry.crt\n    key: {tls}/registry.key\nauth:\n  htpasswd:\n    realm: test\n    path: {dir}/htpasswd\n",
            dir = dir.display(),
            tls = tls().display()
        );
        std::fs::write(dir.join("config.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { child, address };
        for _ in 0..200 {
            if TcpStream::connect(address).is_ok() {
                return registry;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("docker-registry does not listen");
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn docker_registry_takes_our_push_and_gives_it_back_for_the_right_password() {
    if !have(&["docker-registry"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start(dir.path());
    let store = Store::create(&dir.path().join("store")).unwrap();
    let (image, root) = committed(&store);
    let there = name(registry.address, "team/os:v1");
    let with_password = |auth: &str| {
        let file = dir.path().join("auth.json");
        let text = format!(
            r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#,
            registry.address
        );
        std::fs::write(&file, text).unwrap();
        Client::new(ClientOptions {
            auth_files: vec![file],
            certificate_dirs: vec![trust(dir.path(), registry.address)],
            ..ClientOptions::default()
        })
        .unwrap()
    };
    // user:pass, user:word
    let (right, wrong) = (with_password("dXNlcjpwYXNz"), "dXNlcjp3b3Jk");
    for recipe in [Recipe::ZSTD, Recipe::GZIP] {
        let pushed = right
            .push(&store, &image, &there, &options(recipe), &quiet)
            .unwrap();
        assert!(!pushed.remade);
        let again = right
            .push(&store, &image, &there, &options(recipe), &quiet)
            .unwrap();
        assert_eq!((again.layers_reused, again.bytes_sent), (1, 0));
    }
    let other = Store::create(&dir.path().join("other")).unwrap();
    let pulled = right
        .pull(&other, &there, &PullOptions::new(0), &quiet)
        .unwrap();
    assert_eq!(pulled.root, root);
    let third = Store::create(&dir.path().join("third")).unwrap();
    let outcome = with_password(wrong).pull(&third, &there, &PullOptions::new(0), &quiet);
    assert!(
        matches!(
            outcome,
            Err(PullError::Registry(RegistryError::Denied { .. }))
        ),
        "{outcome:?}"
    );
}
