//! The life of a version, from a directory to a machine that rolled back: what the demo tells and the
//! virtual machine smoke test asserts. One course of events, two voices.
//!
//! ```text
//! tree 1 ─ build ─ push ─┐                   ┌─ pull (nobody) ─ install ─ disk.img ─ boot 1
//! tree 2 ─ build ─ push ─┤  bedplate serve   ├─ upgrade (in the machine) ─ boot 2 ─ rollback ─ boot 1
//! broken ─ build ─ push ─┘                   └─ upgrade ─ boot 3, three times ─ boot 1 by itself
//! ```
//!
//! Everything is done with the `bedplate` command line alone. Whatever the story says was checked: a
//! statement that does not hold ends it.

mod broken;
mod narrator;
pub(crate) mod people;
pub(crate) mod recorded;
pub(crate) mod suite;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use testkit::qemu::{Accelerator, Boot, Machine, MachineOptions, REGISTRY};

use crate::images::{Images, Tree};
use crate::registry::Registry;
use crate::{images, packages, programs, workspace};

pub(crate) use broken::boot_partition;
use narrator::Narrator;
pub(crate) use narrator::Voice;
use people::Person;

/// What the image is called in a registry, and which of its tags the machine follows.
const REPOSITORY: &str = "demo/os";
const FOLLOWED: &str = "stable";

/// The image that the machine follows, in its registry.
pub(crate) const IMAGE: &str = "demo/os:stable";

/// What the disk has room for at the machine's first boot; the image file is made smaller.
const DISK_SIZE: u64 = 5 << 30;

/// What the machine is told to be quick about: no menu, a boot log on the serial line, and no defences
/// of a processor that is emulated anyway.
const KARGS: [&str; 4] = [
    "console=ttyS0",
    "quiet",
    "systemd.show_status=1",
    "mitigations=off",
];

/// Memory of the machine in MiB.
const MEMORY: u32 = 1024;

/// How long a machine may take from a shell that answers to a deployment that is proven.
const PROVING: Duration = Duration::from_secs(90);

/// Makes sure of the packages that the story needs.
pub(crate) fn require_packages() -> Result<()> {
    packages::require(&[
        packages::BUILD,
        packages::IMAGES,
        packages::namespace(),
        packages::MACHINE,
    ])
}

/// What starts the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Firmware {
    /// UEFI, and systemd-boot.
    Uefi,
    /// A BIOS, and GRUB.
    Bios,
}

/// Tells the whole story; `keep` leaves the disk image behind.
pub(crate) fn tell(voice: Voice, keep: bool, firmware: Firmware) -> Result<()> {
    let mut narrator = Narrator::new(voice);
    play(&mut narrator, keep, firmware, Stage::live)
}

/// Breaks a machine in three ways that no health check can see, and watches it heal.
pub(crate) fn heal(firmware: Firmware) -> Result<()> {
    packages::require(&[packages::BOOT_PARTITION])?;
    let mut narrator = Narrator::new(Voice::Brief);
    play(&mut narrator, false, firmware, Stage::heal)
}

/// What a machine goes through.
type Course = fn(&Stage, &mut Narrator, &mut Machine, &Published, &Registry) -> Result<()>;

/// Sets the stage, boots version 1, and plays what comes then.
fn play(narrator: &mut Narrator, keep: bool, firmware: Firmware, course: Course) -> Result<()> {
    let bedplate = prepare_programs(narrator)?;
    let images = prepare_trees(narrator)?;
    let stage = Stage::new(&bedplate, images, firmware)?;

    let registry = stage.registry(&stage.place)?;
    let published = stage.publish(narrator, &registry)?;
    let disk = stage.install(narrator, &registry, &published.first)?;

    let (started_by, loader) = match firmware {
        Firmware::Uefi => ("UEFI", "systemd-boot"),
        Firmware::Bios => ("a BIOS", "GRUB"),
    };
    narrator.step(&format!(
        "Boot it: firmware, {loader}, our early boot, systemd"
    ));
    narrator.say(&format!(
        "QEMU, {started_by}, engine: {}; the machine reaches one server, our registry, as {REGISTRY}",
        Accelerator::probe()
    ));
    let mut machine = Machine::start(&stage.machine(&registry))?;
    let played = course(&stage, narrator, &mut machine, &published, &registry);
    if played.is_err() {
        eprintln!(
            "the end of the machine's serial log ({}):\n{}\n",
            stage.place.join("serial.log").display(),
            machine.serial_tail(50)
        );
    }
    stage.forget_broken_tree()?;
    played?;
    drop(machine);
    drop(registry);
    if keep {
        narrator.say(&format!("the machine's disk stays at {}", disk.display()));
    } else {
        fs::remove_file(&disk).with_context(|| format!("removing {}", disk.display()))?;
    }
    narrator.end();
    Ok(())
}

