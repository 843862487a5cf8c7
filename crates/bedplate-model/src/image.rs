//! Image names: `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, as in podman.
//!
//! A name without a host is local (`localhost/…`); pull and push refuse those. The grammar is that of
//! the OCI distribution specification 1.1, "Pulling manifests".

use std::fmt;
use std::str::FromStr;

use crate::digest::{Sha256, serde_as_text};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The host that stands for "only in this store".
pub const LOCAL_HOST: &str = "localhost";

/// The name of an image: where it lives, and which one of those that live there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Sha256>,
}

impl ImageName {
    /// Returns the registry, with its port where one was given.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the path of the repository on its host.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag; a name with neither tag nor digest has the tag `latest`.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the manifest digest, where the name fixes one.
    pub fn digest(&self) -> Option<Sha256> {
        self.digest
    }

    /// Returns whether the name is only for this store: no registry has it.
    pub fn is_local(&self) -> bool {
        self.host == LOCAL_HOST
    }

    /// Returns what stands behind the last slash of a registry's manifest address: digest, or else tag.
    pub fn manifest_reference(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// Returns the same name with a digest that fixes it.
    #[must_use]
    pub fn with_digest(&self, digest: Sha256) -> Self {
        Self {
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// Returns the image of the same repository with a digest, whatever tags it has.
    #[must_use]
    pub fn by_digest(&self, digest: Sha256) -> Self {
        Self {
            digest: Some(digest),
            tag: None,
            ..self.clone()
        }
    }

    /// Returns the same name without its digest: what a tag is kept under.
    #[must_use]
    pub fn without_digest(&self) -> Self {
        Self {
            digest: None,
            tag: Some(self.tag.clone().unwrap_or_else(|| "latest".to_owned())),
            ..self.clone()
        }
    }
}

impl FromStr for ImageName {
    type Err = ParseImageNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |problem| ParseImageNameError {
            text: crate::name::shown(text.as_bytes())
                .chars()
                .take(160)
                .collect(),
            problem,
        };
        let rest = text.strip_prefix("docker://").unwrap_or(text);
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|_| refuse(Problem::Digest))?;
                (rest, Some(digest))
            }
            None => (rest, None),
        };
        // A first component is a host when it looks like one; otherwise it is part of the repository.
        let (host, rest) = match rest.split_once('/') {
            Some((host, rest)) if host == LOCAL_HOST || host.contains(['.', ':']) => (host, rest),
            _ => (LOCAL_HOST, rest),
        };
        if !is_host(host) {
            return Err(refuse(Problem::Host));
        }
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if repository.len() > 255 || !repository.split('/').all(is_component) {
            return Err(refuse(Problem::Repository));
        }
        if !tag.is_none_or(is_tag) {
            return Err(refuse(Problem::Tag));
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self {
            host: host.to_owned(),
            repository: repository.to_owned(),
            tag,
            digest,
        })
    }
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            let hex = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.');
            if address.is_empty() || !address.chars().all(hex) {
                return false;
            }
            ("v6", port)
        }
        None => match text.find(':') {
            Some(colon) => text.split_at(colon),
            None => (text, ""),
        },
    };
    let port_is_good = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| port.parse::<u16>().is_ok());
    let label = |label: &str| {
        !label.is_empty()
            && label
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    port_is_good && name.len() <= 253 && name.split('.').all(label)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
        && text
            .split(alphanumeric)
            .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.chars().all(|c| c == '-'))
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
fn is_tag(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

serde_as_text!(ImageName);

/// An image of a name's history: `NAME` is where the name points, `NAME~1` where it pointed before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Revision {
    name: ImageName,
    back: Option<u32>,
}

impl Revision {
    /// Returns the name.
    pub fn name(&self) -> &ImageName {
        &self.name
    }

    /// Returns how many images back it is; `None` where the text said nothing of the kind.
    pub fn back(&self) -> Option<u32> {
        self.back
    }
}

