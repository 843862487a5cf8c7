//! Trees in the store: commit, checkout, import, export, digest, tag, images, ls, cat, diff, gc, fsck.

use std::process::Command;

use crate::sandbox::{Sandbox, listing};

#[test]
fn an_export_into_a_pipe_leaves_the_pipe_there() {
    use std::os::unix::fs::FileTypeExt as _;
    let sandbox = Sandbox::new();
    let tree = sandbox.path("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), "x").unwrap();
    sandbox.good("commit tree os:v1");
    let pipe = sandbox.path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).unwrap()
    });
    sandbox.good("export os:v1 -o pipe");
    assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
    assert!(reader.join().unwrap().len() >= 1024);
}

#[test]
fn a_commit_prints_the_digest_that_digest_prints() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    let digest = sandbox.good("digest tree");
    assert!(digest.starts_with("exact-1/v1-sha256-12:"), "{digest}");
    assert_eq!(sandbox.good("commit tree os:v1"), digest);
    assert_eq!(sandbox.json("inspect --json os:v1")["root_digest"], digest);
    assert!(sandbox.json("inspect --json os:v1")["manifest_digest"].is_null());
}

#[test]
fn broken_hard_links_give_the_bare_digest_of_mkcomposefs() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    let bare = sandbox.good("digest --break-hardlinks tree");
    assert_eq!(bare.len(), 64);
    assert!(
        !sandbox.good("digest tree").ends_with(&bare),
        "the tree has a hard link"
    );
    assert_ne!(
        sandbox.good("digest --break-hardlinks --format-version 0 tree"),
        bare
    );
}

#[test]
fn a_checkout_is_the_committed_directory() {
    let sandbox = Sandbox::new();
    let tree = sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    sandbox.good("checkout os:v1 copy");
    assert_eq!(listing(&sandbox.path("copy")), listing(&tree));
    assert_eq!(sandbox.good("digest copy"), sandbox.good("digest tree"));
    let again = sandbox.run("checkout os:v1 copy");
    assert_eq!(again.code, 2, "{}", again.stderr);
}

#[test]
fn an_export_imports_as_the_same_image() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    let digest = sandbox.good("commit tree os:v1");
    sandbox.good("export os:v1 -o os.tar");
    assert_eq!(sandbox.good("import os.tar os:v2"), digest);
    Command::new("gzip")
        .arg(sandbox.path("os.tar"))
        .status()
        .unwrap();
    assert_eq!(sandbox.good("import os.tar.gz os:v3"), digest);
}

#[test]
fn names_come_and_go_and_gc_takes_what_nothing_names() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    sandbox.good("tag os:v1 os:stable team/os:v1");
    let names: Vec<String> = sandbox
        .json("images --json")
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        names,
        [
            "localhost/os:stable",
            "localhost/os:v1",
            "localhost/team/os:v1"
        ]
    );
    sandbox.good("untag os:v1 os:stable");
    assert_eq!(sandbox.json("gc --json")["removed"], 0);
    sandbox.good("untag team/os:v1");
    let would = sandbox.json("gc --dry-run --json");
    assert_eq!(sandbox.json("gc --json")["removed"], would["removed"]);
    assert_eq!(would["removed"], 2, "one object and one image");
    assert_eq!(sandbox.json("fsck --json")["items"], 0);
}

#[test]
fn an_image_is_looked_at_without_a_mount() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    assert_eq!(sandbox.good("ls os:v1"), "bin\netc\nusr");
    assert_eq!(sandbox.good("ls os:v1 usr/bin"), "alias\ntool");
    assert!(sandbox.good("ls -l os:v1 /").contains(" bin -> usr/bin"));
    assert_eq!(
        sandbox.good("ls os:v1 /bin"),
        "alias\ntool",
        "links are followed"
    );
    assert_eq!(sandbox.good("cat os:v1 /etc/motd"), "welcome");
    assert_eq!(sandbox.good("cat os:v1 usr/bin/tool").len(), 100_000);
}

