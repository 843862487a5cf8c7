//! `cargo xtask vm verb`: what `bedplate vm` promises, each promise by a real boot.
//!
//! ```text
//! builder (root, or who made the trees) ─ build ─ push ─→ registry ─→ nobody in particular: bedplate vm …
//! ```
//!
//! Everything is looked at from outside, as a CI job would: exit codes, standard output, standard error.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use testkit::qemu::Accelerator;

use crate::images::{self, Images};
use crate::registry::Registry;
use crate::story::{self, people::Person};
use crate::{programs, run, workspace};

/// The exit code of the verb's own failures.
const FAILED: i32 = 125;

/// Looks at the kernel and at a service, and tells them apart by where it says so.
const SCRIPT: &str = "\
echo \"kernel $(uname -r), user $(id -u), arguments: $1|$2\"
systemctl is-active ssh
echo 'the lathe is missing' >&2
exit 7
";

/// How long a failed boot may take to be noticed from the moment that it fails, on a slow engine.
const NOTICED: Duration = Duration::from_secs(20);

/// Which images there are, and who boots them.
struct Bench {
    builder: Person,
    nobody: Person,
    registry: Registry,
}

/// Tries one promise.
type Case = fn(&Bench, &Images) -> Result<()>;

/// Each promise: its word on the command line, what it says, and how it is tried.
const CASES: [(&str, &str, Case); 8] = [
    ("script", "a script's results are the verb's", scripts),
    (
        "second",
        "a kernel of another version, by QEMU alone",
        second_version,
    ),
    ("ssh", "a command by ssh", ssh),
    ("panic", "a panic is noticed", panic),
    ("early", "early boot's failure is noticed", early_boot),
    (
        "limit",
        "the time limit, and a disk that is kept",
        time_limit,
    ),
    ("signals", "signals leave nothing behind", signals),
    (
        "unbuilt",
        "an image that was not built is refused",
        not_built,
    ),
];

/// Tries everything, or the cases that are named.
pub(crate) fn run(wanted: &[&str]) -> Result<()> {
    if let Some(unknown) = wanted
        .iter()
        .find(|word| CASES.iter().all(|(known, ..)| known != *word))
    {
        bail!("there is no case `{unknown}`");
    }
    story::require_packages()?;
    let bedplate = programs::build()?;
    let images = Images::open_or_make()?;
    let place = workspace::target("vm/verb");
    images::remove(&place)?;
    fs::create_dir_all(&place).with_context(|| format!("creating {}", place.display()))?;
    let builder = Person::builder(&bedplate, &place)?;
    let nobody = Person::installer(&bedplate, &place)?;
    let registry = Registry::start(
        &mut builder.bedplate::<&str>(&[]),
        &place.join("registry"),
        &place.join("registry.log"),
    )?;
    let bench = Bench {
        builder,
        nobody,
        registry,
    };
    println!("engine: {}", Accelerator::probe());
    for (version, tree) in [("1", &images.first), ("2", &images.second)] {
        let name = format!("demo/os:{version}");
        let rootfs = tree.path.display().to_string();
        run::output(
            &mut bench
                .builder
                .bedplate(&["build", "--rootfs", &rootfs, "-t", &name]),
        )?;
        run::output(&mut bench.builder.bedplate(&[
            "push",
            "--tls-verify=false",
            &name,
            &bench.remote(version),
        ]))?;
    }
    for (word, what, case) in CASES {
        if !wanted.is_empty() && !wanted.contains(&word) {
            continue;
        }
        let begun = Instant::now();
        case(&bench, &images).with_context(|| what.to_owned())?;
        println!("{what}: {} s", begun.elapsed().as_secs());
    }
    drop(bench);
    images::remove(&place)
}

impl Bench {
    /// The name of a version in the registry.
    fn remote(&self, version: &str) -> String {
        format!("127.0.0.1:{}/demo/os:{version}", self.registry.port())
    }

    /// `bedplate vm` by nobody, with a script on its standard input.
    fn vm(&self, version: &str, arguments: &[&str], input: &str) -> Result<Output> {
        let mut child = self.start(version, arguments)?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        // A verb that fails first does not read it.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().context("waiting for bedplate vm")
    }

    fn start(&self, version: &str, arguments: &[&str]) -> Result<Child> {
        let name = self.remote(version);
        let mut all = vec!["vm", "--tls-verify=false", &name];
        all.extend(arguments);
        self.nobody
            .bedplate(&all)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting bedplate vm")
    }

