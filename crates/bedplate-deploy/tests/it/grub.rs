//! GRUB itself, in a machine with a BIOS, reads what we write: the simulated loader is held against the real
//! one. Nothing of Linux is booted; a deployment says its name by a command that GRUB does not know.
//!
//! A machine without QEMU or without GRUB (Debian: qemu-system-x86, grub-pc-bin) says so and tests nothing.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bedplate_boot::entry::EntryName;
use bedplate_boot::grub;
use bedplate_boot::loader::Loader;
use bedplate_boot::partition::BootPartition as _;
use bedplate_boot::render;
use bedplate_deploy::install::esp::FatPartition;
use bedplate_deploy::install::layout::{ESP_MIN, Firmware, Layout};
use bedplate_deploy::install::table::{self, Identifiers, SECTOR};
use bedplate_model::layout;
use bedplate_model::record::DeploymentId;
use uuid::Uuid;

use crate::with_grub::life::stage;
use crate::with_grub::simulated::{FIRST, Simulated};

const QEMU: &str = "qemu-system-x86_64";
/// How long a boot may take: many times what it takes, on a machine that does other things, too.
const PATIENCE: Duration = Duration::from_secs(120);

/// A disk with GRUB on it.
struct Disk {
    directory: tempfile::TempDir,
    layout: Layout,
}

impl Disk {
    /// Makes one with the boot partition of a machine, or `None` where this machine cannot.
    fn of(machine: &Simulated) -> Option<Self> {
        let home = Path::new("/").join(layout::GRUB);
        let qemu = Command::new(QEMU).arg("--version").output();
        if qemu.is_err() || !home.join("kernel.img").exists() {
            #[expect(clippy::print_stderr, reason = "who reads the test's output is told")]
            {
                let home = home.display();
                eprintln!("skipped: this machine has no {QEMU}, or no {home}");
            }
            return None;
        }
        let disk = Self {
            directory: tempfile::tempdir().unwrap(),
            layout: Layout::new(Firmware::Bios, 64 << 20, ESP_MIN, 1 << 20).unwrap(),
        };
        let mut file = File::create_new(disk.path()).unwrap();
        file.set_len(disk.layout.size).unwrap();
        let bios_boot = disk.layout.bios_boot.unwrap();
        let place = grub::Place {
            first_sector: bios_boot.start / SECTOR,
            boot_partition: disk.layout.esp_number(),
        };
        let read = |name: &str| match fs::read(home.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        };
        let code = grub::boot_code(&read, place).unwrap();
        file.write_all_at(&code.core, bios_boot.start).unwrap();
        file = File::options()
            .read(true)
            .write(true)
            .open(disk.path())
            .unwrap();
        let identifiers = Identifiers::from_seed(Uuid::from_u128(1));
        table::write(&mut file, &disk.layout, &identifiers, Some(&code.mbr)).unwrap();
        FatPartition::format(&file, disk.layout.esp, 1).unwrap();
        for (path, contents) in machine.boot_files() {
            disk.put(&path, &contents);
        }
        Some(disk)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("disk.img")
    }

    fn partition(&self) -> FatPartition {
        let file = File::options()
            .read(true)
            .write(true)
            .open(self.path())
            .unwrap();
        FatPartition::open(&file, self.layout.esp).unwrap()
    }

    fn put(&self, path: &str, contents: &[u8]) {
        self.partition().write(path, contents).unwrap();
    }

    /// Lets a deployment's fragment say its name instead of booting.
    fn let_speak(&self, name: EntryName) {
        let speak = format!(
            "set bedplate_title='{0}'\nif [ \"$bedplate_do\" = boot ]; then {0}-boots; reboot; fi\n",
            name.deployment
        );
        self.put(&Loader::Grub.entry_path(&name), speak.as_bytes());
    }