#[test]
fn an_image_is_found_by_its_digest() {
    let sandbox = Sandbox::new();
    let tree = sandbox.tree("tree");
    let root = sandbox.good("commit tree os:v1");
    let (kind, hex) = root.split_once(':').unwrap();
    let shortened = format!("{kind}:{}", &hex[..10]);
    for digest in [&root, hex, &hex[..12], &shortened] {
        assert_eq!(sandbox.good(&format!("cat {digest} etc/motd")), "welcome");
        assert_eq!(sandbox.good(&format!("ls {digest}")), "bin\netc\nusr");
        let image = sandbox.json(&format!("inspect --json {digest}"));
        assert_eq!(image["root_digest"], root);
        assert_eq!(image["name"], "localhost/os:v1");
        sandbox.good(&format!("log {digest}"));
        assert_eq!(
            sandbox.json(&format!("diff --json {digest} os:v1"))["paths_changed"],
            0
        );
    }
    sandbox.good(&format!("checkout {root} copy"));
    assert_eq!(listing(&sandbox.path("copy")), listing(&tree));
    sandbox.good(&format!("export {hex} -o os.tar"));

    // A name goes before digits, and the digest of an image needs no name.
    sandbox.good(&format!("tag os:v1 {}", &hex[..12]));
    sandbox.good("untag os:v1");
    sandbox.good(&format!("untag {}", &hex[..12]));
    assert_eq!(sandbox.run(&format!("ls {}", &hex[..12])).code, 2);
    assert!(sandbox.json(&format!("inspect --json {root}"))["name"].is_null());
    assert_eq!(
        sandbox.run(&format!("push {root} 127.0.0.1:1/os:v1")).code,
        2
    );
    sandbox.good(&format!("tag {root} os:again"));
    sandbox.good("gc");
    assert_eq!(sandbox.good("cat os:again etc/motd"), "welcome");
    let run = sandbox.run(&format!("tag os:again {root}"));
    assert_eq!(run.code, 2, "a digest is no name: {}", run.stderr);
}

#[test]
fn a_listing_for_programs_has_every_attribute() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    let all = sandbox.json("ls -R --json os:v1");
    let find = |path: &str| {
        let mut entries = all.as_array().unwrap().iter();
        entries.find(|entry| entry["path"] == path).unwrap().clone()
    };
    let tool = find("usr/bin/tool");
    assert_eq!(tool["type"], "file");
    assert_eq!(tool["mode"], "0644");
    assert_eq!(
        (&tool["size"], &tool["links"]),
        (&100_000.into(), &2.into())
    );
    assert_eq!(tool["object"].as_str().unwrap().len(), 64);
    assert!(tool["mtime"]["seconds"].as_i64().unwrap() > 0);
    assert!(find("etc/motd")["object"].is_null(), "it lies in the image");
    assert_eq!(find("bin")["target"], "usr/bin");
    assert_eq!(sandbox.json("ls --json os:v1 etc")[1]["path"], "motd");
}

#[test]
fn an_export_replaces_a_file_takes_a_dash_for_standard_output_and_leaves_out_sockets() {
    let sandbox = Sandbox::new();
    let tree = sandbox.tree("tree");
    std::fs::write(tree.join(".wh.motd"), "no whiteout\n").unwrap();
    let _listening = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    sandbox.good("commit tree os:v1");
    std::fs::write(sandbox.path("os.tar"), "something else").unwrap();
    let run = sandbox.run("export os:v1 -o os.tar");
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(
        run.stderr,
        "note: /socket is a socket, which a tar cannot hold; left out\n"
    );
    let output = sandbox
        .command()
        .args(["export", "os:v1", "-o", "-"])
        .output();
    let stream = output.unwrap().stdout;
    assert!(stream == std::fs::read(sandbox.path("os.tar")).unwrap());
    assert!(!sandbox.path("-").exists());

    sandbox.good("import os.tar os:again");
    assert_eq!(sandbox.good("cat os:again .wh.motd"), "no whiteout");
    let text = sandbox.good("diff --files os:v1 os:again");
    assert!(text.contains("- /socket"), "{text}");
    assert!(
        text.contains("Paths:    0 added, 1 removed, 0 changed"),
        "{text}"
    );
}