    /// What runs left behind.
    fn left(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.nobody.place).context("listing nobody's place")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(".bedplate-") {
                names.push(name);
            }
        }
        Ok(names)
    }
}

/// The whole way: from the registry, sealed, firmware and loader, as nobody.
fn scripts(bench: &Bench, images: &Images) -> Result<()> {
    let arguments = [
        "--test",
        "-",
        "--firmware",
        "uefi",
        "--",
        "one",
        "two words",
    ];
    let output = bench.vm("1", &arguments, SCRIPT)?;
    expect(&output, 7)?;
    let kernel = images.first.kernel()?;
    let expected = format!("kernel {kernel}, user 0, arguments: one|two words\nactive\n");
    ensure!(stdout(&output) == expected, "{}", told(&output));
    ensure!(
        stderr(&output) == "the lathe is missing\n",
        "{}",
        told(&output)
    );
    ensure!(bench.left()?.is_empty(), "{:?} is left", bench.left()?);
    Ok(())
}

fn second_version(bench: &Bench, images: &Images) -> Result<()> {
    let arguments = ["--test", "-", "--firmware", "none", "--allow-unsealed"];
    // More than a pipe holds, to both sides; what runs on is not waited for.
    let script = "#!/usr/bin/python3\n\
        import os, subprocess, sys\n\
        print(os.uname().release, 'x' * 300000)\n\
        print('y' * 300000, file=sys.stderr)\n\
        subprocess.Popen(['sleep', '600'])\n";
    let output = bench.vm("2", &arguments, script)?;
    expect(&output, 0)?;
    let kernel = images.second.kernel()?;
    ensure!(
        stdout(&output) == format!("{kernel} {}\n", "x".repeat(300_000)),
        "not what was printed: {} bytes",
        output.stdout.len()
    );
    ensure!(
        stderr(&output) == format!("{}\n", "y".repeat(300_000)),
        "not what was printed: {} bytes",
        output.stderr.len()
    );
    Ok(())
}

fn ssh(bench: &Bench, _: &Images) -> Result<()> {
    let arguments = ["--ssh", "--allow-unsealed", "--", "cat; id -un; exit 9"];
    let output = bench.vm("1", &arguments, "through ssh\n")?;
    expect(&output, 9)?;
    ensure!(
        stdout(&output) == "through ssh\nroot\n",
        "{}",
        told(&output)
    );
    Ok(())
}

fn panic(bench: &Bench, _: &Images) -> Result<()> {
    let arguments = ["--test", "-", "--allow-unsealed", "--karg", "panic=600"];
    let child = bench.start("1", &arguments)?;
    let (output, late) = until_told(child, "echo panicking; echo c >/proc/sysrq-trigger\n")?;
    expect(&output, FAILED)?;
    let said = stderr(&output);
    for word in [
        "error: the machine's kernel panicked: Kernel panic - not syncing: sysrq triggered crash",
        "--- the end of the serial console",
    ] {
        ensure!(said.contains(word), "{}", told(&output));
    }
    ensure!(late < NOTICED, "noticed after {} s", late.as_secs());
    Ok(())
}

/// Gives a script to a run, and tells how long the run went on after the script's first words.
fn until_told(mut child: Child, script: &str) -> Result<(Output, Duration)> {
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(script.as_bytes()).context("writing")?;
    drop(stdin);
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().context("no standard output")?;
    stdout
        .read_exact(&mut first)
        .context("the script said nothing")?;
    let begun = Instant::now();
    let output = child.wait_with_output().context("waiting")?;
    Ok((output, begun.elapsed()))
}

fn early_boot(bench: &Bench, _: &Images) -> Result<()> {
    let arguments = [
        "--test",
        "-",
        "--allow-unsealed",
        "--karg",
        "init=/usr/bin/lathe",
    ];
    let output = bench.vm("1", &arguments, "exit 0\n")?;
    expect(&output, FAILED)?;
    ensure!(
        stderr(&output).contains("early boot: cannot start /usr/bin/lathe"),
        "{}",
        told(&output)
    );
    Ok(())
}

