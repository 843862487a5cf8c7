//! A sealed commit: every object gets its fs-verity seal, by us and by ostree, in one guest.
//!
//! ```text
//! guest system (Debian with ostree) ─┐
//! a tenth of v1's files ─────────────┼─→ one ext4 image with fs-verity ─→ QEMU ─→ its serial line tells
//! bedplate ──────────────────────────┘
//! ```
//!
//! A guest, because not every kernel has fs-verity; a tenth, because the guest may be emulated.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use testkit::qemu::{Accelerator, Boot, KeyPair, Machine, MachineOptions};

use super::Bench;
use super::report::{Report, Row, Target};
use super::sample::Samples;
use crate::apt_sources::Mirrors;
use crate::images::{Recipe, Tree, bare, source, suite};
use crate::{packages, run, workspace};

/// The guest's system: its kernel has ext4, NVMe and fs-verity built in.
const PACKAGES: &str = "linux-image-cloud-amd64,ostree,time,e2fsprogs";

/// What the guest runs.
const SCRIPT: &str = include_str!("../../assets/sealed-guest.sh");

/// One file of so many is committed.
const PART: usize = 10;

/// Room for the system, the files, and all stores: nothing is removed while it is measured.
const DISK: &str = "6G";

impl Bench {
    /// Commits in a guest, sealed.
    pub(super) fn sealed(&self, report: &mut Report) -> Result<()> {
        let system = guest_system()?;
        let disk = self.guest_disk(&system)?;
        let engine = Accelerator::probe();
        println!("  a guest commits, sealed; engine: {engine}");
        let kernel = system.kernel()?;
        let serial_log = self.place.join("sealed.log");
        let mut machine = Machine::start(&MachineOptions {
            boot: Boot::Kernel {
                kernel: system.path.join(format!("boot/vmlinuz-{kernel}")),
                initramfs: None,
                arguments: "root=/dev/nvme0n1 rw init=/sealed-guest console=ttyS0 panic=-1 quiet \
                            mitigations=off"
                    .to_owned(),
            },
            disk,
            carried: None,
            watchdog: false,
            serial_log: serial_log.clone(),
            memory: 2048,
            processors: 2,
            registry_port: None,
            key: KeyPair::open_or_make(&self.place.join("key"))?,
        })?;
        for awaited in [
            "run 1 is over",
            "run 2 is over",
            "run 3 is over",
            "sealed: done",
        ] {
            machine
                .wait_for_serial(awaited, 0)
                .with_context(|| machine.serial_tail(20))?;
        }
        drop(machine);
        let told =
            fs::read(&serial_log).with_context(|| format!("reading {}", serial_log.display()))?;
        let told = String::from_utf8_lossy(&told);
        let samples = |who: &str, name: &str| {
            let mut samples = Samples::default();
            for line in told.lines() {
                if let Some((_, took)) = line.split_once(&format!("sealed: {who} ")) {
                    samples.take_told(name, took)?;
                }
            }
            Ok::<Samples, anyhow::Error>(samples)
        };
        report.add(Row {
            what: match engine {
                Accelerator::Kvm => "sealed commit of every tenth file of v1, in a guest",
                Accelerator::Tcg => {
                    "sealed commit of every tenth file of v1, in a guest under software emulation"
                }
            },
            ours: samples("ours", "bedplate commit, sealed")?,
            peer: Some((
                "ostree commit, bare repository, fs-verity required",
                samples("theirs", "ostree commit, sealed")?,
            )),
            targets: vec![Target::Wall(0.6)],
        });
        Ok(())
    }

    /// The guest's disk: its system, our program, the files, and room.
    fn guest_disk(&self, system: &Tree) -> Result<PathBuf> {
        let root = self.place.join("guest");
        run::output(
            Command::new("cp")
                .args(["--archive", "--link", "--"])
                .args([&system.path, &root]),
        )?;
        let program = root.join("bedplate");
        fs::copy(&self.bedplate, &program)
            .with_context(|| format!("copying to {}", program.display()))?;
        let script = root.join("sealed-guest");
        fs::write(&script, SCRIPT)
            .and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("writing {}", script.display()))?;
        link_a_part(&self.trees.v1, &root.join("slice"))?;
        let disk = self.place.join("guest.img");
        run::output(
            Command::new("mkfs.ext4")
                // Seals need blocks of a page's size.
                .args(["-q", "-b", "4096", "-O", "verity", "-d"])
                .args([&root, &disk])
                .arg(DISK),
        )?;
        super::remove(&root)?;
        Ok(disk)
    }
}

/// Makes the guest's system, or opens the one that is there.
fn guest_system() -> Result<Tree> {
    packages::require(&[packages::IMAGES, packages::MACHINE])?;
    let mirrors = Mirrors::of_this_machine()?;
    let mut arguments = bare(PACKAGES);
    arguments.extend(suite(&[source(&mirrors.archive, "bookworm")]));
    let recipe = Recipe {
        name: "a Debian 12 with ostree".to_owned(),
        arguments,
    };
    recipe.open_or_make(&workspace::target("bench"))
}

/// Links every so-manieth file of a tree to the same place below another directory.
fn link_a_part(tree: &Path, to: &Path) -> Result<()> {
    let listed = run::output(
        Command::new("find")
            .arg(tree)
            .args(["-type", "f", "-printf", "%P\\n"]),
    )?;
    let mut files: Vec<&str> = listed.lines().collect();
    files.sort_unstable();
    for file in files.into_iter().step_by(PART) {
        let path = to.join(file);
        let parent = path.parent().context("a file lies in a directory")?;
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        fs::hard_link(tree.join(file), &path)
            .with_context(|| format!("linking {}", path.display()))?;
    }
    Ok(())
}
