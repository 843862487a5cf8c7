//! Which modules to load, and in which order: what modprobe would do, from depmod's text files.
//!
//! ```text
//! modules.dep      path: paths it needs        modules.softdep  softdep NAME pre: … post: …
//! modules.builtin  paths                       modules.alias    alias PATTERN NAME
//! ```
//!
//! Invariant: a module stands behind everything that it needs, and stands once; circles end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{InitramfsError, ModuleSource, Wanted, read};

/// When a module is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// At every boot.
    Needed,
    /// In a virtual machine that takes orders from whoever runs it.
    Guest,
    /// When the root is not found without it.
    Driver,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Needed => "needed",
            Self::Guest => "guest",
            Self::Driver => "driver",
        })
    }
}

/// Modules in the order of loading, by their path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleList {
    /// When each is loaded, and what it is.
    pub modules: Vec<(Stage, String)>,
}

impl ModuleList {
    /// Parses the list that an initramfs carries. Lines of other words are passed over.
    pub fn parse(text: &str) -> Self {
        let modules = text
            .lines()
            .filter_map(|line| match line.split_once(' ')? {
                ("needed", path) => Some((Stage::Needed, path.to_owned())),
                ("guest", path) => Some((Stage::Guest, path.to_owned())),
                ("driver", path) => Some((Stage::Driver, path.to_owned())),
                _ => None,
            })
            .collect();
        Self { modules }
    }
}

/// What depmod knows, by the names of modules.
#[derive(Default)]
struct Known {
    paths: BTreeMap<String, String>,
    needs: BTreeMap<String, Vec<String>>,
    built_in: BTreeSet<String>,
    before: BTreeMap<String, Vec<String>>,
    after: BTreeMap<String, Vec<String>>,
    aliases: BTreeMap<String, Vec<String>>,
}

pub(super) fn resolve(
    source: &dyn ModuleSource,
    wanted: &[(Stage, &[Wanted])],
) -> Result<ModuleList, InitramfsError> {
    let known = Known::read(source)?;
    let mut walk = Walk {
        known: &known,
        seen: BTreeSet::new(),
        list: ModuleList::default(),
    };
    for (stage, wanted) in wanted {
        for Wanted { name, essential } in *wanted {
            if known.paths.contains_key(*name) {
                walk.visit(name, *stage);
            } else if *essential && !known.built_in.contains(*name) {
                return Err(InitramfsError::Essential { name });
            }
        }
    }
    Ok(walk.list)
}

struct Walk<'a> {
    known: &'a Known,
    seen: BTreeSet<String>,
    list: ModuleList,
}

impl Walk<'_> {
    /// Depth is bounded by the number of modules: a name is visited once.
    fn visit(&mut self, name: &str, stage: Stage) {
        let known = self.known;
        let Some(path) = known.paths.get(name) else {
            return; // built in, or not there
        };
        if !self.seen.insert(name.to_owned()) {
            return;
        }
        let named = |list: &BTreeMap<String, Vec<String>>| list.get(name).cloned();
        for before in named(&known.before).unwrap_or_default() {
            self.visit_alias(&before, stage);
        }
        for needed in named(&known.needs).unwrap_or_default() {
            self.visit(&needed, stage);
        }
        self.list.modules.push((stage, path.clone()));
        for after in named(&known.after).unwrap_or_default() {
            self.visit_alias(&after, stage);
        }
    }

    /// Visits a module by its name, or all that answer to it.
    fn visit_alias(&mut self, name: &str, stage: Stage) {
        self.visit(&plain_name(name), stage);
        for module in self.known.aliases.get(name).cloned().unwrap_or_default() {
            self.visit(&module, stage);
        }
    }
}

impl Known {
    fn read(source: &dyn ModuleSource) -> Result<Self, InitramfsError> {
        let text = |path: &'static str| -> Result<Option<String>, InitramfsError> {
            Ok(read(source, path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        };
        let needed = |path| text(path)?.ok_or(InitramfsError::NoList { path });
        let mut known = Self::default();
        for line in needed("modules.dep")?.lines() {
            if let Some((path, needs)) = line.split_once(':') {
                let name = module_name(path);
                let needs = needs.split_whitespace().map(module_name).collect();
                known.needs.insert(name.clone(), needs);
                known.paths.insert(name, path.to_owned());
            }
        }
        known.built_in = needed("modules.builtin")?
            .lines()
            .map(module_name)
            .collect();
        for line in text("modules.softdep")?.unwrap_or_default().lines() {
            known.add_softdep(line);
        }
        for line in text("modules.alias")?.unwrap_or_default().lines() {
            let mut words = line.split_whitespace();
            // Only whole names are looked up here, and those of devices are patterns.
            if let (Some("alias"), Some(alias), Some(name)) =
                (words.next(), words.next(), words.next())
                && !alias.contains(['*', '?', '['])
            {
                let names = known.aliases.entry(alias.to_owned()).or_default();
                names.push(plain_name(name));
            }
        }
        Ok(known)
    }

    fn add_softdep(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let (Some("softdep"), Some(name)) = (words.next(), words.next()) else {
            return;
        };
        let name = plain_name(name);
        let mut list = None;
        for word in words {
            match word {
                "pre:" => list = Some(self.before.entry(name.clone()).or_default()),
                "post:" => list = Some(self.after.entry(name.clone()).or_default()),
                other => {
                    if let Some(list) = &mut list {
                        list.push(other.to_owned());
                    }
                }
            }
        }
    }
}

/// Returns the name of the module in a file.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path).trim();
    let end = file.find(".ko").unwrap_or(file.len());
    plain_name(&file[..end])
}

/// Modules are named with `_`, and their files with either.
fn plain_name(name: &str) -> String {
    name.replace('-', "_")
}