/// Both versions as they were built.
#[derive(Serialize, Deserialize)]
struct Published {
    first: Version,
    second: Version,
}

/// One version of the image.
#[derive(Clone, Serialize, Deserialize)]
struct Version {
    /// Its name in the builder's store.
    name: String,
    /// Its root digest.
    root: String,
    /// The release of its kernel.
    kernel: String,
}

/// Where the story plays, and with whom.
struct Stage {
    /// The directory for everything that this run makes.
    place: PathBuf,
    firmware: Firmware,
    images: Images,
    /// Who builds and pushes; owns the trees.
    builder: Person,
    /// Who installs: nobody in particular, with no privileges.
    installer: Person,
}

fn prepare_programs(narrator: &mut Narrator) -> Result<PathBuf> {
    narrator.step("Compile bedplate");
    let bedplate = programs::build()?;
    let size = fs::metadata(&bedplate)
        .with_context(|| format!("looking at {}", bedplate.display()))?
        .len();
    narrator.say(&format!(
        "{} ({} MB, static)",
        bedplate.display(),
        size / 1_000_000
    ));
    Ok(bedplate)
}

fn prepare_trees(narrator: &mut Narrator) -> Result<Images> {
    narrator.step("Make two Debian systems with mmdebstrap (kept for the next time)");
    let images = Images::open_or_make()?;
    for (version, tree) in [(1, &images.first), (2, &images.second)] {
        narrator.say(&format!(
            "version {version}: kernel {}, {}",
            tree.kernel()?,
            tree.path.display()
        ));
    }
    Ok(images)
}

impl Stage {
    fn new(bedplate: &Path, images: Images, firmware: Firmware) -> Result<Self> {
        let place = workspace::target("demo/run");
        images::remove(&place)?;
        Ok(Self {
            firmware,
            ..Self::at(place, bedplate, images)?
        })
    }

    /// Sets the stage at a place of which more may be there.
    fn at(place: PathBuf, bedplate: &Path, images: Images) -> Result<Self> {
        fs::create_dir_all(&place).with_context(|| format!("creating {}", place.display()))?;
        let builder = Person::builder(bedplate, &place)?;
        let installer = Person::installer(bedplate, &place)?;
        Ok(Self {
            place,
            firmware: Firmware::Uefi,
            images,
            builder,
            installer,
        })
    }

    /// A registry over what is below a directory.
    fn registry(&self, place: &Path) -> Result<Registry> {
        Registry::start(
            &mut self.builder.bedplate::<&str>(&[]),
            &place.join("registry"),
            &place.join("registry.log"),
        )
    }

    /// The machine that everything happens in.
    fn machine(&self, registry: &Registry) -> MachineOptions {
        MachineOptions {
            boot: match self.firmware {
                Firmware::Uefi => Boot::Uefi {
                    variables: self.place.join("variables.fd"),
                },
                Firmware::Bios => Boot::Bios,
            },
            disk: self.disk(),
            carried: None,
            watchdog: false,
            serial_log: self.place.join("serial.log"),
            memory: MEMORY,
            processors: 2,
            registry_port: Some(registry.port()),
            key: self.images.key.clone(),
        }
    }

    /// The machine's disk.
    fn disk(&self) -> PathBuf {
        self.installer.place.join("disk.img")
    }

    /// Builds both versions and pushes them.
    fn publish(&self, narrator: &mut Narrator, registry: &Registry) -> Result<Published> {
        narrator.step("Build both into bootable images");
        let first = self.build(narrator, 1, &self.images.first)?;
        let second = self.build(narrator, 2, &self.images.second)?;
        ensure!(
            first.root != second.root,
            "both versions have the root digest {}",
            first.root
        );
        narrator.step("See what version 2 changes, before anybody has it");
        self.builder
            .show(narrator, &["diff", &first.name, &second.name])?;

        narrator.step("Push them to a registry (bedplate serve; any OCI registry does)");
        for (version, tag) in [(&first, "1"), (&second, "2"), (&first, FOLLOWED)] {
            self.push(narrator, registry, version, tag)?;
        }
        Ok(Published { first, second })
    }

