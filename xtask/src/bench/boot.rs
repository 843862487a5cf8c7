//! From an initramfs's start to the system's: our early boot against Debian's initramfs-tools and dracut.
//!
//! ```text
//! "Run /init as init process" (kernel) ──────→ "running in system mode" (systemd, of the root)
//! ```
//!
//! One kernel, one tree, one machine, no boot loader: ours on a disk that was installed, theirs on a plain ext4
//! as root. Times are the kernel's own, from the serial line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use testkit::qemu::{Accelerator, Boot, KeyPair, Machine, MachineOptions};

use super::report::{Report, Row, Target};
use super::sample::Samples;
use super::{Bench, NAME};
use crate::images::{Images, Tree};
use crate::{apt_sources, packages, run, story, vm, workspace};

/// Makes the others' initramfs.
const PEERS: &str = include_str!("../../assets/peer-initramfs.sh");

/// What the kernel says when it starts an initramfs.
const BEGIN: &str = "Run /init as init process";

/// What systemd says when it starts.
const END: &str = "running in system mode";

/// What everyone's kernel is told; without `quiet`, which would hide what is measured by. Nobody checks the file
/// system: a machine that is ended here leaves it as a power cut does, and only ours was mounted writable by then.
const ARGUMENTS: &str = "console=ttyS0 loglevel=7 panic=-1 mitigations=off fsck.mode=skip";

/// One way to boot.
struct Way {
    name: &'static str,
    kernel: PathBuf,
    initramfs: PathBuf,
    disk: PathBuf,
    arguments: String,
    /// How many systemds start: dracut brings one of its own.
    systemds: usize,
}

/// Boots all of them, in turn.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    packages::require(&[packages::MACHINE, packages::BOOT_PARTITION])?;
    let place = bench.fresh_directory("boots")?;
    let images = Images::open_or_make()?;
    let tree = &images.first;
    let peers = peer_initramfs(tree)?;
    let plain = place.join("plain.img");
    vm::make_ext4(tree, &plain)?;
    let theirs = |name, file: &str, systemds| {
        Ok::<Way, anyhow::Error>(Way {
            name,
            kernel: tree.path.join(format!("boot/vmlinuz-{}", tree.kernel()?)),
            initramfs: peers.join(file),
            disk: plain.clone(),
            arguments: "root=/dev/nvme0n1 ro".to_owned(),
            systemds,
        })
    };
    let ways = [
        bench.installed(tree, &place)?,
        theirs("initramfs-tools", "initramfs-tools.img", 1)?,
        theirs("dracut", "dracut.img", 2)?,
    ];
    // The first boot makes /etc and /var, and seals what is to be sealed.
    once(&ways[0], &place, &images.key)?;
    let mut samples = <[Samples; 3]>::default();
    for _ in 0..bench.times {
        for (way, samples) in ways.iter().zip(&mut samples) {
            let took = once(way, &place, &images.key)?;
            println!("  {}: {:.2} s", way.name, took.as_secs_f64());
            samples.take_wall(took);
        }
    }
    let [ours, tools, dracut] = samples;
    let emulated = matches!(Accelerator::probe(), Accelerator::Tcg);
    for (whats, peer) in [
        (
            [
                "boot, from the initramfs's start to systemd's",
                "boot, from the initramfs's start to systemd's, under software emulation",
            ],
            ("Debian's initramfs-tools", tools),
        ),
        (
            [
                "the same boot, against dracut's",
                "the same boot, against dracut's, under software emulation",
            ],
            ("dracut, for any machine", dracut),
        ),
    ] {
        report.add(Row {
            what: whats[usize::from(emulated)],
            ours: ours.clone(),
            peer: Some(peer),
            targets: vec![Target::Wall(0.3)],
        });
    }
    report.leave_out(
        "early boot: under 100 ms of its own CPU time, module init and device waits apart",
        "early boot does not say what it used",
    );
    super::remove(&place)
}

impl Bench {
    /// A disk with the tree, installed by us, and what its boot partition holds.
    fn installed(&self, tree: &Tree, place: &Path) -> Result<Way> {
        let store = place.join("store");
        run::output(
            self.ours(&store)
                .args(["build", "--tag", NAME, "--rootfs"])
                .arg(&tree.path),
        )?;
        let disk = place.join("installed.img");
        run::output(
            self.ours(&store)
                .args(["install", "to-disk"])
                .arg(&disk)
                .arg(format!("--image={NAME}")),
        )?;
        let files = place.join("boot-partition");
        fs::create_dir(&files).with_context(|| format!("creating {}", files.display()))?;
        let partition = story::boot_partition(&disk)?;
        for directory in ["loader/entries", "EFI/bedplate"] {
            run::output(
                Command::new("mcopy")
                    .args(["-s", "-i", &partition, &format!("::{directory}")])
                    .arg(&files),
            )?;
        }
        let entry = fs::read_to_string(only(&files.join("entries"), "bedplate-")?)
            .context("reading the boot entry")?;
        let options = entry
            .lines()
            .find_map(|line| line.strip_prefix("options"))
            .context("the boot entry has no options")?;
        let boots = files.join("bedplate");
        Ok(Way {
            name: "bedplate",
            kernel: only(&boots, "vmlinuz-")?,
            initramfs: only(&boots, "initramfs-")?,
            disk,
            arguments: options.trim().to_owned(),
            systemds: 1,
        })
    }
}

