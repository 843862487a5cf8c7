//! Other programs: started, shown, and their failures explained.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `command` with the terminal as its own; failing is an error.
pub(crate) fn passing(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("starting {}", typed(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", typed(command));
    }
    Ok(())
}

/// Runs `command` and returns what it printed; failing is an error that holds what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", typed(command)))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "`{}` failed: {}\n{printed}{}",
            typed(command),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(printed)
}

/// The command as a person would type it.
pub(crate) fn typed(command: &Command) -> String {
    let mut line = word(command.get_program());
    for argument in command.get_args() {
        let _ = write!(line, " {}", word(argument));
    }
    line
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether `program` can be found by the shell.
pub(crate) fn found(program: &str) -> bool {
    std::env::split_paths(&search_path()).any(|directory| directory.join(program).is_file())
}

/// The search path, with the administrator's directories: a plain user's PATH on Debian lacks them.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the program's edge, where the environment is read"
)]
fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

fn word(argument: &OsStr) -> String {
    let text = argument.to_string_lossy();
    // Programs of ours by their name alone: where cargo put them says nothing to a reader.
    let text =
        match Path::new(argument).strip_prefix(super::workspace::target(super::programs::PLACE)) {
            Ok(name) => name.to_string_lossy(),
            Err(_) => text,
        };
    let harmless =
        |character: char| character.is_ascii_alphanumeric() || "_-./:=@+,%".contains(character);
    if !text.is_empty() && text.chars().all(harmless) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("bedplate");
        command.args(["build", "--label", "it's one", ""]);
        assert_eq!(typed(&command), r"bedplate build --label 'it'\''s one' ''");
    }
}
