//! The running system's end of the talk with whoever runs its virtual machine.
//!
//! ```text
//! serve   up → script: out* err* ended · shell: ready, then one `sshd -i` for each connection · poweroff
//! lost    failed
//! ```
//!
//! Invariant: a script's output is sent whole before its end, unless something that it left running
//! keeps the output open.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bedplate_boot::guest::{CONTROL_PORT, FromGuest, SHELL_PORT, ToGuest};
use rustix::event::{PollFd, PollFlags, poll};

use crate::console::{self, Failure};
use crate::guest;

/// Where everything of a run lies.
const PLACE: &str = "/run/bedplate/vm";
/// What a frame of output holds at most.
const PIECE: usize = 32 << 10;
/// How long output is waited for after the end of the script, where something that it left keeps it open.
const GRACE: Duration = Duration::from_secs(2);
/// How long to sleep between two looks for a connection.
const PAUSE: Duration = Duration::from_millis(50);
/// Where distributions put sshd.
const SSHD: [&str; 3] = ["/usr/sbin/sshd", "/usr/bin/sshd", "/usr/lib/ssh/sshd"];
/// What a service manager gives a service, and root's login adds.
const ENVIRONMENT: [(&str, &str); 5] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("SHELL", "/bin/sh"),
];

/// The image's own configuration has no say: it may forbid root, or start no sshd at all.
const SSHD_CONFIG: &str = "\
HostKey /run/bedplate/vm/host_key
AuthorizedKeysFile /run/bedplate/vm/key
AuthenticationMethods publickey
PermitRootLogin prohibit-password
StrictModes no
UsePAM yes
PidFile none
PrintMotd no
UseDNS no
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
";

