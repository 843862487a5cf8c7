//! Where this machine gets Debian from.
//!
//! The demo's trees come from the mirrors in the machine's own apt configuration, in either of apt's two
//! formats: so a proxy, a company mirror or a snapshot serves the demo as it serves the machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::run;

/// Suites by which an archive of Debian is recognised.
const SUITES: [&str; 9] = [
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "stable",
    "oldstable",
    "oldoldstable",
    "testing",
    "unstable",
];

/// Settings of apt that say how to reach a mirror, and not what to install.
const REACHING: [&str; 5] = [
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::Check-Valid-Until ",
    "Acquire::ForceIPv4 ",
    "Acquire::Retries ",
];

/// The mirrors of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirrors {
    /// The main archive, which also carries updates and backports.
    pub(crate) archive: String,
    /// The security archive, where the machine knows one.
    pub(crate) security: Option<String>,
}

/// One entry of apt's sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
}

impl Mirrors {
    /// Reads them from /etc/apt.
    pub(crate) fn of_this_machine() -> Result<Self> {
        Self::find(&read_all(Path::new("/etc/apt"))?).context(
            "apt on this machine has no source of Debian's main archive; \
             the demo's images are made of Debian packages",
        )
    }

    fn find(sources: &[Source]) -> Option<Self> {
        let main = |source: &&Source| source.components.iter().any(|name| name == "main");
        let archive = sources
            .iter()
            .filter(main)
            .find(|source| source.suites.iter().any(|suite| SUITES.contains(&&**suite)))?;
        let security = sources.iter().filter(main).find(|source| {
            let mut suites = source.suites.iter();
            suites.any(|suite| {
                suite
                    .strip_suffix("-security")
                    .is_some_and(|suite| SUITES.contains(&suite))
            })
        });
        Some(Self {
            archive: archive.uris.first()?.clone(),
            security: security.and_then(|source| source.uris.first().cloned()),
        })
    }
}

/// How this machine reaches mirrors (proxies and the like), as lines of apt.conf.
pub(crate) fn reaching() -> Vec<String> {
    let Ok(dump) = run::output(Command::new("apt-config").arg("dump")) else {
        return Vec::new();
    };
    dump.lines()
        .filter(|line| REACHING.iter().any(|prefix| line.starts_with(prefix)))
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect()
}

fn read_all(apt: &Path) -> Result<Vec<Source>> {
    let mut files = vec![apt.join("sources.list")];
    if let Ok(entries) = fs::read_dir(apt.join("sources.list.d")) {
        for entry in entries {
            files.push(entry.context("listing apt's sources")?.path());
        }
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        // A list that is missing or unreadable gives no sources; others may.
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(text.lines().filter_map(parse_line)),
            Some("sources") => sources.extend(parse_stanzas(&text)),
            _ => {}
        }
    }
    Ok(sources)
}

/// Parses a line of `sources.list`: `deb [option=value …] URI SUITE COMPONENT…`.
fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    let rest = rest
        .starts_with(|character: char| character.is_ascii_whitespace())
        .then(|| rest.trim_start())?;
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_ascii_whitespace().map(str::to_owned);
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
    })
}

/// Parses a `.sources` file: stanzas of `Field: values`, continued on indented lines.
fn parse_stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(stanza(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza(fields: &[(String, String)]) -> Option<Source> {
    let values = |wanted: &str| -> Vec<String> {
        fields
            .iter()
            .filter(|(name, _)| name == wanted)
            .flat_map(|(_, value)| value.split_ascii_whitespace().map(str::to_owned))
            .collect()
    };
    let enabled = !values("enabled").iter().any(|value| value == "no");
    let binary = values("types").iter().any(|value| value == "deb");
    (enabled && binary).then(|| Source {
        uris: values("uris"),
        suites: values("suites"),
        components: values("components"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrors(archive: &str, security: Option<&str>) -> Mirrors {
        Mirrors {
            archive: archive.to_owned(),
            security: security.map(str::to_owned),
        }
    }

    #[test]
    fn one_line_sources_are_read_with_their_options() {
        let text = "deb-src http://a.test/debian trixie main\n\
                    # deb http://b.test/debian trixie main\n\
                    deb [arch=amd64 signed-by=/k] http://c.test/debian trixie main contrib # mine\n\
                    deb\thttp://d.test/security trixie-security main\n";
        let sources: Vec<Source> = text.lines().filter_map(parse_line).collect();
        assert_eq!(
            Mirrors::find(&sources),
            Some(mirrors(
                "http://c.test/debian",
                Some("http://d.test/security")
            ))
        );
    }

    #[test]
    fn stanzas_are_read_and_other_archives_left_alone() {
        let text = "Types: deb\nURIs: http://node.test/x\nSuites: nodistro\nComponents: main\n\n\
                    Types: deb deb-src\n# a comment\nURIs: http://a.test/debian\n\
                    Suites: bookworm\n bookworm-updates\nComponents: main\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://b.test/s\nSuites: bookworm-security\nComponents: main\n";
        assert_eq!(
            Mirrors::find(&parse_stanzas(text)),
            Some(mirrors("http://a.test/debian", None))
        );
    }

    #[test]
    fn a_machine_without_debian_sources_has_no_mirror() {
        assert_eq!(
            Mirrors::find(&parse_stanzas(
                "Types: deb\nURIs: http://u.test/ubuntu\nSuites: noble\nComponents: main\n"
            )),
            None
        );
    }
}
