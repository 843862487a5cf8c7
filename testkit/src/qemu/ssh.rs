//! Commands in a guest, over one ssh connection that is opened once and shared.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// The exit code by which ssh says that the connection, not the command, failed.
pub(super) const CONNECTION_LOST: i32 = 255;

/// How long one attempt to reach a guest may take: under software emulation, the greeting of sshd takes
/// two seconds and the key exchange two more.
const ATTEMPT: Duration = Duration::from_secs(20);

/// A key that opens a shell in a guest.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// The private half; the public one lies beside it, as `.pub`.
    pub private: PathBuf,
}

impl KeyPair {
    /// Opens the key pair at `private`, made there first if it is missing.
    pub fn open_or_make(private: &Path) -> Result<Self> {
        if !private.exists() {
            let status = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "bedplate-demo", "-f"])
                .arg(private)
                .stdin(Stdio::null())
                .status()
                .context("starting ssh-keygen")?;
            if !status.success() {
                bail!("ssh-keygen could not make {}: {status}", private.display());
            }
        }
        Ok(Self {
            private: private.to_owned(),
        })
    }

    /// The line for `authorized_keys`.
    pub fn public_line(&self) -> Result<String> {
        let public = self.private.with_extension("pub");
        fs::read_to_string(&public).with_context(|| format!("reading {}", public.display()))
    }
}

/// What a command in a guest gave.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its exit code; 255 where the connection was lost.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it printed as errors.
    pub stderr: String,
}

#[derive(Debug)]
pub(super) struct Shell {
    key: KeyPair,
    port: u16,
    /// Holds the socket of the shared connection: short, because socket paths may not be long.
    sockets: TempDir,
}

impl Shell {
    pub(super) fn new(key: KeyPair, port: u16) -> Result<Self> {
        Ok(Self {
            key,
            port,
            sockets: tempfile::tempdir().context("making a directory for ssh")?,
        })
    }

    /// The id of the running boot, or `None` where nobody answers yet.
    pub(super) fn boot_id(&self) -> Result<Option<String>> {
        let ran = self.run("cat /proc/sys/kernel/random/boot_id", ATTEMPT)?;
        Ok((ran.code == 0).then(|| ran.stdout.trim().to_owned()))
    }

    /// Runs `script` and waits for it, at most `limit`.
    pub(super) fn run(&self, script: &str, limit: Duration) -> Result<Ran> {
        let mut ssh = self
            .ssh()
            .args(["-n", "-T", "--"])
            .arg("root@127.0.0.1")
            .arg(script)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting ssh")?;
        let stdout = collect(ssh.stdout.take());
        let stderr = collect(ssh.stderr.take());
        let code = wait(&mut ssh, limit)?;
        Ok(Ran {
            code: code.unwrap_or(CONNECTION_LOST),
            stdout: stdout.join().unwrap_or_default(),
            stderr: stderr.join().unwrap_or_default(),
        })
    }

    /// Ends the shared connection, if there is one.
    pub(super) fn hang_up(&self) {
        // Fails where no connection is open, which is what was wanted.
        let _ = self
            .ssh()
            .args(["-O", "exit", "root@127.0.0.1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }

    fn ssh(&self) -> Command {
        let mut ssh = Command::new("ssh");
        // Nothing of the person's own configuration, keys or known hosts takes part.
        ssh.args(["-F", "none", "-i"])
            .arg(&self.key.private)
            .arg("-p")
            .arg(self.port.to_string())
            .arg("-o")
            .arg(format!(
                "ControlPath={}",
                self.sockets.path().join("c").display()
            ));
        for option in [
            "ControlMaster=auto",
            "ControlPersist=120",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=15",
            "ServerAliveInterval=10",
            "ServerAliveCountMax=6",
        ] {
            ssh.args(["-o", option]);
        }
        ssh
    }
}

/// Reads a stream to its end beside the process, so that neither waits for the other.
fn collect(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What came before an error is still worth showing.
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for `process`; ends it when `limit` has passed, and returns `None` then.
fn wait(process: &mut Child, limit: Duration) -> Result<Option<i32>> {
    let started = Instant::now();
    loop {
        if let Some(status) = process.try_wait().context("waiting for ssh")? {
            return Ok(status.code());
        }
        if started.elapsed() > limit {
            process.kill().context("ending ssh")?;
            process.wait().context("ending ssh")?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
