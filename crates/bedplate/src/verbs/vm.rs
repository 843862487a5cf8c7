//! `vm`: boots an image in a virtual machine, to look at it or to test it.
//!
//! ```text
//! image (pulled where it is missing) ─ install ─→ a disk in a scratch directory ─ QEMU ─→ console, shell, script
//! ```

use std::fs;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bedplate_boot::guest::{CONSOLE, FLAG, FromGuest, TO_GUEST_MAX, ToGuest};
use bedplate_deploy::install::{self, Identifiers, InstallOptions, InstallPlan};
use bedplate_model::ImageSelector;
use bedplate_store::{Found, Store};
use bedplate_sys::signals;
use bedplate_transport::PullOptions;
use bedplate_vm::{Accelerator, Firmware};
use rustix::termios::{OptionalActions, Termios};

use super::install::Drawn;
use crate::Answer;
use crate::blame::{Blame, Refusal};
use crate::cli::{FirmwareArg, Vm};
use crate::context::{Context, find_image};
use crate::render::progress::{Progress, TransferProgress};
use crate::render::{bytes, note};
use crate::vm::{Keys, Machine, MachineOptions, Scratch, Start, VmError};

/// How long a test may take, unless its author says otherwise: a boot takes a minute under software emulation.
const TEST_LIMIT: Duration = Duration::from_secs(10 * 60);
/// How much of the serial log a failure shows.
const TAIL: usize = 40;
/// What an image is called that has no name.
const NAMELESS: &str = "localhost/bedplate-vm:latest";

/// What the machine is booted for.
enum Purpose {
    Console,
    Shell,
    Test(Vec<u8>),
}

pub(super) fn run(arguments: &Vm, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let begun = Instant::now();
    let purpose = purpose(arguments)?;
    let firmware = match arguments.firmware {
        FirmwareArg::None => None,
        FirmwareArg::Auto => Firmware::find().ok(),
        FirmwareArg::Uefi => Some(Firmware::find().map_err(|error| Refusal {
            blame: Blame::Host,
            message: error.to_string(),
            hint: Some("--firmware none does without".into()),
        })?),
    };
    let limit = match (arguments.timeout, &purpose) {
        (Some(seconds), _) => Some(Duration::from_secs(seconds)),
        (None, Purpose::Test(_)) => Some(TEST_LIMIT),
        (None, Purpose::Console | Purpose::Shell) => None,
    };
    let (store, found) = image(arguments, context)?;

    // From here on there is something to put away.
    signals::catch_endings();
    let made = make_disk(arguments, &store, &found, &purpose, firmware, context)?;
    let options = MachineOptions {
        start: made.start,
        disk: made.disk,
        log: match &arguments.log {
            Some(path) => std::path::absolute(path).context("cannot find the log's place")?,
            None => made.scratch.file("serial.log"),
        },
        console: matches!(purpose, Purpose::Console),
        memory: u32::try_from(arguments.memory >> 20).unwrap_or(u32::MAX),
        processors: arguments.cpus.get(),
        ports: arguments.ports.clone(),
        network: arguments.network,
        deadline: limit.map(|limit| begun + limit),
    };
    let engine = Accelerator::probe();
    let progress = match purpose {
        Purpose::Console => Progress::new(true),
        Purpose::Shell | Purpose::Test(_) => Progress::new(context.quiet),
    };
    progress.say(format!("booting {}, engine: {engine}", arguments.image));
    let terminal = Terminal::look();
    let mut machine = Machine::start(&options, &made.scratch)?;
    let done = match purpose {
        Purpose::Console => {
            if io::stdin().is_terminal() {
                note("Ctrl-A X ends the machine");
            }
            machine.wait_for_end().map(|()| 0).map_err(Into::into)
        }
        Purpose::Shell => shell(&mut machine, arguments, &made.scratch, &progress),
        Purpose::Test(script) => test(&mut machine, script, arguments, context, &progress),
    };
    progress.finish();
    let done = done.and_then(|code| {
        if arguments.keep.is_some() && !options.console {
            machine.switch_off()?;
        }
        Ok(code)
    });
    if let Err(error) = &done
        && !options.console
        && !matches!(error.downcast_ref(), Some(VmError::Interrupted(_)))
    {
        tell_end(&machine, arguments);
    }
    drop(machine);
    terminal.restore();
    Ok(Answer::Code(done?))
}

/// Returns the signal that ended a run, where one did.
pub(crate) fn interrupted(error: &anyhow::Error) -> Option<i32> {
    match error.downcast_ref() {
        Some(VmError::Interrupted(signal)) => Some(*signal),
        _ => None,
    }
}

/// Finds out what is wanted, before anything is made.
fn purpose(arguments: &Vm) -> anyhow::Result<Purpose> {
    if let Some(path) = &arguments.test {
        return Ok(Purpose::Test(read_script(path)?));
    }
    if arguments.ssh {
        return Ok(Purpose::Shell);
    }
    if !arguments.words.is_empty() {
        return Err(Refusal::usage(
            "what stands behind `--` is for --ssh or --test",
            "`bedplate vm REF --ssh -- COMMAND` runs a command in the machine",
        )
        .into());
    }
    if arguments.console || (io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Ok(Purpose::Console);
    }
    Err(Refusal::usage(
        "there is no terminal to show the console on",
        "--test SCRIPT and --ssh -- COMMAND need none; --console shows the console all the same",
    )
    .into())
}