    fn build(&self, narrator: &mut Narrator, number: u8, tree: &Tree) -> Result<Version> {
        let name = format!("{REPOSITORY}:{number}");
        self.builder.show(
            narrator,
            &[
                "build",
                "--rootfs",
                &tree.path.display().to_string(),
                "--label",
                &format!("org.opencontainers.image.version={number}"),
                "-t",
                &name,
            ],
        )?;
        let about = self.builder.json(&["inspect", "--json", &name])?;
        let root = text(&about, "root_digest")?;
        narrator.fact(&format!("root digest of version {number}: {root}"));
        Ok(Version {
            name,
            root,
            kernel: tree.kernel()?,
        })
    }

    fn push(
        &self,
        narrator: &mut Narrator,
        registry: &Registry,
        version: &Version,
        tag: &str,
    ) -> Result<()> {
        let destination = format!("127.0.0.1:{}/{REPOSITORY}:{tag}", registry.port());
        self.builder.show(
            narrator,
            &["push", "--tls-verify=false", &version.name, &destination],
        )?;
        Ok(())
    }

    /// Makes a disk image of version 1 without any privileges.
    fn install(
        &self,
        narrator: &mut Narrator,
        registry: &Registry,
        version: &Version,
    ) -> Result<PathBuf> {
        narrator.step("Make a disk image of version 1: no root, no mounts, no loop devices");
        let name = format!("127.0.0.1:{}/{REPOSITORY}:{FOLLOWED}", registry.port());
        self.installer
            .show(narrator, &["pull", "--tls-verify=false", &name])?;
        let about = self.installer.json(&["inspect", "--json", &name])?;
        let root = text(&about, "root_digest")?;
        ensure!(
            root == version.root,
            "what was pulled has the root digest {root}, what was built {}",
            version.root
        );
        narrator.fact("what was pulled is what was built, by its root digest");

        let disk = self.disk();
        let mut arguments = vec![
            "install".to_owned(),
            "to-disk".to_owned(),
            disk.display().to_string(),
            format!("--image={name}"),
            format!("--target-image={REGISTRY}/{REPOSITORY}:{FOLLOWED}"),
        ];
        let engine = Accelerator::probe().kernel_arguments();
        let kargs = KARGS.iter().chain(engine);
        arguments.extend(kargs.map(|karg| format!("--karg={karg}")));
        if self.firmware == Firmware::Bios {
            arguments.push("--boot=bios".to_owned());
        }
        self.installer.show(narrator, &arguments)?;
        // The machine has a larger disk than the image was made for, as machines do.
        let file = File::options()
            .write(true)
            .open(&disk)
            .with_context(|| format!("opening {}", disk.display()))?;
        let made = file.metadata().context("measuring the disk image")?.len();
        ensure!(
            made < DISK_SIZE,
            "the disk image has {made} bytes, more than the machine's disk"
        );
        file.set_len(DISK_SIZE)
            .with_context(|| format!("growing {}", disk.display()))?;
        Ok(disk)
    }

