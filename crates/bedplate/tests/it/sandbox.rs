//! A directory with a store of its own, in which the program is run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A temporary directory, and the program run inside it with `--store store`.
pub(crate) struct Sandbox {
    dir: tempfile::TempDir,
}

/// What one run of the program gave.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the program with the sandbox's environment and nothing of the tester's.
    pub(crate) fn command(&self) -> Command {
        self.command_with("store")
    }

    fn command_with(&self, store: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bedplate"));
        command
            .current_dir(self.dir.path())
            .env_clear()
            .env("HOME", self.dir.path())
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .args(["--store", store])
            .stdin(Stdio::null());
        command
    }

    /// Runs a command line, split at spaces.
    pub(crate) fn run(&self, line: &str) -> Run {
        Run::of(
            self.command()
                .args(line.split_whitespace())
                .output()
                .unwrap(),
        )
    }

    /// Runs a command line with another store.
    pub(crate) fn run_with(&self, store: &str, line: &str) -> Run {
        Run::of(
            self.command_with(store)
                .args(line.split_whitespace())
                .output()
                .unwrap(),
        )
    }

    /// Runs a command line that must succeed, and returns its output without the last newline.
    pub(crate) fn good(&self, line: &str) -> String {
        let run = self.run(line);
        assert_eq!(
            run.code, 0,
            "`{line}` failed:\n{}{}",
            run.stdout, run.stderr
        );
        run.stdout.trim_end().to_owned()
    }

    /// Runs a command line that must succeed, and returns its JSON document.
    pub(crate) fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_str(&self.good(line)).unwrap()
    }

    /// Runs a command line that must succeed with another store, and returns its JSON document.
    pub(crate) fn json_with(&self, store: &str, line: &str) -> serde_json::Value {
        let run = self.run_with(store, line);
        assert_eq!(
            run.code, 0,
            "`{line}` failed:\n{}{}",
            run.stdout, run.stderr
        );
        serde_json::from_str(&run.stdout).unwrap()
    }

    /// Makes a small tree with a file, an empty file, a hard link and a symbolic link.
    pub(crate) fn tree(&self, name: &str) -> PathBuf {
        let root = self.path(name);
        std::fs::create_dir_all(root.join("usr/bin")).unwrap();
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("usr/bin/tool"), vec![b'x'; 100_000]).unwrap();
        std::fs::write(root.join("etc/motd"), "welcome\n").unwrap();
        std::fs::write(root.join("etc/empty"), "").unwrap();
        std::fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/alias")).unwrap();
        std::os::unix::fs::symlink("usr/bin", root.join("bin")).unwrap();
        root
    }
}

impl Run {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Lists what is below a directory, so that two can be compared by eye when they differ.
pub(crate) fn listing(root: &Path) -> String {
    // The size of a directory is its file system's business.
    let output = Command::new("find")
        .arg(root)
        .args(["-type", "d", "-printf", "%P %y %m %U:%G %n %T@\\n", "-o"])
        .args(["-printf", "%P %y %m %U:%G %s %n %T@ %l\\n"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}