#[test]
fn a_checkout_says_which_times_the_file_system_has_no_room_for() {
    use std::os::unix::fs::MetadataExt as _;
    const YEAR_3000: i64 = 32_503_680_000;
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    let packed = Command::new("tar")
        .args(["-C", "tree", "-cf", "os.tar", "--format=pax"])
        .args([&format!("--mtime=@{YEAR_3000}"), "etc"])
        .current_dir(sandbox.path("."))
        .status();
    assert!(packed.unwrap().success());
    sandbox.good("import os.tar os:v1");
    let run = sandbox.run("checkout os:v1 copy");
    assert_eq!(run.code, 0, "{}", run.stderr);
    let found = std::fs::metadata(sandbox.path("copy/etc/motd"))
        .unwrap()
        .mtime();
    if found == YEAR_3000 {
        assert_eq!(run.stderr, "");
    } else {
        assert!(
            run.stderr
                .contains("note: the file system has no room for the times of 3 files; "),
            "{}",
            run.stderr
        );
        assert!(
            run.stderr.contains("instead of 3000-01-01T00:00:00Z"),
            "{}",
            run.stderr
        );
    }
}

#[test]
fn lists_say_when_a_name_was_set_as_other_tools_do() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    for line in ["images", "log os:v1"] {
        let text = sandbox.good(line);
        let heading = text.lines().next().unwrap();
        assert!(heading.contains(" CREATED "), "{line}: {heading}");
    }
    let images = sandbox.json("images --json");
    let log = sandbox.json("log --json os:v1");
    assert_eq!(images[0]["created"], log["images"][0]["created"]);
    assert!(images[0]["created"].as_i64().unwrap() > 1_700_000_000);
    assert!(images[0]["size"].as_u64().unwrap() > 100_000);
}

#[test]
fn a_diff_can_leave_out_what_was_only_touched() {
    let sandbox = Sandbox::new();
    let tree = sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    for path in ["usr/bin/tool", "etc"] {
        let file = std::fs::File::open(tree.join(path)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    let text = sandbox.good("diff --files os:v1 ./tree");
    assert!(text.contains("~ /etc (time)"), "{text}");
    let text = sandbox.good("diff --files --ignore-times os:v1 ./tree");
    assert!(
        text.ends_with("Paths:    0 added, 0 removed, 0 changed"),
        "{text}"
    );
}

#[test]
fn a_diff_shows_packages_first_and_paths_when_asked() {
    let sandbox = Sandbox::new();
    let tree = sandbox.tree("tree");
    let status = |version: &str| {
        format!(
            "Package: hello\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\nDescription: a program that greets the whole world\n\n"
        )
    };
    let database = tree.join("var/lib/dpkg");
    std::fs::create_dir_all(&database).unwrap();
    std::fs::write(database.join("status"), status("1.0-1")).unwrap();
    sandbox.good("commit tree os:v1");
    std::fs::write(database.join("status"), status("1.0-2")).unwrap();
    std::fs::write(tree.join("etc/new"), "new").unwrap();
    sandbox.good("commit tree os:v2");

    let text = sandbox.good("diff os:v1 os:v2");
    assert!(
        text.starts_with("Packages: 1 changed, 0 added, 0 removed\n  ~ hello 1.0-1 → 1.0-2\n"),
        "{text}"
    );
    assert!(!text.contains("/etc/new"));
    let text = sandbox.good("diff --files os:v1 os:v2");
    assert!(text.contains("+ /etc/new"), "{text}");
    assert!(
        text.contains("~ /var/lib/dpkg/status (content, time)"),
        "{text}"
    );
    // A directory is compared as well as an image.
    assert_eq!(
        sandbox.json("diff --json os:v1 ./tree")["packages"],
        sandbox.json("diff --json os:v1 os:v2")["packages"]
    );
}

#[test]
fn a_journal_that_cannot_be_read_is_set_aside_by_a_repair() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:1");
    sandbox.good("tag os:1 os:2 os:3");
    std::fs::write(sandbox.path("store/journal"), "garbage").unwrap();
    assert_eq!(sandbox.run("images").code, 5);
    let repair = sandbox.good("fsck --repair");
    assert!(repair.contains("journal.damaged"), "{repair}");
    assert_eq!(sandbox.json("images --json").as_array().unwrap().len(), 3);
    sandbox.good("tag os:1 os:4 os:5");
    sandbox.good("fsck");
}

#[test]
fn the_index_is_made_anew_and_says_how_much_it_knows() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree app:1");
    let fsck = sandbox.json("fsck --rebuild-index --json");
    assert!(fsck["indexed"].as_u64().unwrap() > 0, "{fsck}");
    assert_eq!(fsck["findings"].as_array().unwrap().len(), 0);
    assert!(sandbox.path("store").join("index/sha256").exists());
}

