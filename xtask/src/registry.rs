//! `bedplate serve`, for as long as somebody here needs a registry.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testkit::qemu::free_port;

/// How long it may take until it listens.
const LISTENING: Duration = Duration::from_secs(10);

/// A registry on the loopback; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Registry {
    server: Child,
    port: u16,
}

impl Registry {
    /// Starts one over `directory`; `bedplate` is the program with its global options.
    pub(crate) fn start(bedplate: &mut Command, directory: &Path, log: &Path) -> Result<Self> {
        let port = free_port().context("finding a free port for the registry")?;
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let server = bedplate
            .arg("serve")
            .arg(format!("--listen=127.0.0.1:{port}"))
            .arg("--dir")
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("sharing the registry's log")?)
            .stderr(file)
            .spawn()
            .context("starting bedplate serve")?;
        // From here on, dropping it ends the process.
        let mut registry = Self { server, port };
        let started = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = registry
                .server
                .try_wait()
                .context("asking after the registry")?;
            ensure!(
                ended.is_none() && started.elapsed() < LISTENING,
                "bedplate serve does not listen: {}",
                fs::read_to_string(log).unwrap_or_default()
            );
            thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }

    /// The port that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Either fails only where the process is gone already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
