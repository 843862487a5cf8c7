//! The host: what the program takes from its surroundings, read once.
//!
//! Invariant: nothing below `main` reads the environment or the clock; it all comes from here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bedplate_model::layout;

/// What the program takes from its surroundings.
#[derive(Debug)]
pub(crate) struct Host {
    environment: BTreeMap<OsString, OsString>,
    started: Duration,
}

impl Host {
    /// Reads the environment and the clock.
    pub(crate) fn observe() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one place that reads the clock"
        )]
        let now = SystemTime::now();
        Self {
            environment: std::env::vars_os().collect(),
            // A clock before 1970 is a clock that was never set.
            started: now.duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }

    /// Returns when the program started, in seconds since 1970.
    pub(crate) fn now(&self) -> i64 {
        self.started.as_secs() as i64
    }

    /// Returns a variable of the environment as a path, unless it is unset or empty.
    pub(crate) fn variable(&self, name: &str) -> Option<PathBuf> {
        let value = self.environment.get(OsString::from(name).as_os_str())?;
        (!value.is_empty()).then(|| PathBuf::from(value))
    }

    /// Returns a number from the environment.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.variable(name)?.to_str()?.parse().ok()
    }

    /// Returns whether this program runs on a machine that Bedplate booted.
    #[expect(
        clippy::unused_self,
        reason = "the host is a value, also where it is the only one"
    )]
    pub(crate) fn is_machine(&self) -> bool {
        Path::new(layout::BOOTED).exists()
    }

    /// Returns who uses this program: whoever logged in, and whatever they became since; the service manager is
    /// `system`.
    pub(crate) fn person(&self) -> String {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let by_login = read("/proc/self/loginuid")
            .trim()
            .parse()
            .ok()
            .filter(|uid| *uid != u32::MAX)
            .map(|uid| user_name(uid, &read("/etc/passwd")));
        by_login
            .or_else(|| Some(self.variable("SUDO_USER")?.display().to_string()))
            .unwrap_or_else(|| match self.variable("INVOCATION_ID") {
                Some(_) => "system".to_owned(),
                None => user_name(rustix::process::getuid().as_raw(), &read("/etc/passwd")),
            })
    }

    /// Returns the store that verbs use without `--store`: the machine's own for root on a machine of
    /// ours, else the user's.
    pub(crate) fn default_store(&self) -> Option<PathBuf> {
        if self.is_machine() && rustix::process::geteuid().is_root() {
            return Some(Path::new(layout::SYSROOT).join(layout::STORE));
        }
        let data = self
            .variable("XDG_DATA_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| Some(self.variable("HOME")?.join(".local/share")))?;
        Some(data.join("bedplate/store"))
    }

    /// Returns what the registry client wants to know of the environment.
    pub(crate) fn registry_environment(&self) -> bedplate_transport::Environment {
        let variable = |name: &str| self.variable(name).map(PathBuf::into_os_string);
        bedplate_transport::Environment {
            registry_auth_file: variable("REGISTRY_AUTH_FILE"),
            runtime_dir: variable("XDG_RUNTIME_DIR"),
            home: variable("HOME"),
            docker_config: variable("DOCKER_CONFIG"),
        }
    }
}

/// Finds a user's name in the text of /etc/passwd; one that is not there is their number.
fn user_name(uid: u32, passwd: &str) -> String {
    let uid = uid.to_string();
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    named.unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use super::user_name;

    #[test]
    fn users_have_the_names_that_passwd_gives_them() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbroken\nanna:x:1500:1500::/home/anna:/bin/sh\n";
        assert_eq!(user_name(0, passwd), "root");
        assert_eq!(user_name(1500, passwd), "anna");
        assert_eq!(user_name(7, passwd), "7");
    }
}