#[test]
fn fsck_names_a_damaged_object_and_cat_does_not_print_it() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    let objects = sandbox.path("store/objects");
    let object = walk(&objects).pop().unwrap();
    let mut bytes = std::fs::read(&object).unwrap();
    bytes[50_000] ^= 1;
    std::fs::remove_file(&object).unwrap();
    std::fs::write(&object, bytes).unwrap();
    let fsck = sandbox.run("fsck");
    assert_eq!(fsck.code, 5);
    assert!(fsck.stdout.contains("is damaged"), "{}", fsck.stdout);
    let cat = sandbox.run("cat os:v1 /usr/bin/tool");
    assert_eq!(cat.code, 5, "{}", cat.stderr);
    assert!(
        cat.stderr.contains("hint: `bedplate fsck`"),
        "{}",
        cat.stderr
    );
}

#[test]
fn a_mounted_image_is_the_committed_directory_and_gc_leaves_it_alone() {
    if !rustix::process::geteuid().is_root() {
        println!("not root: nothing can be mounted");
        return;
    }
    let sandbox = Sandbox::new();
    let tree = sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    std::fs::create_dir(sandbox.path("at")).unwrap();
    sandbox.good("mount os:v1 at");
    assert_eq!(listing(&sandbox.path("at")), listing(&tree));
    let contents = std::fs::read(sandbox.path("at/usr/bin/tool")).unwrap();
    assert_eq!(contents, vec![b'x'; 100_000]);
    assert!(
        std::fs::write(sandbox.path("at/new"), "").is_err(),
        "it is read-only"
    );
    let again = sandbox.run("mount os:v1 at");
    assert_eq!(again.code, 2, "mounts do not pile up");
    assert!(
        again.stderr.contains("hint: `bedplate umount`"),
        "{}",
        again.stderr
    );
    sandbox.good("untag os:v1");
    assert_eq!(
        sandbox.json("gc --json")["removed"],
        0,
        "the mount holds its image"
    );
    sandbox.good("umount at");
    let run = sandbox.run("umount at");
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(
        run.stderr.contains("nothing is mounted there"),
        "{}",
        run.stderr
    );
    assert_eq!(sandbox.json("gc --json")["removed"], 2);

    let at = sandbox.path("at");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "other"])
        .arg(&at)
        .status();
    assert!(mounted.unwrap().success());
    let run = sandbox.run("umount at");
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(
        run.stderr.contains("no image of bedplate's"),
        "{}",
        run.stderr
    );
    assert!(Command::new("umount").arg(&at).status().unwrap().success());

    sandbox.good("commit tree os:v2");
    let images = std::fs::read_dir(sandbox.path("store/images")).unwrap();
    let image = images.map(|entry| entry.unwrap().path()).next().unwrap();
    let mut bytes = std::fs::read(&image).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::remove_file(&image).unwrap();
    std::fs::write(&image, bytes).unwrap();
    let run = sandbox.run("mount os:v2 at");
    assert_eq!(run.code, 5, "a damaged image is not shown: {}", run.stderr);
}