    /// What happens in the machine.
    fn live(
        &self,
        narrator: &mut Narrator,
        machine: &mut Machine,
        published: &Published,
        registry: &Registry,
    ) -> Result<()> {
        let Published { first, second } = published;
        let took = machine.wait_until_up()?;
        narrator.fact(&format!("up after {:.0} s", took.as_secs_f32()));
        check_booted(narrator, machine, first)?;
        check_immutable(narrator, machine)?;
        check_grown(narrator, machine)?;
        self.check_loader(narrator, machine)?;

        narrator.step("Live in it: edit /etc, add a user, leave a file in /var");
        for script in [
            "echo 'Mind the lathe.' >/etc/motd",
            "useradd --create-home --uid 1500 anna",
            "echo 'oiled on Monday' >/var/lib/logbook",
            "mkdir /etc/bedplate && printf '[health]\\nprobation = \"5s\"\\n' >/etc/bedplate/machine.toml",
            "echo 'buy oil' >/home/anna/list && chown anna /home/anna/list",
        ] {
            narrator.guest(machine, script)?;
        }

        narrator.step("Publish version 2: the tag now means another image");
        self.push(narrator, registry, second, FOLLOWED)?;

        narrator.step("The machine upgrades itself");
        narrator.guest(machine, "bedplate upgrade")?;
        narrator.guest(machine, "bedplate status")?;
        check_booted_root(machine, first)?;
        narrator.fact("the running system is still version 1");

        narrator.step("Reboot into version 2");
        let took = machine.reboot()?;
        narrator.fact(&format!("up again after {:.0} s", took.as_secs_f32()));
        check_booted(narrator, machine, second)?;
        self.check_loader(narrator, machine)?;
        check_survived(narrator, machine)?;
        narrator.guest(machine, "htop --version && jq --version")?;
        narrator.guest(machine, "getent passwd anna _chrony")?;
        narrator.fact("a user added here and a user that version 2 brought: both are there");

        narrator.step("Roll back");
        narrator.guest(machine, "bedplate rollback")?;
        let took = machine.reboot()?;
        narrator.fact(&format!("up again after {:.0} s", took.as_secs_f32()));
        check_booted(narrator, machine, first)?;
        check_survived(narrator, machine)?;
        let gone = machine.run("test -e /usr/bin/htop")?;
        ensure!(gone.code == 1, "version 1 has version 2's programs in /usr");
        narrator.fact("/usr is the old one: htop is gone");
        self.break_and_heal(narrator, machine, published, registry)
    }
}

impl Stage {
    /// The loader is the one that the machine was installed with, and its firmware starts it.
    fn check_loader(&self, narrator: &mut Narrator, machine: &mut Machine) -> Result<()> {
        let expected = match self.firmware {
            Firmware::Uefi => "systemd-boot",
            Firmware::Bios => "grub",
        };
        let loader = text(&status(machine)?, "loader")?;
        ensure!(loader == expected, "status says that {loader} boots it");
        match self.firmware {
            Firmware::Uefi => check_registered(narrator, machine),
            Firmware::Bios => {
                machine.check("test ! -e /sys/firmware/efi")?;
                narrator.fact("a BIOS started it, and GRUB");
                Ok(())
            }
        }
    }
}

/// The booted image, its kernel, and that it is proven.
fn check_booted(narrator: &mut Narrator, machine: &mut Machine, version: &Version) -> Result<()> {
    let verity = check_booted_root(machine, version)?;
    let kernel = narrator.guest(machine, "uname -r")?;
    ensure!(
        kernel.trim() == version.kernel,
        "kernel {} runs, {} was expected",
        kernel.trim(),
        version.kernel
    );
    let started = Instant::now();
    loop {
        let status = status(machine)?;
        let booted = status["deployments"]
            .as_array()
            .and_then(|all| all.iter().find(|one| one["booted"] == true))
            .with_context(|| format!("the status knows of no booted deployment: {status:#}"))?;
        let root = text(booted, "root_digest")?;
        ensure!(
            root == version.root,
            "status says that {root} is booted, not {}",
            version.root
        );
        ensure!(
            booted["etc_conflicts"]
                .as_array()
                .is_some_and(Vec::is_empty),
            "merging /etc had conflicts: {:#}",
            booted["etc_conflicts"]
        );
        if text(booted, "state")? == "proven" {
            break;
        }
        ensure!(
            started.elapsed() < PROVING,
            "the deployment is not proven after {} s: {status:#}\n{}",
            PROVING.as_secs(),
            machine
                .run("systemctl list-jobs; systemctl status 'bedplate-*' boot-complete.target")?
                .stdout
        );
        thread::sleep(Duration::from_millis(500));
    }
    narrator.guest(machine, "bedplate status")?;
    narrator.fact(&format!(
        "booted the image with root digest {}, fs-verity {verity}, and it is proven",
        version.root
    ));
    Ok(())
}

/// What early boot says it mounted; returns how it checked the objects.
fn check_booted_root(machine: &mut Machine, version: &Version) -> Result<String> {
    let booted = machine.check("cat /run/bedplate/booted.json")?;
    let booted: Value = serde_json::from_str(&booted).context("reading booted.json")?;
    let root = text(&booted, "root")?;
    // Early boot knows the image's digest, and not by which rules it came to be.
    ensure!(
        version
            .root
            .split_once('/')
            .is_some_and(|(_, image)| image == root),
        "early boot mounted {root}, and {} was expected",
        version.root
    );
    let verity = text(&booted, "verity")?;
    ensure!(
        verity != "off",
        "early boot mounted the image without checking its objects"
    );
    Ok(verity)
}