    /// Switches the machine on, and returns which deployment booted, and the tries left of another.
    fn boot(&self, writable: bool, tried: DeploymentId) -> (DeploymentId, Option<u32>) {
        let log = self.directory.path().join("serial.log");
        let drive = format!("if=none,id=disk,format=raw,file={}", self.path().display());
        let drive = if writable {
            drive
        } else {
            drive + ",readonly=on"
        };
        let mut qemu = Command::new(QEMU)
            // What the BIOS shows goes to the serial line as well; a reboot ends it.
            .args([
                "-accel",
                "tcg",
                "-M",
                "q35,graphics=off",
                "-nodefaults",
                "-no-reboot",
            ])
            .args(["-display", "none", "-m", "256", "-serial"])
            .arg(format!("file:{}", log.display()))
            .args(["-drive", &drive])
            .args(["-device", "virtio-blk-pci,drive=disk,bootindex=0,romfile="])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while qemu.try_wait().unwrap().is_none() && begun.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(50));
        }
        let _ = qemu.kill();
        qemu.wait().unwrap();
        // The BIOS draws with escape sequences, here and there within a word.
        let said = bedplate_vm::serial::printable(&fs::read(log).unwrap());
        let speaker = said.split_once("-boots").map(|(before, _)| before);
        let booted = speaker.and_then(|before| before.get(before.len().checked_sub(8)?..));
        let booted = booted.and_then(|id| id.parse().ok());
        let booted = booted.unwrap_or_else(|| panic!("nothing booted:\n{said}"));
        let observed = render::observe(&self.partition()).unwrap();
        (booted, observed.tries_left(tried))
    }
}

/// A machine that has finalized version 2, which is on trial.
fn with_a_trial() -> (Simulated, DeploymentId) {
    let machine = Simulated::proven();
    let id = stage(&machine, 2);
    machine.with(|m| m.finalize(&machine.store)).unwrap();
    (machine, id)
}

#[test]
fn a_trial_boots_as_often_as_it_has_tries_and_then_its_base() {
    let (machine, id) = with_a_trial();
    let Some(disk) = Disk::of(&machine) else {
        return;
    };
    disk.let_speak(EntryName::proven(FIRST));
    disk.let_speak(EntryName::trial(FIRST, id, 3));
    for (booted, left) in [(id, 2), (id, 1), (id, 0), (FIRST, 0), (FIRST, 0)] {
        assert_eq!(disk.boot(true, id), (booted, Some(left)));
    }
}

#[test]
fn a_trial_whose_kernel_is_none_gives_way_in_the_same_boot() {
    let (machine, id) = with_a_trial();
    let Some(disk) = Disk::of(&machine) else {
        return;
    };
    disk.let_speak(EntryName::proven(FIRST));
    assert_eq!(disk.boot(true, id), (FIRST, Some(0)));
}

#[test]
fn a_try_that_cannot_be_counted_is_none() {
    let (machine, id) = with_a_trial();
    let Some(disk) = Disk::of(&machine) else {
        return;
    };
    disk.let_speak(EntryName::proven(FIRST));
    disk.let_speak(EntryName::trial(FIRST, id, 3));
    assert_eq!(disk.boot(false, id), (FIRST, Some(3)));
}

#[test]
fn a_sector_that_cannot_be_read_and_a_fragment_that_is_none_leave_what_is_proven() {
    let (machine, id) = with_a_trial();
    let Some(disk) = Disk::of(&machine) else {
        return;
    };
    disk.let_speak(EntryName::proven(FIRST));
    let trial = Loader::Grub.entry_path(&EntryName::trial(FIRST, id, 3));
    disk.put(&trial, b"if [ \xff\0 ' { ( \"".repeat(40).as_slice());
    // What does not end as a fragment does is none, and its tries are nobody's.
    assert_eq!(disk.boot(true, id), (FIRST, None));
    disk.put(grub::ENVIRONMENT, &[0xff; 512]);
    assert_eq!(disk.boot(true, id), (FIRST, None));
}