#[test]
fn the_pin_of_a_mount_that_somebody_else_took_off_is_given_up() {
    if !rustix::process::geteuid().is_root() {
        println!("not root: nothing can be mounted");
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    std::fs::create_dir(sandbox.path("at")).unwrap();
    std::fs::write(sandbox.path("file"), "").unwrap();
    let run = sandbox.run("mount os:v1 file");
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(run.stderr.contains("is no directory"), "{}", run.stderr);
    let pins = || walk(&sandbox.path("store/pins"));
    let taken_off = || {
        let at = sandbox.path("at");
        assert!(Command::new("umount").arg(&at).status().unwrap().success());
    };

    sandbox.good("mount os:v1 at");
    assert_eq!(
        sandbox.json("gc --json")["given_up_mounts"],
        serde_json::json!([]),
        "it is there"
    );
    taken_off();
    let run = sandbox.run("umount at");
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("no longer held"), "{}", run.stderr);
    assert!(pins().is_empty());

    // Another boot: whatever is mounted now is another mount.
    sandbox.good("mount os:v1 at");
    taken_off();
    let pin = pins().pop().unwrap();
    let text = std::fs::read_to_string(&pin).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(text.contains(boot.trim()), "{text}");
    std::fs::write(&pin, text.replace(boot.trim(), "another")).unwrap();
    sandbox.good("untag os:v1");
    let plan = sandbox.json("gc --dry-run --json");
    assert_eq!(
        (
            &plan["removed"],
            plan["given_up_mounts"].as_array().unwrap().len()
        ),
        (&2.into(), 1)
    );
    assert_eq!(pins().len(), 1, "a dry run changes nothing");
    let gc = sandbox.json("gc --json");
    assert_eq!(gc["removed"], 2, "{gc}");
    assert!(pins().is_empty());

    // A pin that cannot be read is named, with what to do.
    sandbox.good("commit tree os:v1");
    std::fs::write(&pin, "garbage").unwrap();
    let gc = sandbox.run("gc");
    assert_eq!(gc.code, 5, "{}", gc.stderr);
    assert!(
        gc.stderr.contains("once what it was for is gone"),
        "{}",
        gc.stderr
    );
}

#[test]
fn a_ref_that_cannot_be_read_is_damage_and_keeps_gc_from_collecting() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    let name = walk(&sandbox.path("store/refs")).pop().unwrap();
    let kept = sandbox.path("kept");
    std::fs::copy(&name, &kept).unwrap();
    std::fs::remove_file(&name).unwrap();
    std::os::unix::fs::symlink("/nonexistent", &name).unwrap();
    assert_eq!(sandbox.run("fsck").code, 5);
    let gc = sandbox.run("gc");
    assert_ne!(gc.code, 0, "{}", gc.stdout);
    std::fs::remove_file(&name).unwrap();
    std::fs::copy(&kept, &name).unwrap();
    assert_eq!(sandbox.good("cat os:v1 /etc/motd"), "welcome");
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(directory)
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

#[test]
fn a_name_keeps_its_earlier_images_until_gc_is_told_to_forget_them() {
    let sandbox = Sandbox::new();
    let tree = sandbox.tree("tree");
    let mut roots = Vec::new();
    for number in 0..3 {
        std::fs::write(tree.join("etc/version"), format!("{number}").repeat(100)).unwrap();
        roots.push(sandbox.good("commit tree os:v1"));
    }
    let log = sandbox.json("log --json os:v1");
    let images = log["images"].as_array().unwrap();
    assert_eq!(images.len(), 3);
    assert_eq!(images[2]["revision"], "localhost/os:v1~2");
    assert_eq!(images[2]["root_digest"], roots[0]);
    assert_eq!(images[0]["new_bytes"], 100);
    assert_eq!(sandbox.good("cat os:v1~2 etc/version"), "0".repeat(100));
    let diff = sandbox.json("diff --json os:v1~1 os:v1");
    assert_eq!(diff["paths_changed"], 1);
    // Going back is giving the name to an earlier image.
    sandbox.good("tag os:v1~1 os:v1");
    assert_eq!(
        sandbox.json("inspect --json os:v1")["root_digest"],
        roots[1]
    );
    let plan = sandbox.json("gc --json --dry-run --keep 2");
    assert_eq!(plan["forgotten"].as_array().unwrap().len(), 2);
    assert_eq!(plan["images"].as_array().unwrap().len(), 1, "{plan}");
    assert_eq!(sandbox.json("gc --json --keep 2")["removed"], 2);
    let beyond = sandbox.run("cat os:v1~2 etc/version");
    assert_eq!(beyond.code, 2, "{}", beyond.stderr);
    let df = sandbox.json("df --json");
    assert_eq!(df["images"].as_array().unwrap().len(), 2);
    assert_eq!(df["store"]["objects"], 3);
    assert!(sandbox.good("gc --dry-run --keep 1").contains("BECAUSE"));
}

