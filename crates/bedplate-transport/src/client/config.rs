//! `registries.conf`: which registries are insecure, blocked, or lie elsewhere.
//!
//! The version 2 format of containers tools; the entry with the longest prefix that fits counts.

use std::io;
use std::path::{Path, PathBuf};

use bedplate_model::ImageName;
use serde::Deserialize;

/// What `registries.conf` and its drop-ins say.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, Deserialize)]
struct Entry {
    #[serde(default)]
    prefix: Option<String>,
    #[serde(default)]
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
}

#[derive(Debug, Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<Entry>,
}

/// Where an image is really fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) host: String,
    pub(crate) repository: String,
    pub(crate) insecure: bool,
}

impl Entry {
    fn prefix(&self) -> &str {
        self.prefix
            .as_deref()
            .or(self.location.as_deref())
            .unwrap_or_default()
    }
}

impl Registries {
    /// Reads a configuration file and its drop-ins `<file>.d/*.conf`; what does not exist is empty.
    ///
    /// Drop-ins come in the order of their names; a later entry replaces one with the same prefix.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let mut drop_in_dir = file.as_os_str().to_owned();
        drop_in_dir.push(".d");
        let mut files = vec![file.to_owned()];
        if let Some(entries) = unless_missing(&PathBuf::from(&drop_in_dir), |dir| {
            std::fs::read_dir(dir)?
                .map(|entry| Ok(entry?.path()))
                .collect::<io::Result<Vec<_>>>()
        })? {
            let mut drop_ins: Vec<_> = entries
                .into_iter()
                .filter(|path| {
                    path.extension()
                        .is_some_and(|extension| extension == "conf")
                })
                .collect();
            drop_ins.sort_unstable();
            files.append(&mut drop_ins);
        }
        let mut registries = Self::default();
        for path in files {
            if let Some(text) = unless_missing(&path, |path| std::fs::read_to_string(path))? {
                let add = registries.add(&text);
                add.map_err(|problem| ConfigError::Damaged { path, problem })?;
            }
        }
        Ok(registries)
    }

    /// Parses one configuration file.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let mut registries = Self::default();
        registries.add(text)?;
        Ok(registries)
    }

    fn add(&mut self, text: &str) -> Result<(), toml::de::Error> {
        for entry in toml::from_str::<File>(text)?.registry {
            self.entries.retain(|old| old.prefix() != entry.prefix());
            self.entries.push(entry);
        }
        Ok(())
    }

    /// Finds out where an image is fetched from, or `None` when the configuration blocks it.
    pub(crate) fn place(&self, image: &ImageName) -> Option<Place> {
        let name = format!("{}/{}", image.host(), image.repository());
        let entry = self
            .entries
            .iter()
            .filter_map(|entry| {
                matched(entry.prefix(), image.host(), &name).map(|len| (len, entry))
            })
            .max_by_key(|(len, _)| *len);
        let Some((len, entry)) = entry else {
            return Some(Place {
                host: image.host().to_owned(),
                repository: image.repository().to_owned(),
                insecure: false,
            });
        };
        if entry.blocked {
            return None;
        }
        let moved = match &entry.location {
            Some(location) if !entry.prefix().starts_with("*.") => {
                format!("{location}{}", &name[len..])
            }
            _ => name,
        };
        let (host, repository) = moved.split_once('/')?;
        Some(Place {
            host: host.to_owned(),
            repository: repository.to_owned(),
            insecure: entry.insecure,
        })
    }
}

/// Returns how much of a name a prefix covers, where it fits at the end of a component.
fn matched(prefix: &str, host: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix("*.") {
        let host = host.split(':').next().unwrap_or(host);
        let below = host.strip_suffix(domain)?;
        return below.ends_with('.').then_some(prefix.len());
    }
    let rest = name.strip_prefix(prefix)?;
    let fits = !prefix.is_empty() && (rest.is_empty() || rest.starts_with('/'));
    fits.then_some(prefix.len())
}

fn unless_missing<T>(
    path: &Path,
    read: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<Option<T>, ConfigError> {
    match read(path) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Why the configuration of registries is not known.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        problem: toml::de::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(config: &str, image: &str) -> Option<(String, bool)> {
        let place = Registries::parse(config)
            .unwrap()
            .place(&image.parse().unwrap())?;
        Some((
            format!("{}/{}", place.host, place.repository),
            place.insecure,
        ))
    }

    #[test]
    fn the_longest_prefix_counts() {
        let config = r#"
            unqualified-search-registries = ["docker.io"]
            [[registry]]
            location = "a.example:5000"
            insecure = true
            [[registry]]
            prefix = "a.example:5000/moved"
            location = "b.example/there"
            [[registry]]
            prefix = "*.lab.example"
            insecure = true
            [[registry]]
            location = "evil.example"
            blocked = true
        "#;
        for (image, wanted) in [
            ("a.example:5000/x", Some(("a.example:5000/x", true))),
            ("a.example:5000/moved/x", Some(("b.example/there/x", false))),
            (
                "a.example:5000/movedx",
                Some(("a.example:5000/movedx", true)),
            ),
            ("one.lab.example:1/x", Some(("one.lab.example:1/x", true))),
            ("lab.example/x", Some(("lab.example/x", false))),
            ("c.example/x", Some(("c.example/x", false))),
            ("evil.example/x", None),
        ] {
            let wanted = wanted.map(|(name, insecure)| (name.to_owned(), insecure));
            assert_eq!(place(config, image), wanted, "{image}");
        }
    }

    #[test]
    fn a_drop_in_replaces_the_entry_with_its_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("registries.conf");
        let drop_ins = dir.path().join("registries.conf.d");
        std::fs::create_dir(&drop_ins).unwrap();
        std::fs::write(&file, "[[registry]]\nlocation = \"a.b\"\nblocked = true\n").unwrap();
        std::fs::write(
            drop_ins.join("50-a.conf"),
            "[[registry]]\nlocation = \"a.b\"\n",
        )
        .unwrap();
        std::fs::write(drop_ins.join("60-b.txt"), "not read").unwrap();
        let registries = Registries::read(&file).unwrap();
        assert!(registries.place(&"a.b/c".parse().unwrap()).is_some());
        std::fs::write(drop_ins.join("70-c.conf"), "[[registry").unwrap();
        let error = Registries::read(&file).unwrap_err();
        assert!(error.to_string().contains("70-c.conf"), "{error}");
    }

    #[test]
    fn no_configuration_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            Registries::read(&dir.path().join("none"))
                .unwrap()
                .entries
                .is_empty()
        );
    }
}