fn status(machine: &mut Machine) -> Result<Value> {
    let status = machine.check("bedplate status --json")?;
    serde_json::from_str(&status).with_context(|| format!("reading the status {status}"))
}

fn check_immutable(narrator: &mut Narrator, machine: &mut Machine) -> Result<()> {
    for path in ["/usr/bin/mine", "/mine", "/sysroot/mine"] {
        let ran = machine.run(&format!("touch {path}"))?;
        ensure!(ran.code != 0, "{path} could be written");
        narrator.told(&format!("touch {path}"), &ran.stderr);
    }
    narrator.fact("/usr, / and the physical root are read-only");
    Ok(())
}

fn check_grown(narrator: &mut Narrator, machine: &mut Machine) -> Result<()> {
    let started = Instant::now();
    loop {
        let size = machine.check("df --block-size=1 --output=size /var | tail -n 1")?;
        let size: u64 = size.trim().parse().context("reading the size of /var")?;
        // Nine tenths: the ESP, and what ext4 keeps for itself.
        if size > DISK_SIZE / 10 * 8 {
            narrator.fact(&format!(
                "the root grew to its disk: {} MB",
                size / 1_000_000
            ));
            return Ok(());
        }
        ensure!(
            started.elapsed() < PROVING,
            "the root has {size} bytes and did not grow to its disk of {DISK_SIZE}: {}",
            machine.run("systemctl status bedplate-grow")?.stdout
        );
        thread::sleep(Duration::from_millis(500));
    }
}

/// The firmware's boot order begins with the loader, as often as a trial has tries, plus one; read from
/// its variables by a program that is none of ours.
fn check_registered(narrator: &mut Narrator, machine: &mut Machine) -> Result<()> {
    const EXPECTED: &str = "Bedplate, Bedplate (2), Bedplate (3), Bedplate (4)";
    // The unit runs beside the one that lets us in.
    machine.check("systemctl start bedplate-firmware")?;
    let names = machine.check(&format!("python3 -c '{BOOT_OPTIONS}'"))?;
    let (ordered, all) = names
        .split_once('\n')
        .with_context(|| format!("the boot options were printed as {names:?}"))?;
    ensure!(
        ordered.starts_with(EXPECTED) && all.trim() == EXPECTED,
        "the boot order is {ordered}, and of ours there are {all}\n{}",
        machine
            .run("journalctl --boot --unit bedplate-firmware")?
            .stdout
    );
    narrator.fact(&format!("the firmware starts the loader by {EXPECTED}"));
    Ok(())
}

/// Prints the names of the boot options in their order, then those of all that begin like ours.
const BOOT_OPTIONS: &str = r#"
import glob, struct
end = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"
place = "/sys/firmware/efi/efivars/Boot"
def value(name): return open(place + name + end, "rb").read()[4:]
def title(name): return value(name)[6:].decode("utf-16-le", "replace").split("\0")[0]
order = value("Order")
names = ["%04X" % number for number in struct.unpack("<%dH" % (len(order) // 2), order)]
print(", ".join(map(title, names)))
every = [path[len(place):][:4] for path in glob.glob(place + "[0-9A-F]" * 4 + end)]
print(", ".join(sorted(name for name in map(title, every) if name.startswith("Bedplate"))))
"#;

fn check_survived(narrator: &mut Narrator, machine: &mut Machine) -> Result<()> {
    for (script, expected) in [
        ("cat /etc/motd", "Mind the lathe."),
        ("id --user anna", "1500"),
        ("cat /var/lib/logbook", "oiled on Monday"),
        ("cat /home/anna/list", "buy oil"),
    ] {
        let printed = narrator.guest(machine, script)?;
        ensure!(
            printed.trim() == expected,
            "`{script}` printed {:?}, and {expected:?} was expected",
            printed.trim()
        );
    }
    narrator.fact("the edited file, the user and the files in /var are there");
    Ok(())
}

/// A text in a JSON document.
fn text(document: &Value, name: &str) -> Result<String> {
    document[name]
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("no text `{name}` in {document:#}"))
}

/// Where the root's partition begins on a disk, in bytes.
fn root_partition(disk: &Path) -> Result<u64> {
    broken::partition(disk, "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709")
}