#[test]
fn what_changed_in_small_files_counts() {
    let sandbox = Sandbox::new();
    let tree = sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    std::fs::write(tree.join("etc/motd"), "another welcome").unwrap();
    sandbox.good("commit tree os:v1");
    let new = "another welcome".len();
    assert_eq!(sandbox.json("diff --json os:v1~1 os:v1")["new_bytes"], new);
    assert_eq!(
        sandbox.json("log --json os:v1")["images"][0]["new_bytes"],
        new
    );
}

#[test]
fn quiet_images_are_names_alone() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    sandbox.good("tag os:v1 os:v2");
    assert_eq!(
        sandbox.good("images -q"),
        "localhost/os:v1\nlocalhost/os:v2"
    );
}

#[test]
fn what_cannot_be_meant_is_said_with_what_helps() {
    let sandbox = Sandbox::new();
    sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    sandbox.good("commit tree os:v1");
    let archive = sandbox.path("archive");
    std::fs::create_dir(&archive).unwrap();
    std::fs::write(archive.join("manifest.json"), "[]").unwrap();
    std::fs::create_dir(sandbox.path("abcdef")).unwrap();
    let packed = Command::new("tar")
        .args(["-C", "archive", "-cf", "archive.tar", "manifest.json"])
        .current_dir(sandbox.path("."))
        .status();
    assert!(packed.unwrap().success());
    std::fs::write(sandbox.path("tree/etc/motd"), "other").unwrap();
    sandbox.good("commit tree os:v1");
    for (line, words) in [
        ("import archive.tar os:v2", "docker-archive"),
        (
            "push os:v1~1 localhost:1/os:v1",
            "bedplate tag localhost/os:v1~1 NAME",
        ),
        ("gc --keep 0", "always keeps its current image"),
        ("diff os:v1 abcdef", "./abcdef"),
        ("ls 0123456789ab", "digest begins with 0123456789ab"),
    ] {
        let ended = sandbox.run(line);
        assert_eq!(ended.code, 2, "{line}: {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{line}: {}", ended.stderr);
    }
}

#[test]
fn a_side_without_packages_is_named() {
    let sandbox = Sandbox::new();
    let tree = sandbox.tree("tree");
    sandbox.good("commit tree os:v1");
    assert!(
        sandbox
            .good("diff os:v1 ./tree")
            .contains("neither has a package database")
    );
    // As images without a dpkg of their own describe their packages.
    let parts = tree.join("var/lib/dpkg/status.d");
    std::fs::create_dir_all(&parts).unwrap();
    std::fs::write(parts.join("tzdata"), "Package: tzdata\nVersion: 2024a\n").unwrap();
    std::fs::write(parts.join("tzdata.md5sums"), "00  usr/share/zoneinfo/UTC\n").unwrap();
    assert!(
        sandbox
            .good("diff os:v1 ./tree")
            .contains("the first has no package database")
    );
    sandbox.good("commit tree os:v2");
    std::fs::write(parts.join("tzdata"), "Package: tzdata\nVersion: 2024b\n").unwrap();
    assert!(
        sandbox
            .good("diff os:v2 ./tree")
            .contains("~ tzdata 2024a → 2024b")
    );
}
