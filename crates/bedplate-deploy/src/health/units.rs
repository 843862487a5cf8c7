//! What the service manager says of its units, and what of it speaks against a version.
//!
//! ```text
//! Units ─→ [Unit] ─┬─ new_failures   failed now, and not when the base was proven
//!                  └─ crash_loops    restarted too often since the checks passed
//! ```

use std::collections::HashMap;
use std::io;
use std::process::Command;

use super::glob;
use crate::config::HealthConfig;

/// One unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// It failed.
    pub failed: bool,
    /// How often it was restarted by itself.
    pub restarts: u32,
}

/// Where units are seen.
pub trait Units {
    /// Lists the units that are loaded.
    fn list(&self) -> io::Result<Vec<Unit>>;

    /// Lists the units that `boot-complete.target` requires and that failed.
    fn failed_checks(&self) -> io::Result<Vec<String>>;
}

/// The machine's service manager, by its own program: that speaks to every version of it.
#[derive(Clone, Copy, Debug)]
pub struct Systemctl;

impl Units for Systemctl {
    fn list(&self) -> io::Result<Vec<Unit>> {
        let properties = "--property=Id,ActiveState,NRestarts";
        Ok(parse(&said(&["show", "--no-pager", properties, "*"])?))
    }

    fn failed_checks(&self) -> io::Result<Vec<String>> {
        let required = said(&[
            "show",
            "--property=Requires",
            "--value",
            "boot-complete.target",
        ])?;
        let checks: Vec<&str> = required.split_whitespace().collect();
        let failed = self.list()?.into_iter().filter(|unit| unit.failed);
        Ok(failed
            .map(|unit| unit.name)
            .filter(|name| checks.contains(&name.as_str()))
            .collect())
    }
}

fn said(arguments: &[&str]) -> io::Result<String> {
    let output = Command::new("systemctl").args(arguments).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!(
            "systemctl ended with {}: {}",
            output.status,
            said.trim()
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Parses what `systemctl show` prints: `Key=value` lines, an empty line between units.
fn parse(text: &str) -> Vec<Unit> {
    let unit = |block: &str| {
        let value = |key: &str| {
            block
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        };
        Some(Unit {
            name: value("Id")?.to_owned(),
            failed: value("ActiveState") == Some("failed"),
            restarts: value("NRestarts")
                .and_then(|number| number.parse().ok())
                .unwrap_or(0),
        })
    };
    text.split("\n\n").filter_map(unit).collect()
}

/// Names the units that failed, and had not failed when the base was proven.
pub(super) fn new_failures(units: &[Unit], known: &[String], config: &HealthConfig) -> Vec<String> {
    let mut names: Vec<String> = failures(units)
        .filter(|name| !known.contains(name) && !is_ignored(name, config))
        .collect();
    names.sort();
    names
}

/// Names the units that failed.
pub(super) fn failures(units: &[Unit]) -> impl Iterator<Item = String> {
    units
        .iter()
        .filter(|unit| unit.failed)
        .map(|unit| unit.name.clone())
}

/// Names the services that were restarted too often since `before`.
pub(super) fn crash_loops(before: &[Unit], now: &[Unit], config: &HealthConfig) -> Vec<String> {
    let before: HashMap<&str, u32> = before
        .iter()
        .map(|unit| (unit.name.as_str(), unit.restarts))
        .collect();
    let mut names: Vec<String> = now
        .iter()
        .filter(|unit| {
            let earlier = before.get(unit.name.as_str()).copied().unwrap_or(0);
            unit.restarts.saturating_sub(earlier) > config.restarts
        })
        .filter(|unit| !is_ignored(&unit.name, config))
        .map(|unit| unit.name.clone())
        .collect();
    names.sort();
    names
}

fn is_ignored(name: &str, config: &HealthConfig) -> bool {
    let mut patterns = config.ignore_units.iter();
    patterns.any(|pattern| glob::fits(pattern, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "NRestarts=4\nId=a.service\nActiveState=active\n\nId=b.mount\n\
                         ActiveState=failed\n\nId=c-wait-online.service\nActiveState=failed\n";

    #[test]
    fn units_are_read_as_systemctl_shows_them() {
        let units = parse(SHOWN);
        assert_eq!(units.len(), 3);
        assert_eq!((units[0].restarts, units[0].failed), (4, false));
        assert_eq!((units[1].restarts, units[1].failed), (0, true));
    }

    #[test]
    fn what_failed_before_and_what_may_fail_is_not_held_against_a_version() {
        let (units, config) = (parse(SHOWN), HealthConfig::default());
        assert_eq!(new_failures(&units, &[], &config), ["b.mount"]);
        assert!(new_failures(&units, &["b.mount".into()], &config).is_empty());
    }

    #[test]
    fn a_service_that_restarts_again_and_again_is_found() {
        let config = HealthConfig::default();
        let unit = |restarts| Unit {
            name: "a.service".into(),
            failed: false,
            restarts,
        };
        assert!(crash_loops(&[unit(10)], &[unit(13)], &config).is_empty());
        assert_eq!(
            crash_loops(&[unit(10)], &[unit(14)], &config),
            ["a.service"]
        );
        assert_eq!(crash_loops(&[], &[unit(4)], &config), ["a.service"]);
    }
}