/// The one file of a directory whose name begins so.
fn only(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in
        fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?
    {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    match (found.pop(), found.pop()) {
        (Some(path), None) => Ok(path),
        _ => bail!("{} has not one {prefix}…", directory.display()),
    }
}

/// Makes the others' initramfs for a tree, or opens those that are there.
fn peer_initramfs(tree: &Tree) -> Result<PathBuf> {
    let mut hasher = Sha256::new();
    hasher.update(PEERS);
    // A tree is called by the hash of what it was made of.
    hasher.update(
        tree.path
            .file_name()
            .context("a tree has a name")?
            .as_encoded_bytes(),
    );
    let hash = hasher.finalize();
    let place = workspace::target(&format!(
        "bench/initramfs-{:02x}{:02x}{:02x}",
        hash[0], hash[1], hash[2]
    ));
    if place.join("dracut.img").exists() {
        return Ok(place);
    }
    println!("  making the initramfs of initramfs-tools and dracut (a minute or two) …");
    let scratch = tempfile::tempdir().context("making a directory")?;
    fs::create_dir_all(&place).with_context(|| format!("creating {}", place.display()))?;
    let path = fs::canonicalize(&tree.path).context("finding the tree")?;
    let mut make = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--mount-proc"])
        .args(["sh", "-c", PEERS, "peer-initramfs"])
        .args([&path, scratch.path()])
        .args(apt_sources::reaching().iter().flat_map(|line| ["-o", line]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("starting unshare")?;
    let made = make.stdout.take().context("it has no output")?;
    let unpacked = run::passing(
        Command::new("tar")
            .args(["--extract", "--directory"])
            .arg(&place)
            .stdin(made),
    );
    let status = make.wait().context("waiting for it")?;
    ensure!(
        status.success(),
        "the initramfs of initramfs-tools and dracut could not be made: {status}"
    );
    unpacked?;
    Ok(place)
}

/// Boots once, and says how long it was from one message to the other.
fn once(way: &Way, place: &Path, key: &KeyPair) -> Result<Duration> {
    let serial_log = place.join(format!("{}.log", way.name));
    let engine = Accelerator::probe().kernel_arguments().join(" ");
    let mut machine = Machine::start(&MachineOptions {
        boot: Boot::Kernel {
            kernel: way.kernel.clone(),
            initramfs: Some(way.initramfs.clone()),
            arguments: format!("{} {ARGUMENTS} {engine}", way.arguments),
        },
        disk: way.disk.clone(),
        carried: None,
        watchdog: false,
        serial_log: serial_log.clone(),
        memory: 1024,
        processors: 2,
        registry_port: None,
        key: key.clone(),
    })?;
    let mut position = 0;
    let mut said = String::new();
    for _ in 0..way.systemds {
        machine
            .wait_for_serial(END, position)
            .with_context(|| machine.serial_tail(20))?;
        let bytes =
            fs::read(&serial_log).with_context(|| format!("reading {}", serial_log.display()))?;
        said = same_length(&bytes);
        position += said[position..].find(END).unwrap_or_default() + END.len();
    }
    drop(machine);
    // The end of the line may be missing, not its beginning, which has the time.
    let begin = said
        .find(BEGIN)
        .context("the kernel started no initramfs")?;
    let took = stamp(&said, position - END.len())? - stamp(&said, begin)?;
    Ok(Duration::from_secs_f64(took))
}

/// The log as text of the same length: what is no ASCII stands for itself nowhere.
fn same_length(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| {
            if byte.is_ascii() {
                char::from(*byte)
            } else {
                '?'
            }
        })
        .collect()
}

/// The kernel's time, in seconds, of the line that `at` is in.
fn stamp(log: &str, at: usize) -> Result<f64> {
    let line = log[..at].rsplit('\n').next().unwrap_or_default();
    line.split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .and_then(|(time, _)| time.trim().parse().ok())
        .with_context(|| format!("the line {line:?} has no time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_message_stands_before_it() {
        let log = "x\n[    1.500000] Run /init as init process\n[    4.25] systemd[1]: y running";
        let at = log.find(BEGIN).unwrap();
        assert!((stamp(log, at).unwrap() - 1.5).abs() < 1e-9);
        assert!((stamp(log, log.len()).unwrap() - 4.25).abs() < 1e-9);
    }
}
