//! The real program, and a registry that it pulls from.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};

/// What stands for the registry's address in a command line.
pub(crate) const REGISTRY: &str = "REGISTRY";

/// Where programs are looked for.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// The program, run where the trees are.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    bedplate: PathBuf,
    directory: PathBuf,
    /// Host and port of the registry.
    pub(crate) registry: String,
}

impl Program {
    pub(crate) fn new(bedplate: &Path, directory: &Path) -> Self {
        Self {
            bedplate: bedplate.to_owned(),
            directory: directory.to_owned(),
            registry: String::new(),
        }
    }

    /// The directory that command lines are relative to.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The program with a store below `root`, and nothing of the tester's environment.
    pub(crate) fn command(&self, root: &Path) -> Command {
        let mut command = Command::new(&self.bedplate);
        command
            .current_dir(&self.directory)
            .env_clear()
            .env("HOME", &self.directory)
            .env("PATH", PATH)
            .arg("--quiet")
            .arg("--store")
            .arg(root.join("store"))
            .stdin(Stdio::null());
        command
    }

    /// A command line, run by another program: `by` takes it as its last arguments.
    pub(crate) fn wrapped(&self, mut by: Command, root: &Path, line: &str) -> Command {
        let line = line.replace(REGISTRY, &self.registry);
        let command = self.command(root);
        by.arg(command.get_program())
            .args(command.get_args())
            .args(line.split(' '))
            .current_dir(&self.directory)
            .env_clear()
            .env("HOME", &self.directory)
            .env("PATH", PATH)
            .stdin(Stdio::null());
        by
    }

    /// Runs a command line, split at spaces, whatever becomes of it.
    pub(crate) fn try_run(&self, root: &Path, line: &str) -> Result<Output> {
        let line = line.replace(REGISTRY, &self.registry);
        self.command(root)
            .args(line.split(' '))
            .output()
            .with_context(|| format!("starting {}", self.bedplate.display()))
    }

    /// Runs a command line that must succeed, and returns what it printed.
    pub(crate) fn run(&self, root: &Path, line: &str) -> Result<String> {
        let output = self.try_run(root, line)?;
        let printed = String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned();
        ensure!(
            output.status.success(),
            "`bedplate {line}` ended with {}: {} {}",
            output.status,
            beginning(&printed),
            beginning(&String::from_utf8_lossy(&output.stderr))
        );
        Ok(printed)
    }
}

/// The first lines of a text: fsck may say the same of each of a thousand objects.
fn beginning(text: &str) -> String {
    const LINES: usize = 5;
    let lines: Vec<&str> = text.lines().take(LINES).collect();
    lines.join("\n")
}

/// `bedplate serve` on a free port of the loopback; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Registry {
    server: Child,
    address: String,
}

impl Registry {
    pub(crate) fn start(program: &Program) -> Result<Self> {
        let server = program
            .command(program.directory())
            .args(["serve", "--listen", "127.0.0.1:0", "--dir", "registry"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting bedplate serve")?;
        // From here on, dropping it ends the process.
        let mut registry = Self {
            server,
            address: String::new(),
        };
        let stdout = registry
            .server
            .stdout
            .take()
            .context("bedplate serve has no output")?;
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .context("waiting for bedplate serve")?;
        let (_, address) = line
            .trim()
            .rsplit_once("http://")
            .with_context(|| format!("bedplate serve said {line:?}"))?;
        address.clone_into(&mut registry.address);
        Ok(registry)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Either fails only where the process is gone already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