fn read_script(path: &Path) -> anyhow::Result<Vec<u8>> {
    let attempted = || format!("cannot read the script {}", path.display());
    let mut script = Vec::new();
    let max = u64::from(TO_GUEST_MAX);
    if path.as_os_str() == "-" {
        io::stdin().lock().take(max + 1).read_to_end(&mut script)
    } else {
        fs::File::open(path).and_then(|file| file.take(max + 1).read_to_end(&mut script))
    }
    .with_context(attempted)?;
    if script.len() as u64 > max {
        return Err(Refusal::usage(
            format!(
                "the script {} is longer than {}",
                path.display(),
                bytes(max)
            ),
            "put what it needs into the image, or have it fetch that with --network",
        )
        .into());
    }
    Ok(script)
}

/// Finds the image in the store, or fetches it.
fn image(arguments: &Vm, context: &Context<'_>) -> anyhow::Result<(Store, Found)> {
    let remote = match &arguments.image {
        ImageSelector::Name(revision)
            if revision.back().is_none() && !revision.name().is_local() =>
        {
            Some(revision.name())
        }
        _ => None,
    };
    let Some(name) = remote else {
        let store = context.store()?;
        let found = find_image(&store, &arguments.image)?;
        return Ok((store, found));
    };
    let store = context.writable_store()?;
    let look = || {
        store
            .find(&arguments.image)
            .with_context(|| format!("cannot look up {name}"))
    };
    if let Some(found) = look()? {
        return Ok((store, found));
    }
    let client = context.client(&arguments.remote)?;
    let progress = Progress::new(context.quiet);
    client
        .pull(
            &store,
            name,
            &PullOptions::new(context.host.now()),
            &TransferProgress::new(&progress),
        )
        .with_context(|| format!("cannot pull {name}"))?;
    progress.finish();
    let found = find_image(&store, &arguments.image)?;
    Ok((store, found))
}

/// A disk, what starts it, and where everything lies.
struct Made {
    disk: PathBuf,
    start: Start,
    scratch: Scratch,
}

fn make_disk(
    arguments: &Vm,
    store: &Store,
    found: &Found,
    purpose: &Purpose,
    firmware: Option<Firmware>,
    context: &Context<'_>,
) -> anyhow::Result<Made> {
    let attempted = || format!("cannot make a machine of {}", arguments.image);
    let flag = match purpose {
        Purpose::Console => format!("{FLAG}={CONSOLE}"),
        Purpose::Shell | Purpose::Test(_) => FLAG.to_owned(),
    };
    let mut kargs = vec!["console=ttyS0".to_owned()];
    let for_engine = Accelerator::probe().kernel_arguments();
    kargs.extend(for_engine.iter().map(|&argument| argument.to_owned()));
    kargs.extend(arguments.kargs.iter().cloned());
    kargs.push(flag);
    let options = InstallOptions {
        firmware: install::Firmware::Uefi,
        size: arguments.disk,
        esp_size: None,
        upgrade_from: match &found.name {
            Some(_) => None,
            None => Some(NAMELESS.parse().context("cannot name the image")?),
        },
        kargs,
        allow_unsealed: arguments.allow_unsealed,
        wipe: false,
        identifiers: Identifiers::random(),
        now: context.host.now(),
        source_date: None,
    };
    let plan = |path: &Path| {
        InstallPlan::new(store, &arguments.image, path, &options).with_context(attempted)
    };
    // What it takes is known only with a plan, and a plan wants a place.
    let keep = match &arguments.keep {
        Some(path) => Some(std::path::absolute(path).context("cannot find the disk's place")?),
        None => None,
    };
    let nowhere = store.path().join(".bedplate-vm");
    let needed = plan(keep.as_deref().unwrap_or(&nowhere))?.space();
    let scratch = place(store, keep.as_deref(), needed, context)?;
    let disk = keep.unwrap_or_else(|| scratch.file("disk.img"));
    let plan = plan(&disk)?;
    let start = if let Some(firmware) = firmware {
        Start::Uefi(firmware)
    } else {
        let direct = plan.direct();
        let [kernel, initramfs] = ["vmlinuz", "initramfs.img"].map(|name| scratch.file(name));
        fs::write(&kernel, direct.kernel).context("cannot write the kernel")?;
        fs::write(&initramfs, direct.initramfs).context("cannot write the initramfs")?;
        Start::Direct {
            kernel,
            initramfs,
            arguments: direct.arguments,
        }
    };
    let mut drawn = Drawn::new(context.quiet);
    let privileged = rustix::process::geteuid().is_root();
    let executed = plan.execute(privileged, &mut drawn);
    drawn.progress.finish();
    if let Some(signal) = signals::ending() {
        if arguments.keep.is_some() {
            let mut partial = disk.into_os_string();
            partial.push(".part");
            // It is there only where the signal ended a tool of the install, too.
            let _ = fs::remove_file(partial);
        }
        return Err(VmError::Interrupted(signal).into());
    }
    executed.with_context(attempted)?;
    Ok(Made {
        disk,
        start,
        scratch,
    })
}