/// What was said on the way from early boot to here, as the program is started by its units.
pub(crate) fn run(order: &str) -> ExitCode {
    let done = match order {
        "serve" => serve(),
        "lost" => lost(),
        _ => Err(Failure::new(
            format!("do `{order}`"),
            "there is no such order",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            console::error(&failure.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Says that the system gave up.
fn lost() -> Result<(), Failure> {
    Port::open()?.say(&FromGuest::Failed(
        "the system did not come up: systemd went to its emergency or rescue mode".into(),
    ))
}

fn serve() -> Result<(), Failure> {
    let port = Port::open()?;
    let mut orders = port
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .try_clone()
        .map_err(|why| Failure::new("listen", why))?;
    port.say(&FromGuest::Up)?;
    let mut arguments = Vec::new();
    loop {
        let told =
            ToGuest::read(&mut orders).map_err(|why| Failure::new("read what is wanted", why))?;
        let Some(told) = told else {
            return Ok(());
        };
        let done = match told {
            ToGuest::Argument(argument) => {
                arguments.push(argument);
                Ok(())
            }
            ToGuest::Script(script) => run_script(&port, &script, &std::mem::take(&mut arguments)),
            ToGuest::Key(line) => keep("key", &line, 0o600),
            ToGuest::HostKey(key) => keep("host_key", &key, 0o600),
            ToGuest::Shell => open_shell().and_then(|()| port.say(&FromGuest::Ready)),
            ToGuest::PowerOff => Command::new("systemctl")
                .arg("poweroff")
                .status()
                .map(drop)
                .map_err(|why| Failure::new("start systemctl", why)),
        };
        if let Err(failure) = done {
            port.say(&FromGuest::Failed(failure.to_string()))?;
        }
    }
}

/// The way out, which several threads share.
#[derive(Clone)]
struct Port(Arc<Mutex<File>>);

impl Port {
    fn open() -> Result<Self, Failure> {
        guest::open(CONTROL_PORT)
            .map(|port| Self(Arc::new(Mutex::new(port))))
            .map_err(|why| Failure::new(format!("open the port {CONTROL_PORT}"), why))
    }

    fn say(&self, frame: &FromGuest) -> Result<(), Failure> {
        let port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        frame
            .write(&mut &*port)
            .map_err(|why| Failure::new("say something", why))
    }
}

/// Writes a file of this run.
fn keep(name: &str, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let path = Path::new(PLACE).join(name);
    let write = || -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(PLACE)?;
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&path)?;
        file.write_all(bytes)
    };
    write().map_err(|why| Failure::new(format!("write {}", path.display()), why))
}

fn run_script(port: &Port, script: &[u8], arguments: &[Vec<u8>]) -> Result<(), Failure> {
    keep("script", script, 0o700)?;
    let mut child = start(arguments).map_err(|why| Failure::new("start the script", why))?;
    let (done, all_done) = mpsc::channel();
    let mut open = 0;
    if let Some(stdout) = child.stdout.take() {
        open += 1;
        pump(stdout, port.clone(), FromGuest::Output, done.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        open += 1;
        pump(stderr, port.clone(), FromGuest::Error, done);
    }
    let status = child
        .wait()
        .map_err(|why| Failure::new("wait for the script", why))?;
    let ended = Instant::now();
    while open > 0 {
        let left = GRACE.saturating_sub(ended.elapsed());
        match all_done.recv_timeout(left) {
            Ok(()) => open -= 1,
            // What runs on has had its chance: the script is what was asked for.
            Err(_) => break,
        }
    }
    // As a shell says it: a signal is its number and 128.
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, signal) => 128_u8.saturating_add(signal.unwrap_or(0) as u8),
    };
    port.say(&FromGuest::Ended(code))
}

/// Starts the script by its first line; one that names no interpreter is the shell's.
fn start(arguments: &[Vec<u8>]) -> io::Result<Child> {
    use std::os::unix::ffi::OsStrExt as _;
    let script = Path::new(PLACE).join("script");
    let home = Path::new("/root");
    let spawn = |program: &Path, first: Option<&Path>| {
        Command::new(program)
            .args(first)
            .args(
                arguments
                    .iter()
                    .map(|bytes| std::ffi::OsStr::from_bytes(bytes)),
            )
            .current_dir(if home.is_dir() { home } else { Path::new("/") })
            .env_clear()
            .envs(ENVIRONMENT)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    let no_interpreter = rustix::io::Errno::NOEXEC.raw_os_error();
    match spawn(&script, None) {
        Err(error) if error.raw_os_error() == Some(no_interpreter) => {
            spawn(Path::new("/bin/sh"), Some(&script))
        }
        other => other,
    }
}

/// Sends a stream piece by piece, beside the other one.
fn pump(
    mut stream: impl Read + Send + 'static,
    port: Port,
    frame: fn(Vec<u8>) -> FromGuest,
    done: Sender<()>,
) {
    thread::spawn(move || {
        let mut piece = vec![0; PIECE];
        loop {
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => {
                    if let Err(failure) = port.say(&frame(piece[..length].to_vec())) {
                        console::error(&failure.to_string());
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // Nobody waits any more where the grace is over.
        let _ = done.send(());
    });
}

/// Serves a shell by the image's sshd, one connection after the other, with no network.
fn open_shell() -> Result<(), Failure> {
    let sshd = SSHD
        .into_iter()
        .find(|path| Path::new(path).exists())
        .ok_or_else(|| {
            Failure::new(
                "open a shell",
                "the image has no sshd, which --ssh needs (--test and --console need none)",
            )
        })?;
    keep("sshd_config", SSHD_CONFIG.as_bytes(), 0o600)?;
    // Debian's sshd wants it, and its own service makes it.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create("/run/sshd")
        .map_err(|why| Failure::new("make /run/sshd", why))?;
    let port = guest::open(SHELL_PORT)
        .map_err(|why| Failure::new(format!("open the port {SHELL_PORT}"), why))?;
    thread::spawn(move || {
        if let Err(why) = serve_shells(&port, sshd) {
            console::error(&Failure::new("serve a shell", why).to_string());
        }
    });
    Ok(())
}

fn serve_shells(port: &File, sshd: &str) -> io::Result<()> {
    loop {
        wait_for(port, true)?;
        let status = Command::new(sshd)
            .args(["-i", "-f"])
            .arg(Path::new(PLACE).join("sshd_config"))
            .stdin(port.try_clone()?)
            .stdout(port.try_clone()?)
            .status()?;
        if !status.success() {
            console::note(&format!("sshd ended: {status}"));
        }
        // The next one is not for the connection that just ended.
        wait_for(port, false)?;
    }
}

/// Waits until somebody is at the other end, or nobody.
fn wait_for(port: &File, somebody: bool) -> io::Result<()> {
    loop {
        let mut asked = [PollFd::new(port, PollFlags::IN)];
        poll(&mut asked, Some(&rustix::event::Timespec::default()))?;
        let hung_up = asked[0].revents().contains(PollFlags::HUP);
        if hung_up != somebody {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
}