impl From<ImageName> for Revision {
    fn from(name: ImageName) -> Self {
        Self { name, back: None }
    }
}

impl FromStr for Revision {
    type Err = ParseImageNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((name, back)) = text.rsplit_once('~') else {
            return Ok(text.parse::<ImageName>()?.into());
        };
        let refuse = || ParseImageNameError {
            text: crate::name::shown(text.as_bytes())
                .chars()
                .take(160)
                .collect(),
            problem: Problem::Revision,
        };
        let name: ImageName = name.parse()?;
        let digits = !back.is_empty() && back.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || name.digest.is_some() {
            return Err(refuse());
        }
        let back = back.parse().map_err(|_| refuse())?;
        Ok(Self {
            name,
            back: Some(back),
        })
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.back {
            None => write!(f, "{}", self.name),
            Some(back) => write!(f, "{}~{back}", self.name),
        }
    }
}

/// A text that names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` names no image: {problem}")]
pub struct ParseImageNameError {
    text: String,
    problem: Problem,
}

/// Which part of a name is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("its host is not a host name with an optional port")]
    Host,
    #[error("its repository is not lower-case words joined by `/`, `.`, `_` or `-`")]
    Repository,
    #[error("its tag is not up to 128 letters, digits, `.`, `_` or `-`")]
    Tag,
    #[error("its digest is not `sha256:` and 64 hexadecimal digits")]
    Digest,
    #[error("`~` stands between a tag and how many images back to go")]
    Revision,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_read_as_podman_reads_them() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, wanted) in [
            ("os", "localhost/os:latest"),
            ("os:v1", "localhost/os:v1"),
            ("team/os", "localhost/team/os:latest"),
            ("localhost/os", "localhost/os:latest"),
            ("localhost:5000/os:v1", "localhost:5000/os:v1"),
            ("10.0.2.100:5000/demo/os", "10.0.2.100:5000/demo/os:latest"),
            (
                "quay.io/fedora/fedora-bootc:43",
                "quay.io/fedora/fedora-bootc:43",
            ),
            ("docker://quay.io/a/b", "quay.io/a/b:latest"),
            ("[::1]:5000/os:v1", "[::1]:5000/os:v1"),
        ] {
            let name: ImageName = text.parse().unwrap();
            assert_eq!(name.to_string(), wanted);
        }
        for text in [
            format!("quay.io/a/b@{digest}"),
            format!("quay.io/a/b:1@{digest}"),
        ] {
            assert_eq!(text.parse::<ImageName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_names_are_refused_with_the_part_that_is_wrong() {
        for (text, part) in [
            ("", "repository"),
            ("OS", "repository"),
            ("a//b", "repository"),
            ("a/../b", "repository"),
            ("a..b", "repository"),
            ("a-/b", "repository"),
            ("os:", "tag"),
            ("os:-x", "tag"),
            ("os@sha256:12", "digest"),
            ("host:99999/os", "host"),
            ("a..b/os", "host"),
        ] {
            let error = text.parse::<ImageName>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_revision_counts_images_back_from_a_tag() {
        for (text, wanted, back) in [
            ("os:v1", "localhost/os:v1", None),
            ("os:v1~0", "localhost/os:v1~0", Some(0)),
            ("os~12", "localhost/os:latest~12", Some(12)),
        ] {
            let revision: Revision = text.parse().unwrap();
            assert_eq!(revision.to_string(), wanted);
            assert_eq!(revision.back(), back);
        }
        let digest = format!("os@sha256:{}~1", "0".repeat(64));
        for text in ["os~", "os~+1", "os~-1", "os~1~1", "os~99999999999", &digest] {
            assert!(text.parse::<Revision>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_accepted_name_prints_as_it_parses(text in "[a-z.:/@_-]{0,24}") {
            if let Ok(name) = text.parse::<ImageName>() {
                prop_assert_eq!(name.to_string().parse::<ImageName>().unwrap(), name);
            }
        }
    }
}
