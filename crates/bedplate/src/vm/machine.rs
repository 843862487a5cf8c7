//! The machine: QEMU with a guest in it, watched until it did what it was started for.
//!
//! Invariant: whatever ends a boot (a panic, early boot's error, firmware that finds nothing, a machine that
//! switches itself off, the time limit, a signal) is noticed while something is awaited, and told.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use bedplate_boot::guest::{CONTROL_PORT, FromGuest, SHELL_PORT, ToGuest};
use bedplate_model::name::shown;
use bedplate_sys::{process, signals};
use bedplate_vm::{Accelerator, Firmware, QEMU, options, serial};

use super::Scratch;
use super::shell::SOCKET;

/// How often process, log and signals are looked at.
const POLL: Duration = Duration::from_millis(100);
/// How long a guest may go on talking after it said that it failed: its last words say why.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long switching off in good order may take: services have 90 s to stop, by systemd's own default.
const SWITCHING_OFF: Duration = Duration::from_secs(120);
/// How long QEMU may take to put its terminal in order.
const ENDING: Duration = Duration::from_secs(2);
/// How much of the log is looked through at once.
const PIECE: u64 = 256 << 10;

/// What starts the kernel.
#[derive(Clone, Debug)]
pub(crate) enum Start {
    /// Firmware, and the loader on the disk.
    Uefi(Firmware),
    /// QEMU itself.
    Direct {
        /// The kernel.
        kernel: PathBuf,
        /// Its initramfs.
        initramfs: PathBuf,
        /// Its command line.
        arguments: String,
    },
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub(crate) struct MachineOptions {
    /// What starts it.
    pub(crate) start: Start,
    /// Its disk: a raw image.
    pub(crate) disk: PathBuf,
    /// Where its serial line is written down.
    pub(crate) log: PathBuf,
    /// Whether the serial line is the terminal's.
    pub(crate) console: bool,
    /// Its memory in MiB.
    pub(crate) memory: u32,
    /// Its processors.
    pub(crate) processors: u32,
    /// Ports of the host's loopback, and where they lead in the guest.
    pub(crate) ports: Vec<(u16, u16)>,
    /// Whether it reaches the network.
    pub(crate) network: bool,
    /// When everything must be over.
    pub(crate) deadline: Option<Instant>,
}

/// A machine that runs.
#[derive(Debug)]
pub(crate) struct Machine {
    qemu: Child,
    /// What QEMU itself says.
    errors: PathBuf,
    log: Log,
    deadline: Option<Instant>,
    control: UnixStream,
    said: Receiver<io::Result<FromGuest>>,
}

impl Machine {
    /// Starts a machine with its further files in `scratch`.
    pub(crate) fn start(options: &MachineOptions, scratch: &Scratch) -> Result<Self, VmError> {
        let failed = |what: &'static str| move |source| VmError::Io { what, source };
        let (control, guests) = UnixStream::pair().map_err(failed("make a socket"))?;
        // QEMU appends; a log of an earlier run would answer for this one.
        File::create(&options.log).map_err(failed("make the serial log"))?;
        let errors = scratch.file("qemu.log");
        let mut qemu = Command::new(QEMU);
        let number = process::leave_open(&mut qemu, &guests);
        qemu.args(arguments(options, scratch, number)?)
            .current_dir(scratch.path())
            .stdin(if options.console {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .stdout(if options.console {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .stderr(File::create(&errors).map_err(failed("make a log"))?);
        process::end_with_parent(&mut qemu);
        let qemu = qemu.spawn().map_err(VmError::Start)?;
        drop(guests);
        let reading = control.try_clone().map_err(failed("share a socket"))?;
        let log = Log::open(&options.log).map_err(failed("read the serial log"))?;
        Ok(Self {
            qemu,
            errors,
            log,
            deadline: options.deadline,
            control,
            said: listen(reading),
        })
    }

    /// Tells the guest something.
    pub(crate) fn tell(&mut self, told: &ToGuest) -> Result<(), VmError> {
        told.write(&mut self.control).map_err(|source| VmError::Io {
            what: "tell the machine something",
            source,
        })
    }

    /// Waits for the next thing that the guest says; what it could not do is an error.
    pub(crate) fn next(&mut self, awaited: &'static str) -> Result<FromGuest, VmError> {
        loop {
            match self.said.recv_timeout(POLL) {
                Ok(Ok(FromGuest::Failed(text))) => {
                    thread::sleep(LAST_WORDS);
                    return Err(VmError::Guest(shown(text.as_bytes())));
                }
                Ok(Ok(frame)) => return Ok(frame),
                Ok(Err(source)) => {
                    return Err(VmError::Io {
                        what: "understand the machine",
                        source,
                    });
                }
                Err(RecvTimeoutError::Timeout) => {}
                // QEMU is ending, or the guest's end of the port is broken: the look tells.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(POLL),
            }
            self.look(awaited)?;
        }
    }

    /// Waits until a program of this host ends that works with the machine.
    pub(crate) fn wait_for(
        &mut self,
        program: &mut Child,
        awaited: &'static str,
    ) -> Result<ExitStatus, VmError> {
        loop {
            match program.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(source) => {
                    return Err(VmError::Io {
                        what: awaited,
                        source,
                    });
                }
            }
            if let Err(error) = self.look(awaited) {
                // Fails only where it ended meanwhile.
                let _ = program.kill();
                let _ = program.wait();
                return Err(error);
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until the machine switches itself off, or somebody ends QEMU.
    pub(crate) fn wait_for_end(&mut self) -> Result<(), VmError> {
        loop {
            match self.look("the machine to end") {
                Ok(()) => thread::sleep(POLL),
                Err(VmError::Ended { status, .. }) if status.success() => return Ok(()),
                // Who watches the console sees it, and may want to look around.
                Err(VmError::Boot(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Has the machine switch itself off in good order, so that its disk is whole.
    pub(crate) fn switch_off(&mut self) -> Result<(), VmError> {
        self.tell(&ToGuest::PowerOff)?;
        let limit = Instant::now() + SWITCHING_OFF;
        self.deadline = Some(self.deadline.map_or(limit, |deadline| deadline.max(limit)));
        self.wait_for_end()
    }

    /// Returns the last lines of the serial line.
    pub(crate) fn tail(&self, lines: usize) -> String {
        serial::tail(&fs::read(&self.log.path).unwrap_or_default(), lines)
    }

    /// Looks whether there is still something to wait for.
    fn look(&mut self, awaited: &'static str) -> Result<(), VmError> {
        if let Some(signal) = signals::ending() {
            return Err(VmError::Interrupted(signal));
        }
        if let Some(failure) = self.log.look() {
            thread::sleep(LAST_WORDS);
            return Err(VmError::Boot(failure));
        }
        let ended = self.qemu.try_wait().map_err(|source| VmError::Io {
            what: "ask after QEMU",
            source,
        })?;
        if let Some(status) = ended {
            let said = fs::read(&self.errors).unwrap_or_default();
            return Err(VmError::Ended {
                status,
                awaited,
                said: shown(said.trim_ascii()),
            });
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(VmError::Timeout { awaited }),
            _ => Ok(()),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Asked first, so that it puts a terminal back in order. All of this fails only where it ended already.
        if let Ok(None) = self.qemu.try_wait() {
            let _ = process::ask_to_end(self.qemu.id());
        }
        let asked = Instant::now();
        while asked.elapsed() < ENDING && matches!(self.qemu.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Reads frames beside everything else. Ends with the socket, and so with QEMU.
fn listen(mut control: UnixStream) -> Receiver<io::Result<FromGuest>> {
    // A guest that talks faster than its words are printed waits.
    let (said, heard) = mpsc::sync_channel(16);
    thread::spawn(move || {
        loop {
            let frame = match FromGuest::read(&mut control) {
                Ok(Some(frame)) => Ok(frame),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            let over = frame.is_err();
            if said.send(frame).is_err() || over {
                return;
            }
        }
    });
    heard
}

/// The serial log, read as it grows.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    /// The beginning of a line that is not whole yet.
    line: Vec<u8>,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: File::open(path)?,
            line: Vec::new(),
        })
    }

    /// Looks at what was added for a sign that the boot failed.
    fn look(&mut self) -> Option<serial::Failure> {
        // Without the log, only the time limit tells.
        let length = (&mut self.file)
            .take(PIECE)
            .read_to_end(&mut self.line)
            .unwrap_or(0);
        if length == 0 {
            return None;
        }
        let whole = self.line.iter().rposition(|byte| *byte == b'\n');
        let whole = match whole {
            Some(end) => end + 1,
            None if self.line.len() as u64 > PIECE => self.line.len(),
            None => return None,
        };
        let lines: Vec<u8> = self.line.drain(..whole).collect();
        serial::Failure::find(&lines)
    }
}

/// Puts QEMU's command line together.
fn arguments(
    machine: &MachineOptions,
    scratch: &Scratch,
    control: i32,
) -> Result<Vec<OsString>, VmError> {
    let mut all = options::machine(Accelerator::probe(), machine.memory, machine.processors);
    let mut serial = OsString::from(if machine.console {
        // Keys such as Ctrl-C belong to the guest.
        "stdio,id=serial,mux=on,signal=off,logfile="
    } else {
        "file,id=serial,path="
    });
    serial.push(options::plain(&machine.log));
    all.extend([OsString::from("-chardev"), serial]);
    all.extend(["-serial", "chardev:serial"].map(OsString::from));
    if machine.console {
        all.extend(["-mon", "chardev=serial,mode=readline"].map(OsString::from));
    } else {
        // A restart is an end: what was awaited does not come any more.
        all.push("-no-reboot".into());
    }
    match &machine.start {
        Start::Uefi(firmware) => {
            let variables = scratch.file("variables.fd");
            fs::copy(&firmware.template, &variables).map_err(|source| VmError::Io {
                what: "copy the firmware's variables",
                source,
            })?;
            all.extend(firmware.options(&variables));
        }
        Start::Direct {
            kernel,
            initramfs,
            arguments,
        } => all.extend(
            [
                OsStr::new("-kernel"),
                kernel.as_os_str(),
                OsStr::new("-initrd"),
                initramfs.as_os_str(),
                OsStr::new("-append"),
                OsStr::new(arguments),
            ]
            .map(OsStr::to_owned),
        ),
    }
    all.extend(options::disk(
        &machine.disk,
        matches!(machine.start, Start::Uefi(_)),
    ));
    let mut network = String::from("user,id=net");
    if !machine.network {
        network.push_str(",restrict=on");
    }
    for (host, guest) in &machine.ports {
        write!(network, ",hostfwd=tcp:127.0.0.1:{host}-:{guest}")
            .expect("a string takes everything");
    }
    all.extend(options::network(OsStr::new(&network)));
    all.extend([
        "-device".into(),
        "virtio-serial-pci".into(),
        "-chardev".into(),
        format!("socket,id=control,fd={control}").into(),
        "-device".into(),
        format!("virtserialport,chardev=control,name={CONTROL_PORT}").into(),
        "-chardev".into(),
        format!("socket,id=shell,path={SOCKET},server=on,wait=off").into(),
        "-device".into(),
        format!("virtserialport,chardev=shell,name={SHELL_PORT}").into(),
    ] as [OsString; 10]);
    Ok(all)
}

/// Why a machine did not do what it was started for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    /// QEMU could not be started.
    #[error("cannot start {QEMU}")]
    Start(#[source] io::Error),
    /// The system said no.
    #[error("cannot {what}")]
    Io {
        /// To what.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The boot failed.
    #[error("{}", boot(.0))]
    Boot(serial::Failure),
    /// The machine ended too early.
    #[error("{}", ended(*.status, .awaited, .said))]
    Ended {
        /// How QEMU ended.
        status: ExitStatus,
        /// What was awaited.
        awaited: &'static str,
        /// What QEMU said.
        said: String,
    },
    /// The time is over.
    #[error("the time limit passed while waiting for {awaited}")]
    Timeout {
        /// What was awaited.
        awaited: &'static str,
    },
    /// The guest could not do something.
    #[error("the machine says: {0}")]
    Guest(String),
    /// Somebody ended this run.
    #[error("ended by signal {0}")]
    Interrupted(i32),
}

fn boot(failure: &serial::Failure) -> String {
    match failure {
        serial::Failure::Panic(line) => format!("the machine's kernel panicked: {line}"),
        serial::Failure::EarlyBoot(line) => format!("early boot failed: {line}"),
        serial::Failure::Firmware(line) => {
            format!("the machine's firmware found nothing to boot: {line}")
        }
    }
}

fn ended(status: ExitStatus, awaited: &str, said: &str) -> String {
    if status.success() {
        format!("the machine restarted or switched itself off while waiting for {awaited}")
    } else {
        format!("QEMU ended ({status}) while waiting for {awaited}: {said}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn machine() -> MachineOptions {
        MachineOptions {
            start: Start::Direct {
                kernel: "/k".into(),
                initramfs: "/i".into(),
                arguments: "root=UUID=1 quiet".into(),
            },
            disk: "/a,b/disk".into(),
            log: "/a,b/log".into(),
            console: false,
            memory: 512,
            processors: 1,
            ports: vec![(8080, 80), (2222, 22)],
            network: false,
            deadline: None,
        }
    }

    fn line(machine: &MachineOptions) -> String {
        let place = tempfile::tempdir().unwrap();
        let scratch = Scratch::begin(place.path()).unwrap();
        arguments(machine, &scratch, 7)
            .unwrap()
            .join(OsStr::new(" "))
            .into_string()
            .unwrap()
    }

    #[test]
    fn a_guest_reaches_nothing_unless_it_shall() {
        let shut = line(&machine());
        assert!(
            shut.contains(
                "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:127.0.0.1:2222-:22"
            ),
            "{shut}"
        );
        let open = line(&MachineOptions {
            network: true,
            ports: Vec::new(),
            ..machine()
        });
        assert!(open.contains("-netdev user,id=net -device"), "{open}");
    }

    #[test]
    fn a_restart_is_an_end_except_before_a_persons_eyes() {
        let watched = line(&machine());
        assert!(watched.contains("-no-reboot"), "{watched}");
        assert!(
            watched.contains("file,id=serial,path=/a,,b/log"),
            "{watched}"
        );
        let shown = line(&MachineOptions {
            console: true,
            ..machine()
        });
        assert!(!shown.contains("-no-reboot"), "{shown}");
        assert!(shown.contains("stdio,id=serial,mux=on,signal=off,logfile=/a,,b/log"));
    }

    #[test]
    fn a_kernel_that_qemu_starts_has_the_arguments_of_the_entry() {
        let line = line(&machine());
        assert!(
            line.contains("-kernel /k -initrd /i -append root=UUID=1 quiet"),
            "{line}"
        );
        assert!(!line.contains("bootindex"), "{line}");
        assert!(line.contains("socket,id=control,fd=7"), "{line}");
    }

    #[test]
    fn a_line_of_the_log_counts_when_it_is_whole() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut log = Log::open(file.path()).unwrap();
        assert_eq!(log.look(), None);
        let mut add = File::options().append(true).open(file.path()).unwrap();
        add.write_all(b"fine\n[ 1.0] Kernel panic - not sync")
            .unwrap();
        assert_eq!(log.look(), None);
        add.write_all(b"ing: gone\n").unwrap();
        assert_eq!(
            log.look(),
            Some(serial::Failure::Panic(
                "Kernel panic - not syncing: gone".into()
            ))
        );
        assert_eq!(log.look(), None);
    }
}
