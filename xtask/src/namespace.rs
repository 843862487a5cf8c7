//! Whether a plain user may make trees: in a user namespace with a range of ids of its own.
//!
//! Invariant: what is missing is named before anything is made, with the command that puts it right.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::run;

/// The files that give users ranges of ids, and how `usermod` adds one.
const RANGES: [(&str, &str); 2] = [
    ("/etc/subuid", "--add-subuids 100000-165535"),
    ("/etc/subgid", "--add-subgids 100000-165535"),
];

/// Settings of kernels and distributions that keep plain users out of namespaces, and what they must be.
const SETTINGS: [(&str, &str); 3] = [
    ("kernel.unprivileged_userns_clone", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "0"),
    ("user.max_user_namespaces", "65536"),
];

/// Makes sure that this process may enter a user namespace; root needs none.
pub(crate) fn require() -> Result<()> {
    if run::is_root() {
        return Ok(());
    }
    let tried = Command::new("unshare")
        .args(["--map-root-user", "--map-auto", "--", "true"])
        .stdin(Stdio::null())
        .output();
    let said = match tried {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    let user = user();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let lacking: Vec<&str> = RANGES
        .iter()
        .filter(|(path, _)| !has_range(&read(path), &user))
        .map(|(_, option)| *option)
        .collect();
    let mut commands = Vec::new();
    if !lacking.is_empty() {
        commands.push(format!("sudo usermod {} {}", lacking.join(" "), user[0]));
    }
    for (name, wanted) in SETTINGS {
        let found = read(&format!("/proc/sys/{}", name.replace('.', "/")));
        if keeps_out(name, found.trim()) {
            commands.push(format!("sudo sysctl {name}={wanted}"));
        }
    }
    if commands.is_empty() {
        bail!("a user namespace is needed to make trees, and cannot be entered here: {said}");
    }
    bail!(
        "a user namespace is needed to make trees, and cannot be entered yet ({said}). \
         Permit it with\n\n    {}\n",
        commands.join("\n    ")
    );
}

/// The names that this user may stand under in the files of ranges: name and number.
fn user() -> [String; 2] {
    let number = rustix::process::getuid().as_raw().to_string();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then(|| name.to_owned())
    });
    [name.unwrap_or_else(|| number.clone()), number]
}

/// Whether a file of ranges gives one of these names as many ids as a tree's owners need.
fn has_range(text: &str, user: &[String]) -> bool {
    text.lines().any(|line| {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        let count = fields
            .nth(1)
            .and_then(|count| count.trim().parse::<u32>().ok());
        user.iter().any(|user| user == name) && count.is_some_and(|count| count >= 65_536)
    })
}

fn keeps_out(name: &str, found: &str) -> bool {
    match name {
        "kernel.apparmor_restrict_unprivileged_userns" => found == "1",
        _ => found == "0",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_counts_when_it_is_the_users_and_large_enough() {
        let user = ["anna".to_owned(), "1000".to_owned()];
        for (text, wanted) in [
            ("anna:100000:65536\n", true),
            ("1000:100000:65536\n", true),
            ("bert:100000:65536\nanna:165536:65536\n", true),
            ("anna:100000:1000\n", false),
            ("annabel:100000:65536\n", false),
            ("anna:100000\n", false),
            ("", false),
        ] {
            assert_eq!(has_range(text, &user), wanted, "{text:?}");
        }
    }
}
