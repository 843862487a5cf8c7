//! `cargo xtask vm`: tests that need a machine of their own.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use testkit::qemu::{Accelerator, Boot, Machine, MachineOptions, REGISTRY};

use crate::images::{Images, Tree};
use crate::story::suite::Plays;
use crate::story::{self, Firmware, Voice};
use crate::{packages, run, wants_help, workspace};

const HELP: &str = "\
Usage: cargo xtask vm smoke [--bios] [--keep]
       cargo xtask vm heal [--bios]
       cargo xtask vm suite [NAME…]
       cargo xtask vm verb [CASE…]
       cargo xtask vm boot

smoke   the demo's story with few words and the same asserts: install, boot, upgrade, reboot, roll back,
        reboot; root digests, kernels, /etc, users and /var are compared. --keep leaves the disk image.
heal    versions that no health check can judge: a kernel that does not load, an initramfs that is none, a
        kernel that panics. Each time the version before has to boot again by itself.
        With --bios, a BIOS and GRUB boot the machine, and not UEFI and systemd-boot.
suite   what machines go through, two at a time; without names everything that a test run plays. `suite list`
        lists the names.
verb    `bedplate vm`: scripts, shells and failing boots of both versions' images, by nobody in particular.
        The cases: script second ssh panic early limit signals unbuilt.
boot    boots a Debian tree in QEMU without Bedplate: proves the test bench itself (ssh, the one server
        in the guest's network, a reboot).
";

/// `cargo xtask vm`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    if arguments.is_empty() || wants_help(arguments, HELP) {
        if arguments.is_empty() {
            print!("{HELP}");
        }
        return Ok(());
    }
    match arguments {
        ["smoke"] => smoke(false, Firmware::Uefi),
        ["smoke", "--keep"] => smoke(true, Firmware::Uefi),
        ["smoke", "--bios"] => smoke(false, Firmware::Bios),
        ["smoke", "--bios", "--keep"] => smoke(true, Firmware::Bios),
        ["heal"] => heal(Firmware::Uefi),
        ["heal", "--bios"] => heal(Firmware::Bios),
        ["suite", "list"] => {
            print!("{}", story::suite::list());
            Ok(())
        }
        ["suite", names @ ..] => story::suite::run(names, Plays::Sample),
        ["verb", cases @ ..] => crate::vm_verb::run(cases),
        ["boot"] => boot(),
        other => bail!(
            "`vm {}` is unknown; see `cargo xtask vm --help`",
            other.join(" ")
        ),
    }
}

/// The whole way, with asserts.
pub(crate) fn smoke(keep: bool, firmware: Firmware) -> Result<()> {
    story::require_packages()?;
    story::tell(Voice::Brief, keep, firmware)
}

/// Versions that do not get as far as their health checks.
pub(crate) fn heal(firmware: Firmware) -> Result<()> {
    story::require_packages()?;
    story::heal(firmware)
}

/// Boots version 1 by QEMU's own loader, from an ordinary ext4 file system.
fn boot() -> Result<()> {
    packages::require(&[packages::IMAGES, packages::namespace(), packages::MACHINE])?;
    let images = Images::open_or_make()?;
    let scratch = workspace::target("vm");
    fs::create_dir_all(&scratch).with_context(|| format!("creating {}", scratch.display()))?;
    let disk = scratch.join("boot.img");
    make_ext4(&images.first, &disk)?;
    println!("engine: {}", Accelerator::probe());

    let port = answering_server()?;
    let kernel = images.first.kernel()?;
    let started = Instant::now();
    let mut machine = Machine::start(&MachineOptions {
        boot: Boot::Kernel {
            kernel: images.first.path.join(format!("boot/vmlinuz-{kernel}")),
            initramfs: None,
            arguments: "root=/dev/nvme0n1 rw console=ttyS0 panic=-1 quiet mitigations=off"
                .to_owned(),
        },
        disk: disk.clone(),
        carried: None,
        watchdog: false,
        serial_log: scratch.join("boot.log"),
        memory: 1024,
        processors: 2,
        registry_port: Some(port),
        key: images.key.clone(),
    })?;
    let told = exercise(&mut machine, &kernel);
    if told.is_err() {
        eprintln!("{}", machine.serial_tail(60));
    }
    told?;
    drop(machine);
    fs::remove_file(&disk).with_context(|| format!("removing {}", disk.display()))?;
    println!("the test bench works ({} s)", started.elapsed().as_secs());
    Ok(())
}

fn exercise(machine: &mut Machine, kernel: &str) -> Result<()> {
    println!("up after {:.1} s", machine.wait_until_up()?.as_secs_f32());
    let running = machine.check("uname -r")?;
    ensure!(
        running.trim() == kernel,
        "kernel {running} runs, not {kernel}"
    );
    let failing = machine.run("echo one; echo two >&2; exit 7")?;
    ensure!(
        (failing.code, &*failing.stdout, &*failing.stderr) == (7, "one\n", "two\n"),
        "a command's results came back as {failing:?}"
    );
    // Three times: each request needs a connection of its own.
    let (host, port) = REGISTRY
        .split_once(':')
        .context("the registry has no port")?;
    for _ in 0..3 {
        let answer = machine.check(&format!(
            "python3 -c \"import socket; s = socket.create_connection(('{host}', {port}), 20); print(s.recv(99).decode())\""
        ))?;
        ensure!(answer.trim() == "here", "the server answered {answer:?}");
    }
    let outside = machine
        .run("python3 -c \"import socket; socket.create_connection(('10.0.2.2', 22), 3)\"")?;
    ensure!(outside.code != 0, "the guest reached the host");
    println!("up again after {:.1} s", machine.reboot()?.as_secs_f32());
    machine.check("true")?;
    Ok(())
}

/// A server that greets everyone, on a port of the loopback.
fn answering_server() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
    let port = listener.local_addr().context("listening")?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Whoever hangs up early misses the greeting.
            let _ = stream.write_all(b"here\n");
            let _ = BufReader::new(stream).read_line(&mut String::new());
        }
    });
    Ok(port)
}

/// Makes a disk that is one ext4 with a tree.
pub(crate) fn make_ext4(tree: &Tree, disk: &Path) -> Result<()> {
    if disk.exists() {
        fs::remove_file(disk).with_context(|| format!("removing {}", disk.display()))?;
    }
    run::output(
        Tree::reader(Path::new("mkfs.ext4"))
            .args(["-q", "-b", "4096", "-d"])
            .arg(&tree.path)
            .arg(disk)
            .arg("1G"),
    )?;
    Ok(())
}
