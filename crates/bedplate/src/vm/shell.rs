//! Shells in a guest, by the host's ssh, through a port of the machine: no network takes part.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use bedplate_boot::guest::ToGuest;

use super::Scratch;
use crate::blame::{Blame, Refusal};

/// What the guest is called where ssh wants a name.
const NAME: &str = "bedplate-vm";

/// The socket of the guest's shell, in the scratch directory: a longer path would not fit where sockets are named.
pub(super) const SOCKET: &str = "shell.sock";

/// The keys of one run: one for whoever comes, one that the guest is known by.
#[derive(Debug)]
pub(crate) struct Keys<'a> {
    scratch: &'a Scratch,
}

impl<'a> Keys<'a> {
    /// Makes both.
    pub(crate) fn make(scratch: &'a Scratch) -> anyhow::Result<Self> {
        for name in ["key", "host_key"] {
            let output = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", NAME, "-f"])
                .arg(scratch.file(name))
                .stdin(Stdio::null())
                .output()
                .map_err(|error| no_ssh("ssh-keygen", &error))?;
            if !output.status.success() {
                let said = bedplate_model::name::shown(output.stderr.trim_ascii());
                return Err(refused(format!("ssh-keygen failed: {said}")));
            }
        }
        let public = fs::read_to_string(scratch.file("host_key.pub"))
            .context("cannot read the guest's key")?;
        fs::write(scratch.file("known_hosts"), format!("{NAME} {public}"))
            .context("cannot write the guest's key")?;
        Ok(Self { scratch })
    }

    /// Returns what the guest must be told of them.
    pub(crate) fn frames(&self) -> anyhow::Result<[ToGuest; 2]> {
        let read = |name: &str| {
            fs::read(self.scratch.file(name)).with_context(|| format!("cannot read the {name}"))
        };
        Ok([
            ToGuest::Key(read("key.pub")?),
            ToGuest::HostKey(read("host_key")?),
        ])
    }

    /// Returns the ssh that opens a shell, or runs a command.
    pub(crate) fn ssh(&self, words: &[OsString]) -> anyhow::Result<Command> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut ssh = Command::new("ssh");
        // Nothing of the person's own configuration, keys or known hosts takes part.
        ssh.args(["-F", "none", "-i", "key"])
            // It reads the command by which the guest is reached.
            .env("SHELL", "/bin/sh")
            .current_dir(self.scratch.path());
        for option in [
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "UserKnownHostsFile=known_hosts",
            "GlobalKnownHostsFile=/dev/null",
            "UpdateHostKeys=no",
            "LogLevel=ERROR",
            "ConnectTimeout=60",
        ] {
            ssh.args(["-o", option]);
        }
        let proxy = format!("ProxyCommand={}", proxy(&program)?);
        ssh.args(["-o", &format!("HostKeyAlias={NAME}"), "-o", &proxy])
            .arg("--")
            .arg(format!("root@{NAME}"))
            .args(words);
        bedplate_sys::process::end_with_parent(&mut ssh);
        Ok(ssh)
    }
}

/// Explains why ssh could not be started.
pub(crate) fn no_ssh(program: &str, error: &std::io::Error) -> anyhow::Error {
    refused(format!("cannot start {program}: {error}"))
}

fn refused(message: String) -> anyhow::Error {
    Refusal {
        blame: Blame::Host,
        message,
        hint: Some("--ssh needs the ssh client (package openssh-client)".into()),
    }
    .into()
}

/// The command by which ssh reaches the guest: a shell reads it, after ssh took `%` for its own.
fn proxy(program: &Path) -> anyhow::Result<String> {
    let program = program
        .to_str()
        .with_context(|| format!("{} is not UTF-8", program.display()))?;
    let quoted = program.replace('\'', r"'\''").replace('%', "%%");
    Ok(format!("'{quoted}' internal connect {SOCKET}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_any_name_is_the_way_to_the_guest() {
        assert_eq!(
            proxy(Path::new("/a b/it's 100%/bedplate")).unwrap(),
            r"'/a b/it'\''s 100%%/bedplate' internal connect shell.sock"
        );
    }
}