fn time_limit(bench: &Bench, _: &Images) -> Result<()> {
    let disk = bench.nobody.place.join("kept.img");
    let disk = disk.display().to_string();
    let arguments = ["--test", "-", "--allow-unsealed", "--keep", &disk];
    let output = bench.vm("1", &arguments, "echo kept >/var/lib/kept; echo done\n")?;
    expect(&output, 0)?;
    ensure!(stdout(&output) == "done\n", "{}", told(&output));
    // Switched off in good order: nothing is to be recovered.
    let root = format!("{disk}?offset={}", root_offset(Path::new(&disk))?);
    let kept = run::output(Command::new("/usr/sbin/debugfs").args([
        "-R",
        "cat /bedplate/var/lib/kept",
        &root,
    ]))?;
    ensure!(kept == "kept\n", "the disk has {kept:?}");
    let again = bench.vm("1", &arguments, "exit 0\n")?;
    expect(&again, FAILED)?;
    ensure!(stderr(&again).contains("already holds"), "{}", told(&again));
    fs::remove_file(&disk).context("removing the disk")?;

    let arguments = ["--test", "-", "--allow-unsealed", "--timeout", "9s"];
    let output = bench.vm("1", &arguments, "sleep 3600\n")?;
    expect(&output, FAILED)?;
    ensure!(
        stderr(&output).contains("the time limit passed"),
        "{}",
        told(&output)
    );
    Ok(())
}

/// Where the root begins: the partition whose type says so.
fn root_offset(disk: &Path) -> Result<u64> {
    const ENTRIES: u64 = 1024;
    const ROOT_TYPE: [u8; 4] = 0x4f68_bce3_u32.to_le_bytes();
    let file = fs::File::open(disk).with_context(|| format!("opening {}", disk.display()))?;
    for number in 0..128 {
        let mut entry = [0; 128];
        file.read_exact_at(&mut entry, ENTRIES + 128 * number)
            .context("reading the partition table")?;
        if entry.starts_with(&ROOT_TYPE) {
            let first: [u8; 8] = entry[32..40].try_into().context("half a number")?;
            return Ok(u64::from_le_bytes(first) * 512);
        }
    }
    bail!("the disk has no root")
}

fn signals(bench: &Bench, _: &Images) -> Result<()> {
    // SIGINT takes the same way, but shells start what runs in the background without it.
    for (signal, leaves) in [("TERM", false), ("KILL", true)] {
        let mut child = bench.start("1", &["--test", "/dev/null", "--allow-unsealed"])?;
        let qemu = qemu_of(child.id())?;
        run::output(Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]))?;
        let status = child.wait().context("waiting for bedplate vm")?;
        ensure!(status.signal().is_some(), "after {signal}: {status}");
        let begun = Instant::now();
        while Path::new(&format!("/proc/{qemu}")).exists() {
            ensure!(
                begun.elapsed() < Duration::from_secs(5),
                "QEMU survives {signal}"
            );
            thread::sleep(Duration::from_millis(50));
        }
        let left = bench.left()?;
        ensure!(left.is_empty() != leaves, "after {signal}: {left:?}");
    }
    for name in bench.left()? {
        fs::remove_dir_all(bench.nobody.place.join(name)).context("tidying up")?;
    }
    Ok(())
}

/// Waits until a process has a QEMU of its own, and returns its number.
fn qemu_of(parent: u32) -> Result<u32> {
    let children = format!("/proc/{parent}/task/{parent}/children");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(120) {
        let listed = fs::read_to_string(&children).unwrap_or_default();
        for child in listed.split_whitespace() {
            let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            // The probe for KVM has no disk.
            if line.starts_with("qemu") && line.contains("nvme") {
                return child.parse().context("reading a process number");
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("no QEMU was started")
}

fn not_built(bench: &Bench, _: &Images) -> Result<()> {
    let tree = bench.nobody.place.join("plain");
    fs::create_dir_all(tree.join("etc")).context("making a tree")?;
    let tree = tree.display().to_string();
    run::output(&mut bench.nobody.bedplate(&["commit", &tree, "plain:1"]))?;
    let output = bench
        .nobody
        .bedplate(&["vm", "plain:1", "--test", "/dev/null"])
        .output()
        .context("starting bedplate vm")?;
    expect(&output, FAILED)?;
    ensure!(
        stderr(&output).contains("bedplate build"),
        "{}",
        told(&output)
    );
    Ok(())
}

fn expect(output: &Output, code: i32) -> Result<()> {
    ensure!(
        output.status.code() == Some(code),
        "expected exit code {code}: {}",
        told(output)
    );
    Ok(())
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn told(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        stdout(output),
        stderr(output)
    )
}