/// Finds a place for the disk that has the room, and makes the directory of this run there.
fn place(
    store: &Store,
    keep: Option<&Path>,
    needed: u64,
    context: &Context<'_>,
) -> anyhow::Result<Scratch> {
    let beside = |path: &Path| path.parent().map(Path::to_owned);
    let candidates = match keep {
        Some(disk) => vec![beside(disk)],
        None => vec![
            context.host.variable("TMPDIR"),
            beside(store.path()),
            Some(PathBuf::from("/var/tmp")),
        ],
    };
    let mut refused = String::new();
    for place in candidates.into_iter().flatten() {
        let room = fs::File::open(&place)
            .and_then(bedplate_sys::space::space)
            .map(|space| space.available);
        let why = match room {
            Ok(room) if room < needed => format!("has {}", bytes(room)),
            Ok(_) => match Scratch::begin(&place) {
                Ok(scratch) => return Ok(scratch),
                Err(error) => format!("takes no directory ({error})"),
            },
            Err(error) => format!("cannot be used ({error})"),
        };
        refused.push_str(&format!("; {} {why}", place.display()));
    }
    Err(Refusal {
        blame: Blame::Host,
        message: format!("the machine's disk needs {}{refused}", bytes(needed)),
        hint: Some("TMPDIR names another place".into()),
    }
    .into())
}

/// Waits until the system is up.
fn wait_until_up(machine: &mut Machine) -> anyhow::Result<()> {
    loop {
        if machine.next("the system to come up")? == FromGuest::Up {
            return Ok(());
        }
    }
}

/// Opens a shell, or runs a command, and returns the exit code.
fn shell(
    machine: &mut Machine,
    arguments: &Vm,
    scratch: &Scratch,
    progress: &Progress,
) -> anyhow::Result<u8> {
    let keys = Keys::make(scratch)?;
    wait_until_up(machine)?;
    for frame in keys.frames()? {
        machine.tell(&frame)?;
    }
    machine.tell(&ToGuest::Shell)?;
    while machine.next("a shell in the machine")? != FromGuest::Ready {}
    progress.finish();
    let mut ssh = keys
        .ssh(&arguments.words)?
        .spawn()
        .map_err(|error| crate::vm::no_ssh("ssh", &error))?;
    let status = machine.wait_for(&mut ssh, "ssh to end")?;
    Ok(code(status))
}

fn code(status: ExitStatus) -> u8 {
    // Without a code, a signal ended it, and ssh says that of its own as 255, too.
    status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

/// Runs the script, and returns its exit code.
fn test(
    machine: &mut Machine,
    script: Vec<u8>,
    arguments: &Vm,
    context: &mut Context<'_>,
    progress: &Progress,
) -> anyhow::Result<u8> {
    wait_until_up(machine)?;
    progress.finish();
    for word in &arguments.words {
        machine.tell(&ToGuest::Argument(word.as_bytes().to_vec()))?;
    }
    machine.tell(&ToGuest::Script(script))?;
    let mut listened_to = true;
    loop {
        match machine.next("the script to end")? {
            FromGuest::Output(text) if listened_to => {
                let written = context
                    .out
                    .write_all(&text)
                    .and_then(|()| context.out.flush());
                match written {
                    Ok(()) => {}
                    // Who reads it had enough; how the script ends still counts.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => listened_to = false,
                    Err(error) => return Err(error.into()),
                }
            }
            FromGuest::Output(_) => {}
            // Where nobody listens there, the result still counts.
            FromGuest::Error(text) => drop(io::stderr().lock().write_all(&text)),
            FromGuest::Ended(code) => return Ok(code),
            FromGuest::Early | FromGuest::Up | FromGuest::Ready | FromGuest::Failed(_) => {}
        }
    }
}

/// Shows how a machine ended that did not do what it should.
fn tell_end(machine: &Machine, arguments: &Vm) {
    let mut stderr = io::stderr().lock();
    let tail = machine.tail(TAIL);
    // Where nobody listens there, the error still has its code.
    let _ = match &arguments.log {
        Some(path) => writeln!(
            stderr,
            "{tail}\n--- the end of the serial console; {} has all of it",
            path.display()
        ),
        None => writeln!(
            stderr,
            "{tail}\n--- the end of the serial console; --log FILE keeps all of it"
        ),
    };
}

/// The terminal as it was before a machine had it.
struct Terminal(Option<Termios>);

impl Terminal {
    fn look() -> Self {
        Self(rustix::termios::tcgetattr(io::stdin()).ok())
    }

    fn restore(self) {
        if let Some(settings) = self.0 {
            // It went, and its settings with it.
            let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Now, &settings);
        }
    }
}
