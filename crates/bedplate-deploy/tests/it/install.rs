//! Installs to files, looked at with the tools of others.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use bedplate_deploy::install::{
    ExecuteError, Firmware, Identifiers, InstallOptions, InstallPlan, PlanError, TargetError,
};
use bedplate_model::{ImageName, RuleSet};
use bedplate_store::{RefTarget, Store, scan};
use uuid::Uuid;

/// The smallest ESP, so that tests write little.
const ESP: u64 = 40 << 20;

struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
    name: ImageName,
}

impl Fixture {
    /// Makes a store with one image that has what a boot needs, and some files besides.
    fn new() -> Self {
        Self::with(&[])
    }

    /// Makes one without some of its files.
    fn with(missing: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        let put = |path: &str, bytes: &[u8]| {
            if missing.iter().any(|name| path.ends_with(name)) {
                return;
            }
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        put("usr/lib/modules/6.1.0-1/vmlinuz", &vec![1; 300_000]);
        put("usr/lib/modules/6.1.0-1/initramfs.img", &vec![2; 500_000]);
        put(
            "usr/lib/systemd/boot/efi/systemd-bootx64.efi",
            &vec![3; 90_000],
        );
        for (name, bytes) in grub_files() {
            put(&format!("usr/lib/grub/i386-pc/{name}"), &bytes);
        }
        put(
            "usr/lib/os-release",
            b"PRETTY_NAME=\"Test OS 1\"\nVERSION_ID=1\n",
        );
        put(
            "usr/lib/bedplate/kargs.d/10.toml",
            b"kargs = [\"console=ttyS0\"]",
        );
        put("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n");
        for number in 0..50 {
            put(
                &format!("usr/share/doc/{number}"),
                &vec![number; 1000 * usize::from(number)],
            );
        }
        let store = Store::create(&directory.path().join("store")).unwrap();
        let name: ImageName = "registry.example:5000/os:v1".parse().unwrap();
        let transaction = store.begin().unwrap();
        let tree = scan(&root, &transaction, &()).unwrap();
        let image = transaction.put_image(&tree, RuleSet::Exact1).unwrap();
        let target = RefTarget::new(image, 0);
        transaction.set_ref(&name, target).unwrap();
        transaction.commit().unwrap();
        Self {
            directory,
            store,
            name,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn plan(&self, disk: &Path, options: &InstallOptions) -> Result<InstallPlan<'_>, PlanError> {
        InstallPlan::new(&self.store, &self.name.clone().into(), disk, options)
    }
}

/// Files that look like GRUB's where somebody looks.
fn grub_files() -> Vec<(String, Vec<u8>)> {
    let sector = |at: usize, bytes: &[u8]| {
        let mut sector = vec![0; 512];
        sector[at..at + bytes.len()].copy_from_slice(bytes);
        sector
    };
    let mut boot = sector(0x5c, b"\x01\0\0\0\0\0\0\0\xff\xfa\xeb");
    boot[510..].copy_from_slice(b"\x55\xaa");
    let mut kernel = sector(0, b"\x7fELF\x01\x01");
    let fields = [(16, 0x0003_0002), (28, 52), (42, 0x0001_0020)];
    let segment = [1, 256, 0x9000, 0x9000, 256];
    let segment = segment.into_iter().enumerate();
    for (at, value) in fields
        .into_iter()
        .chain(segment.map(|(field, value)| (52 + 4 * field, value)))
    {
        let value: u32 = value;
        kernel[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let modules = [
        "biosdisk",
        "part_gpt",
        "fat",
        "normal",
        "configfile",
        "loadenv",
        "regexp",
        "test",
        "linux",
        "boot",
        "minicmd",
        "keystatus",
        "reboot",
    ];
    let list = modules.map(|name| format!("{name}:\n")).concat();
    let fixed = [
        ("boot.img", boot),
        (
            "diskboot.img",
            sector(500, b"\x02\0\0\0\0\0\0\0\0\0\x20\x08"),
        ),
        ("lzma_decompress.img", vec![0; 2848]),
        ("kernel.img", kernel),
        ("moddep.lst", list.into_bytes()),
    ];
    let fixed = fixed.map(|(name, bytes)| (name.to_owned(), bytes));
    let modules = modules.map(|name| (format!("{name}.mod"), name.repeat(100).into_bytes()));
    fixed.into_iter().chain(modules).collect()
}

fn options() -> InstallOptions {
    InstallOptions {
        firmware: Firmware::Uefi,
        size: None,
        esp_size: Some(ESP),
        upgrade_from: None,
        kargs: vec!["quiet".into()],
        allow_unsealed: false,
        wipe: false,
        identifiers: Identifiers::from_seed(Uuid::from_u128(1)),
        now: 1_700_000_000,
        source_date: None,
    }
}

/// Runs a tool and returns what it printed; it must succeed.
fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .env("MTOOLS_SKIP_CHECK", "1")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Copies a region of a disk into a file of its own, for tools that know no offset.
fn part(disk: &Path, start_mib: u64, length: u64, to: &Path) {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut from = File::open(disk).unwrap();
    from.seek(SeekFrom::Start(start_mib << 20)).unwrap();
    let mut to = File::create(to).unwrap();
    std::io::copy(&mut from.take(length), &mut to).unwrap();
}

#[test]
fn a_file_becomes_a_disk_that_other_tools_find_sound() {
    let fixture = Fixture::new();
    let disk = fixture.path("disk.img");
    let plan = fixture.plan(&disk, &options()).unwrap();
    let shown = plan.to_string();
    for wanted in [
        "registry.example:5000/os:v1",
        "Test OS 1",
        "console=ttyS0 quiet",
        "EFI/BOOT/BOOTX64.EFI (90.0 kB)",
        "loader/loader.conf",
    ] {
        assert!(shown.contains(wanted), "{wanted} in\n{shown}");
    }
    assert!(!disk.exists(), "a plan changes nothing");
    // Without privileges, also where the test has some.
    let installed = plan.execute(false, &mut ()).unwrap();
    let size = fs::metadata(&disk).unwrap().len();
    assert_eq!(size, installed.size);
    let left: Vec<_> = fs::read_dir(fixture.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 3, "nothing stays behind: {left:?}");

    let said = tool("sgdisk", &["-v", disk.to_str().unwrap()]);
    assert!(said.contains("No problems found"), "{said}");
    let said = tool("sgdisk", &["-i", "2", disk.to_str().unwrap()]);
    assert!(
        said.contains("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"),
        "{said}"
    );
    assert!(said.contains("0800000000000000"), "the root grows: {said}");

    let esp = fixture.path("esp.img");
    part(&disk, 1, ESP, &esp);
    tool("fsck.vfat", &["-n", esp.to_str().unwrap()]);
    let listed = tool("mdir", &["-/", "-b", "-i", esp.to_str().unwrap(), "::"]);
    let id = installed.deployment.id;
    for wanted in [
        "EFI/BOOT/BOOTX64.EFI".to_owned(),
        "EFI/systemd/systemd-bootx64.efi".to_owned(),
        "loader/loader.conf".to_owned(),
        "loader/entries.srel".to_owned(),
        format!("loader/entries/bedplate-{id}.conf"),
    ] {
        assert!(listed.contains(&wanted), "{wanted} in\n{listed}");
    }
    let entry = tool(
        "mtype",
        &[
            "-i",
            esp.to_str().unwrap(),
            &format!("::loader/entries/bedplate-{id}.conf"),
        ],
    );
    for wanted in [
        format!("bedplate.deployment={id}"),
        format!(
            "bedplate.root=v1-sha256-12:{}",
            installed.deployment.root.image
        ),
        "console=ttyS0".to_owned(),
        "quiet".to_owned(),
        "panic=".to_owned(),
    ] {
        assert!(entry.contains(&wanted), "{wanted} in\n{entry}");
    }

    let root = fixture.path("root.img");
    part(&disk, 41, size - (42 << 20), &root);
    let root = root.to_str().unwrap();
    tool("e2fsck", &["-fn", root]);
    let features = tool("dumpe2fs", &["-h", root]);
    assert!(features.contains(" verity"), "{features}");
    assert!(
        features.contains("Block size:               4096"),
        "{features}"
    );
    let record = tool("debugfs", &["-R", "cat /bedplate/record.json", root]);
    assert_eq!(record.len(), 64 << 10);
    let record = bedplate_model::record::Record::parse(record.as_bytes()).unwrap();
    assert_eq!(record.deployments, [installed.deployment]);
    let image = tool(
        "debugfs",
        &[
            "-R",
            &format!(
                "stat /bedplate/store/images/{}",
                record.deployments[0].root.image
            ),
            root,
        ],
    );
    assert!(image.contains("User:     0   Group:     0"), "{image}");
    let objects = tool("debugfs", &["-R", "ls -l /bedplate/store/objects", root]);
    assert!(objects.lines().count() > 10, "{objects}");
}

#[test]
fn a_disk_for_a_bios_has_its_loader_before_the_partitions_of_any_other() {
    let fixture = Fixture::new();
    let disk = fixture.path("disk.img");
    let bios = InstallOptions {
        firmware: Firmware::Bios,
        ..options()
    };
    let plan = fixture.plan(&disk, &bios).unwrap();
    let shown = plan.to_string();
    for wanted in [
        "bios-boot      GRUB             1 MiB at 1 MiB",
        "write GRUB into the MBR and bios-boot",
        "write bedplate/grub.cfg",
        "set bedplate/grubenv to boot",
    ] {
        assert!(shown.contains(wanted), "{wanted} in\n{shown}");
    }
    assert!(!shown.contains("systemd"), "{shown}");
    let installed = plan.execute(false, &mut ()).unwrap();

    let path = disk.to_str().unwrap();
    let said = tool("sgdisk", &["-v", path]);
    assert!(said.contains("No problems found"), "{said}");
    let said = tool("sgdisk", &["-i", "1", path]);
    assert!(
        said.contains("21686148-6449-6E6F-744E-656564454649"),
        "{said}"
    );
    let first = fixture.path("first");
    part(&disk, 0, 2 << 20, &first);
    let first = fs::read(first).unwrap();
    assert_eq!(
        first[0x5c..0x64],
        2048u64.to_le_bytes(),
        "the partition's first sector"
    );
    assert_eq!(
        first[(1 << 20) + 500..][..8],
        2049u64.to_le_bytes(),
        "and the next"
    );

    let esp = fixture.path("esp.img");
    part(&disk, 2, ESP, &esp);
    let esp = esp.to_str().unwrap();
    tool("fsck.vfat", &["-n", esp]);
    let listed = tool("mdir", &["-/", "-b", "-i", esp, "::"]);
    let id = installed.deployment.id;
    let entry = format!("bedplate/entries/bedplate-{id}.cfg");
    for wanted in ["bedplate/grub.cfg", "bedplate/grubenv", &entry] {
        assert!(listed.contains(wanted), "{wanted} in\n{listed}");
    }
    assert!(!listed.contains("loader"), "{listed}");
    let environment = tool("mtype", &["-i", esp, "::bedplate/grubenv"]);
    assert_eq!(environment.len(), 512);
    assert!(
        environment.contains(&format!("\nbedplate_default={id}\n")),
        "{environment}"
    );
    let entry = tool("mtype", &["-i", esp, &format!("::{entry}")]);
    let wanted = format!(
        "'quiet' 'root=UUID={}' 'bedplate.deployment={id}'",
        bios.identifiers.root
    );
    assert!(entry.contains(&wanted), "{wanted} in\n{entry}");
}

#[test]
fn an_image_without_the_loader_is_refused_for_what_it_lacks_it_for() {
    for (missing, firmware, expected) in [
        ("systemd-bootx64.efi", Firmware::Uefi, "systemd-bootx64.efi"),
        (
            "fat.mod",
            Firmware::Bios,
            "the image has no GRUB for a BIOS: /usr/lib/grub/i386-pc/{fat.mod} is missing \
             (Debian: grub-pc-bin)",
        ),
    ] {
        let fixture = Fixture::with(&[missing]);
        let disk = fixture.path("disk.img");
        for wanted in [Firmware::Uefi, Firmware::Bios] {
            let options = InstallOptions {
                firmware: wanted,
                ..options()
            };
            match fixture.plan(&disk, &options) {
                Ok(_) => assert_ne!(wanted, firmware),
                Err(error) => {
                    assert_eq!(wanted, firmware);
                    assert!(error.to_string().contains(expected), "{error}");
                }
            }
        }
    }
}

#[test]
fn what_a_file_holds_is_not_lost_without_wipe() {
    let fixture = Fixture::new();
    let disk = fixture.path("disk.img");
    fs::write(&disk, b"precious").unwrap();
    let refused = fixture.plan(&disk, &options()).unwrap_err();
    assert!(
        matches!(refused, PlanError::Target(TargetError::HoldsData { .. })),
        "{refused}"
    );
    let wipe = InstallOptions {
        wipe: true,
        ..options()
    };
    let plan = fixture.plan(&disk, &wipe).unwrap();
    assert_eq!(
        fs::read(&disk).unwrap(),
        b"precious",
        "until it is executed"
    );
    plan.execute(false, &mut ()).unwrap();
    assert!(fs::metadata(&disk).unwrap().len() > 8);
}

#[test]
fn an_install_that_fails_leaves_no_file_with_the_name() {
    let fixture = Fixture::new();
    let disk = fixture.path("disk.img");
    let plan = fixture.plan(&disk, &options()).unwrap();
    // Objects that are gone since the plan was made.
    fs::remove_dir_all(fixture.store.objects_dir()).unwrap();
    let failed = plan.execute(false, &mut ()).unwrap_err();
    assert!(matches!(failed, ExecuteError::Content(_)), "{failed}");
    assert!(!disk.exists());
}

#[test]
fn sizes_and_names_that_cannot_be_are_refused_before_anything_is_written() {
    let fixture = Fixture::new();
    let disk = fixture.path("disk.img");
    let small = InstallOptions {
        size: Some(64 << 20),
        ..options()
    };
    assert!(matches!(
        fixture.plan(&disk, &small),
        Err(PlanError::Layout(_))
    ));
    let esp = InstallOptions {
        esp_size: Some(1 << 20),
        ..options()
    };
    assert!(matches!(
        fixture.plan(&disk, &esp),
        Err(PlanError::SmallEsp { .. })
    ));
    let kargs = InstallOptions {
        kargs: vec!["a b".into()],
        ..options()
    };
    assert!(matches!(
        fixture.plan(&disk, &kargs),
        Err(PlanError::Karg(_))
    ));
    let other: ImageName = "os:other".parse().unwrap();
    assert!(matches!(
        InstallPlan::new(&fixture.store, &other.clone().into(), &disk, &options()),
        Err(PlanError::NoImage(_))
    ));
    assert!(!disk.exists());
}

#[test]
fn the_plan_says_where_upgrades_come_from_and_makes_no_tag_up() {
    let fixture = Fixture::new();
    let disk = fixture.path("disk.img");
    let found = fixture.store.resolve(&fixture.name).unwrap().unwrap();
    let transaction = fixture.store.begin().unwrap();
    let manifest = transaction.put_blob(b"{}").unwrap();
    let pinned = fixture.name.by_digest(manifest);
    let target = RefTarget {
        manifest: Some(manifest),
        ..found.clone()
    };
    transaction.set_ref(&pinned, target).unwrap();
    let local: ImageName = "os:v1".parse().unwrap();
    transaction.set_ref(&local, found.clone()).unwrap();
    transaction.commit().unwrap();
    let plan = |image: &str, options: &InstallOptions| {
        let selector = image.parse().unwrap();
        InstallPlan::new(&fixture.store, &selector, &disk, options).unwrap()
    };
    let of_plan = |plan: &InstallPlan<'_>| {
        let text = plan.to_string();
        let line = text.lines().find(|line| line.starts_with("  upgrades"));
        (
            plan.deployment().image.to_string(),
            line.unwrap().to_owned(),
        )
    };

    let (image, line) = of_plan(&plan("registry.example:5000/os:v1", &options()));
    assert_eq!(image, "registry.example:5000/os:v1");
    assert!(line.ends_with("from registry.example:5000/os:v1"), "{line}");

    let (image, line) = of_plan(&plan(&pinned.to_string(), &options()));
    assert_eq!(image, pinned.to_string(), "no tag is made up");
    assert!(
        line.contains("no source") && line.contains("bedplate switch"),
        "{line}"
    );

    let (_, line) = of_plan(&plan("os:v1", &options()));
    assert!(
        line.contains("no source: localhost/os:v1 is in no registry"),
        "{line}"
    );

    let follow = InstallOptions {
        upgrade_from: Some("registry.example:5000/os:stable".parse().unwrap()),
        ..options()
    };
    let (_, line) = of_plan(&plan(&found.root.to_string(), &follow));
    assert!(
        line.ends_with("from registry.example:5000/os:stable"),
        "{line}"
    );

    // The image of no name has no place to look for upgrades either.
    let transaction = fixture.store.begin().unwrap();
    for name in [&fixture.name, &pinned, &local] {
        transaction.remove_ref(name);
    }
    transaction.commit().unwrap();
    let selector = found.root.to_string().parse().unwrap();
    let unnamed = InstallPlan::new(&fixture.store, &selector, &disk, &options());
    assert!(matches!(unnamed, Err(PlanError::Unnamed(_))));
}

#[test]
fn the_installed_files_take_no_space_that_they_do_not_need() {
    let fixture = Fixture::new();
    let disk = fixture.path("disk.img");
    let plan = fixture.plan(&disk, &options()).unwrap();
    plan.execute(false, &mut ()).unwrap();
    let metadata = fs::metadata(&disk).unwrap();
    assert!(
        metadata.blocks() * 512 < 64 << 20,
        "{} blocks",
        metadata.blocks()
    );
    assert_eq!(metadata.permissions().mode() & 0o111, 0);
}
