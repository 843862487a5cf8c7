//! What fsck says of what it finds: what it is, who needs it, and where.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sandbox::Sandbox;

/// Replaces a file of a store, which nobody may write to.
fn overwrite(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// The file of the store that has these bytes.
fn file_with(directory: &Path, bytes: &[u8]) -> PathBuf {
    let entries = fs::read_dir(directory).unwrap();
    let mut below = entries.flat_map(|entry| fs::read_dir(entry.unwrap().path()).unwrap());
    below
        .find_map(|entry| {
            let path = entry.unwrap().path();
            (fs::read(&path).unwrap() == bytes).then_some(path)
        })
        .unwrap()
}

#[test]
fn a_finding_names_the_images_that_need_it_and_where() {
    let sandbox = Sandbox::new();
    let tree = sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    fs::write(tree.join("etc/motd"), "another\n").unwrap();
    sandbox.good("commit tree os:v1");
    sandbox.good("tag os:v1 os:kept");
    fs::remove_file(tree.join("usr/bin/alias")).unwrap();
    sandbox.good("commit tree os:v2");
    let whole = sandbox.json("fsck --json");
    assert_eq!(whole["findings"], serde_json::json!([]));

    let object = file_with(&sandbox.path("store/objects"), &[b'x'; 100_000]);
    overwrite(&object, &[b'y'; 100_000]);
    let fsck = sandbox.run("fsck --json");
    assert_eq!(fsck.code, 5);
    let report: serde_json::Value = serde_json::from_str(&fsck.stdout).unwrap();
    let finding = &report["findings"][0];
    assert_eq!(finding["kind"], "damaged");
    let message = finding["message"].as_str().unwrap();
    assert!(
        message.starts_with(finding["item"].as_str().unwrap()),
        "{finding}"
    );
    let needed: Vec<(String, &str, u64)> = finding["needed_by"]
        .as_array()
        .unwrap()
        .iter()
        .map(|need| {
            assert!(need["by"].as_str().unwrap().starts_with("image "), "{need}");
            let names = need["names"].as_array().unwrap().iter();
            let names: Vec<&str> = names.map(|name| name.as_str().unwrap()).collect();
            let path = need["path"].as_str().unwrap();
            (names.join(" "), path, need["paths"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(
        needed,
        [
            (
                "localhost/os:kept localhost/os:v1".to_owned(),
                "/usr/bin/alias",
                2
            ),
            ("localhost/os:v1~1".to_owned(), "/usr/bin/alias", 2),
            ("localhost/os:v2".to_owned(), "/usr/bin/tool", 1),
        ]
    );
    let text = sandbox.run("fsck").stdout;
    for line in [
        "  needed by localhost/os:kept, localhost/os:v1: /usr/bin/alias and 1 more path\n",
        "  needed by localhost/os:v2: /usr/bin/tool\n",
    ] {
        assert!(text.contains(line), "{text}");
    }

    // The same of what is gone, also where only names are looked at.
    fs::remove_file(&object).unwrap();
    for line in ["fsck --json", "fsck --quick --json"] {
        let report: serde_json::Value = serde_json::from_str(&sandbox.run(line).stdout).unwrap();
        for finding in report["findings"].as_array().unwrap() {
            assert_eq!(finding["kind"], "missing");
            assert_eq!(finding["needed_by"].as_array().unwrap().len(), 3);
        }
    }
}

#[test]
fn an_image_that_is_damaged_is_known_by_its_names() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    let image = fs::read_dir(sandbox.path("store/images")).unwrap();
    let image = image.map(|entry| entry.unwrap().path()).next().unwrap();
    let bytes = fs::read(&image).unwrap();
    overwrite(&image, &bytes[..bytes.len() / 2]);
    let text = sandbox.run("fsck").stdout;
    assert!(text.contains("  needed by localhost/os:v1\n"), "{text}");

    // What nothing names is garbage, and says so.
    sandbox.good("untag os:v1");
    let fsck = sandbox.run("fsck --json");
    let report: serde_json::Value = serde_json::from_str(&fsck.stdout).unwrap();
    assert_eq!(report["findings"][0]["needed_by"], serde_json::json!([]));
}

#[test]
fn a_name_that_cannot_be_read_is_set_aside_by_a_repair_and_given_again() {
    let sandbox = Sandbox::new();
    let tree = sandbox.tree("tree");
    let root = sandbox.good("commit tree os:v1");
    fs::write(tree.join("etc/motd"), "another\n").unwrap();
    sandbox.good("commit tree os:v2");
    let path = sandbox.path("store/refs/localhost%2Fos%3Av1");
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for (copy, bad) in [flipped, Vec::new(), b"garbage".to_vec()]
        .iter()
        .enumerate()
    {
        overwrite(&path, bad);
        let images = sandbox.run("images --json");
        assert_eq!(images.code, 5, "{}", images.stderr);
        let listed: serde_json::Value = serde_json::from_str(&images.stdout).unwrap();
        assert_eq!(listed.as_array().unwrap().len(), 1);
        assert_eq!(listed[0]["name"], "localhost/os:v2");
        assert!(
            images.stderr.contains("localhost%2Fos%3Av1"),
            "{}",
            images.stderr
        );
        let gc = sandbox.run("gc");
        assert_eq!(gc.code, 5);
        for text in [&images.stderr, &gc.stderr] {
            assert!(text.contains("hint: `bedplate fsck --repair`"), "{text}");
        }

        let repair = sandbox.run("fsck --repair");
        assert_eq!(repair.code, 5, "a name is lost: {}", repair.stdout);
        let repair = repair.stdout;
        assert!(
            repair.contains("the file of localhost/os:v1 could not be read"),
            "{repair}"
        );
        let image = root.trim().rsplit(':').next().unwrap();
        assert!(
            repair.contains(image),
            "the image that is without a name: {repair}"
        );
        assert!(!repair.contains("all is well"), "{repair}");
        // Where nothing of it can be read, the image that lost its name is the only one without.
        let line = format!("bedplate tag {} localhost/os:v1", root.trim());
        assert!(repair.contains(&line), "{repair}");
        let aside = match copy {
            0 => "store/damaged/localhost%2Fos%3Av1".to_owned(),
            copy => format!("store/damaged/localhost%2Fos%3Av1~{}", copy + 1),
        };
        assert_eq!(
            fs::read(sandbox.path(&aside)).unwrap(),
            *bad,
            "no byte is lost"
        );
        let fsck = sandbox.run("fsck --json");
        assert_eq!(fsck.code, 5, "as long as the name is lost");
        let report: serde_json::Value = serde_json::from_str(&fsck.stdout).unwrap();
        assert_eq!(report["findings"][0]["kind"], "name");
        assert_eq!(report["lost_names"][0]["name"], "localhost/os:v1");
        assert_eq!(report["lost_names"][0]["root_digest"], root.trim());
        // No image goes meanwhile.
        let gc = sandbox.json("gc --keep 1 --json");
        assert_eq!(gc["kept_unnamed"], 1);
        assert_eq!(gc["images"], serde_json::json!([]));
        let gc = sandbox.good("gc");
        assert!(gc.contains("fsck --repair"), "{gc}");
        sandbox.good(&format!("tag {} os:v1", root.trim()));
        sandbox.good("fsck");
        sandbox.good("gc");
        assert_eq!(sandbox.json("images --json").as_array().unwrap().len(), 2);
    }
    assert!(
        sandbox
            .good("gc")
            .contains("there is such a name again; bedplate fsck --repair forgets the file")
    );
    sandbox.good("fsck --repair");
    let left = fs::read_dir(sandbox.path("store/damaged")).unwrap();
    assert_eq!(left.count(), 0, "what is named again is forgotten");
    sandbox.good("untag os:v1");
    sandbox.good("gc");
    assert_eq!(sandbox.run(&format!("ls {}", root.trim())).code, 2);
}

#[test]
fn a_lost_name_comes_back_from_a_store_that_has_it() {
    let sandbox = Sandbox::new();
    let tree = sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    fs::write(tree.join("etc/motd"), "another\n").unwrap();
    let root = sandbox.good("commit tree os:v1");
    let copy = |to: &str| {
        let status = std::process::Command::new("cp")
            .args(["-a", "store", to])
            .current_dir(sandbox.path("."))
            .status();
        assert!(status.unwrap().success());
    };
    copy("backup");
    let log = sandbox.good("log os:v1 --json");
    let path = sandbox.path("store/refs/localhost%2Fos%3Av1");

    // The image is here.
    overwrite(&path, b"garbage");
    let repair = sandbox.good("fsck --repair --from backup");
    assert!(
        repair.contains("localhost/os:v1 is there again"),
        "{repair}"
    );
    assert!(repair.contains("all is well"), "{repair}");
    assert_eq!(sandbox.good("log os:v1 --json"), log);
    let left = fs::read_dir(sandbox.path("store/damaged")).unwrap();
    assert_eq!(left.count(), 0);
    sandbox.good("gc");
    sandbox.good("fsck");

    // It is not, and is fetched whole.
    sandbox.good("untag os:v1");
    sandbox.good("gc");
    fs::write(&path, b"garbage").unwrap();
    sandbox.good("fsck --repair --from backup");
    assert!(sandbox.good("images").contains("os:v1"));
    sandbox.good("gc");
    sandbox.good("fsck");
    sandbox.good("cat os:v1 /etc/motd");

    // Elsewhere it is something else by now: that is not what was lost.
    fs::write(tree.join("etc/motd"), "a third\n").unwrap();
    sandbox.good("commit tree os:v1");
    let newer = sandbox.good("log os:v1 --json");
    assert!(!newer.contains("garbage"));
    let mut flipped = fs::read(&path).unwrap();
    *flipped.last_mut().unwrap() ^= 1;
    overwrite(&path, &flipped);
    let repair = sandbox.run("fsck --repair --from backup");
    assert_eq!(repair.code, 5, "{}", repair.stdout);
    assert!(!repair.stdout.contains(&format!("tag {root}")));
}

#[test]
fn what_stands_among_the_names_and_is_none_is_set_aside_too() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    sandbox.good("tag os:v1 os:v2");
    let refs = sandbox.path("store/refs");
    fs::write(refs.join("notes.txt"), "x").unwrap();
    fs::create_dir(refs.join("directory")).unwrap();
    fs::write(refs.join("directory/file"), "x").unwrap();
    std::os::unix::fs::symlink("/nonexistent", refs.join("link")).unwrap();
    fs::copy(
        refs.join("localhost%2Fos%3Av2"),
        refs.join("localhost%2Fos%3Av3"),
    )
    .unwrap();
    let images = sandbox.run("images -q");
    assert_eq!(
        (images.code, &*images.stdout),
        (5, "localhost/os:v1\nlocalhost/os:v2\n")
    );
    for name in ["notes.txt", "directory", "link", "localhost%2Fos%3Av3"] {
        assert!(images.stderr.contains(name), "{name}: {}", images.stderr);
    }
    let repair = sandbox.run("fsck --repair --json");
    assert_eq!(repair.code, 5);
    let report: serde_json::Value = serde_json::from_str(&repair.stdout).unwrap();
    // What is called like no ref, and is none, was no name.
    let set_aside = report["repair"]["names_set_aside"].as_array().unwrap();
    assert_eq!(set_aside.len(), 1);
    assert_eq!(report["findings"].as_array().unwrap().len(), 1);
    assert_eq!(report["lost_names"][0]["name"], "localhost/os:v3");
    assert!(sandbox.path("store/damaged/directory/file").exists());
    sandbox.good("gc");
    assert_eq!(sandbox.json("images --json").as_array().unwrap().len(), 2);
}

#[test]
fn what_stands_in_the_place_of_a_file_of_the_store_is_damage() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    let images = fs::read_dir(sandbox.path("store/images")).unwrap();
    let image = images.map(|entry| entry.unwrap().path()).next().unwrap();
    let object = file_with(&sandbox.path("store/objects"), &vec![b'x'; 100_000]);
    let format = sandbox.path("store/format.json");
    for (path, line) in [
        (&image, "ls os:v1"),
        (&object, "cat os:v1 /usr/bin/tool"),
        (&format, "ls os:v1"),
    ] {
        let kept = sandbox.path("kept");
        rustix::fs::rename(path, &kept).unwrap();
        std::os::unix::fs::symlink(&kept, path).unwrap();
        let run = sandbox.run(line);
        assert_eq!(run.code, 5, "{line}, a link: {}", run.stderr);
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
        let run = sandbox.run(line);
        assert_eq!(run.code, 5, "{line}, a directory: {}", run.stderr);
        fs::remove_dir(path).unwrap();
        rustix::fs::rename(&kept, path).unwrap();
    }
    sandbox.good("fsck");
}
