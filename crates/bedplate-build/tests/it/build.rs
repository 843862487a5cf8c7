//! A small root directory, as a distribution lays it out, becomes an image.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;

use bedplate_build::files::StoreFiles;
use bedplate_build::{BuildError, BuildEvent, BuildObserver, BuildOptions, Subject, build, lint};
use bedplate_model::{ImageName, TreePath, layout, oci};
use bedplate_store::Store;
use bedplate_transport::Recipe;

const RELEASE: &str = "6.1.0-1-cloud-amd64";

/// Writes a root directory of Debian's shape; its kernel has everything built in.
fn root(directory: &Path) {
    let put = |path: &str, text: &str| {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put(&format!("boot/vmlinuz-{RELEASE}"), &"kernel ".repeat(1000));
    put(&format!("boot/initrd.img-{RELEASE}"), "of the distribution");
    let modules = format!("usr/lib/modules/{RELEASE}");
    put(
        &format!("{modules}/modules.builtin"),
        "kernel/fs/ext4/ext4.ko\nkernel/fs/erofs/erofs.ko\nkernel/fs/overlayfs/overlay.ko\n",
    );
    for list in [
        "modules.dep",
        "modules.softdep",
        "modules.alias",
        "modules.builtin.modinfo",
    ] {
        put(&format!("{modules}/{list}"), "");
    }
    put("usr/lib/systemd/systemd", "#!init");
    put(
        "usr/lib/systemd/system/systemd-bless-boot.service",
        "[Unit]",
    );
    put(layout::SYSTEMD_BOOT, &"loader ".repeat(100));
    put(
        "usr/lib/os-release",
        "PRETTY_NAME=\"Test OS\"\nVERSION_ID=12\n",
    );
    put("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
    put("etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    put("var/lib/dpkg/status", &"Package: x\n".repeat(20));
    put("root/.profile", "umask 022\n");
    put("tmp/left-over", "x");
    symlink("usr/lib", directory.join("lib")).unwrap();
}

fn options() -> BuildOptions {
    BuildOptions {
        program: b"the program ".repeat(100),
        init: b"early boot ".repeat(100),
        labels: BTreeMap::from([("team".to_owned(), "os".to_owned())]),
        kargs: vec!["console=ttyS0".to_owned()],
        fatal_warnings: false,
        hostname: None,
        lints_off: Vec::new(),
        compression: Recipe::default(),
        now: 1_700_000_000,
    }
}

/// Notes what it hears.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl BuildObserver for Notes {
    fn on(&self, event: BuildEvent<'_>) {
        let note = match event {
            BuildEvent::Taken { .. } => return,
            BuildEvent::Found(finding) => finding.lint.to_owned(),
            BuildEvent::Kernel { release } => release.to_owned(),
            BuildEvent::Initramfs { .. } => "initramfs".to_owned(),
            BuildEvent::Packaging => "packaging".to_owned(),
        };
        self.0.lock().unwrap().push(note);
    }
}

#[test]
fn a_root_directory_becomes_an_image_that_has_what_a_machine_needs() {
    let directory = tempfile::tempdir().unwrap();
    let rootfs = directory.path().join("root");
    root(&rootfs);
    let store = Store::create(&directory.path().join("store")).unwrap();
    let name: ImageName = "os:v1".parse().unwrap();
    let notes = Notes::default();
    let built = build(&store, &rootfs, &name, &options(), &notes).unwrap();
    assert_eq!(
        notes.0.into_inner().unwrap(),
        ["nonempty-run-tmp", RELEASE, "initramfs", "packaging"]
    );
    assert_eq!(built.kernel, RELEASE);

    let target = store.resolve(&name).unwrap().unwrap();
    assert_eq!(target.root, built.root);
    assert_eq!(target.manifest, Some(built.manifest));
    let config: oci::Config = serde_json::from_slice(&store.blob(&built.config).unwrap()).unwrap();
    let label = |name: &str| config.config.labels.get(name).map(String::as_str);
    assert_eq!(label(oci::LABEL_BOOTC), Some("1"));
    assert_eq!(label(oci::LABEL_VERSION), Some("12"));
    assert_eq!(label("team"), Some("os"));

    let tree = store.tree(&built.root).unwrap();
    for path in [
        format!("{}/{RELEASE}/vmlinuz", layout::MODULES),
        format!("{}/{RELEASE}/initramfs.img", layout::MODULES),
        "usr/lib/bedplate/kargs.d/50-build.toml".to_owned(),
        "usr/lib/sysimage/dpkg/status".to_owned(),
        "var/roothome/.profile".to_owned(),
        layout::PROGRAM.to_owned(),
        layout::INIT.to_owned(),
    ] {
        let found = tree.lookup(&TreePath::try_from(path.as_str()).unwrap());
        assert!(found.is_some(), "{path}");
    }
    let findings = lint(&tree, Subject::Image, &StoreFiles::new(&store), &[]);
    assert_eq!(findings, [], "an image that was built has no findings");
}

#[test]
fn the_same_directory_gives_the_same_manifest_in_another_store_and_at_another_time() {
    let directory = tempfile::tempdir().unwrap();
    let rootfs = directory.path().join("root");
    root(&rootfs);
    let name: ImageName = "os:v1".parse().unwrap();
    let manifest = |store: &str, now| {
        let store = Store::create(&directory.path().join(store)).unwrap();
        let options = BuildOptions { now, ..options() };
        build(&store, &rootfs, &name, &options, &())
            .unwrap()
            .manifest
    };
    assert_eq!(manifest("one", 1), manifest("two", 2));
}

#[test]
fn an_unfit_directory_is_refused_with_every_reason_and_no_name_is_set() {
    let directory = tempfile::tempdir().unwrap();
    let rootfs = directory.path().join("root");
    root(&rootfs);
    fs::remove_file(rootfs.join(layout::SYSTEMD_BOOT)).unwrap();
    fs::remove_file(rootfs.join("usr/lib/systemd/systemd")).unwrap();
    let store = Store::create(&directory.path().join("store")).unwrap();
    let name: ImageName = "os:v1".parse().unwrap();
    let error = build(&store, &rootfs, &name, &options(), &()).unwrap_err();
    let BuildError::Unfit { findings, .. } = &error else {
        panic!("{error}");
    };
    let lints: Vec<&str> = findings.iter().map(|finding| finding.lint).collect();
    assert_eq!(lints, ["init", "boot-loader", "nonempty-run-tmp"]);
    assert_eq!(store.resolve(&name).unwrap(), None);

    let strict = BuildOptions {
        fatal_warnings: true,
        lints_off: vec!["init".to_owned(), "boot-loader".to_owned()],
        ..options()
    };
    let error = build(&store, &rootfs, &name, &strict, &()).unwrap_err();
    assert!(error.to_string().contains("/tmp/left-over"), "{error}");
}
