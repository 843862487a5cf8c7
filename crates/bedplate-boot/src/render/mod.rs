//! What lies on the boot partition, as a function of the record.
//!
//! ```text
//! Record + Observed ─→ plan_try     files → entry with tries → sector* → superseded trials go
//!                      plan_select  entry → trials based on it go → sector*
//!                      plan_prove   entry without counter → sector* → the trial's entry goes
//!                      plan_clean   entries → files that nothing names any more
//!                      render       all that the record says, for an install or a repair
//!                  Plan ─→ execute                                    sector*: the commit point
//! ```
//!
//! Invariant: after every prefix of a plan, the loader finds a whole entry of the deployment that booted
//! before or of the one that the plan is for. Tries left are never written anew: an entry on trial that
//! is lost was a failed trial.

mod execute;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;

use bedplate_model::Sha256;
use bedplate_model::record::{Deployment, DeploymentId, Record, State};

pub use execute::{ExecuteError, execute};

use crate::cmdline::{self, BootRoot, Cmdline};
use crate::entry::{BootEntry, EntryName, SORT_KEY};
use crate::kargs;
use crate::loader_conf::LoaderConf;
use crate::partition::BootPartition;
use crate::{ENTRIES, ENTRIES_KIND, FILES, LOADER_CONF};

/// What is the same for all entries of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often a deployment on trial may start before its base boots again.
    pub tries: u32,
    /// How long the loader's menu shows, in seconds.
    pub timeout: u32,
    /// After how many seconds a panicked kernel restarts, unless an image says otherwise.
    pub panic: u32,
    /// Whether objects need not be sealed.
    pub unsealed_allowed: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tries: 3,
            timeout: 0,
            panic: 10,
            unsealed_allowed: false,
        }
    }
}

/// What was found on a boot partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The entries of ours.
    pub entries: Vec<EntryName>,
    /// The names in the directory of kernels and initramfs images.
    pub files: Vec<String>,
    /// What the loader is told, where that is ours.
    pub loader: Option<LoaderConf>,
    /// Whether the file that says what kind of entries there are is there.
    pub kind: bool,
    /// Paths of files that were being written when a power cut came.
    pub unfinished: Vec<String>,
}

impl Observed {
    /// Returns the entries of a deployment.
    pub fn entries_of(&self, deployment: DeploymentId) -> impl Iterator<Item = &EntryName> {
        self.entries
            .iter()
            .filter(move |name| name.deployment == deployment)
    }

    /// Returns the tries that a deployment has left, or `None` where it has no entry on trial.
    pub fn tries_left(&self, deployment: DeploymentId) -> Option<u32> {
        self.entries_of(deployment)
            .find_map(|name| name.base.and(name.tries))
            .map(|tries| tries.left)
    }

    fn has(&self, name: &EntryName) -> bool {
        self.entries.contains(name)
    }
}

/// Looks at a boot partition.
pub fn observe(partition: &dyn BootPartition) -> io::Result<Observed> {
    let mut observed = Observed {
        kind: partition.read(ENTRIES_KIND)?.is_some(),
        loader: partition
            .read(LOADER_CONF)?
            .and_then(|bytes| LoaderConf::parse(&bytes)),
        ..Observed::default()
    };
    for name in partition.list(ENTRIES)? {
        if name.starts_with("bedplate-") && is_unfinished(&name) {
            observed.unfinished.push(format!("{ENTRIES}/{name}"));
        } else if let Ok(entry) = name.parse::<EntryName>() {
            if is_whole(partition, &entry)? {
                observed.entries.push(entry);
            } else {
                observed.unfinished.push(entry.path());
            }
        } // Entries of others are theirs.
    }
    for name in partition.list(FILES)? {
        if is_unfinished(&name) {
            observed.unfinished.push(format!("{FILES}/{name}"));
        } else {
            observed.files.push(name);
        }
    }
    Ok(observed)
}

/// Returns whether an entry says what boots. A cut leaves one that is empty: FAT writes the name first.
fn is_whole(partition: &dyn BootPartition, name: &EntryName) -> io::Result<bool> {
    let bytes = partition.read(&name.path())?.unwrap_or_default();
    let entry = std::str::from_utf8(&bytes).ok().map(BootEntry::parse);
    Ok(matches!(entry, Some(Ok(entry)) if entry.linux.is_some()))
}

/// Returns whether a name is that of a file while [`BootPartition::write`] writes it.
fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(".new").is_some()
}

/// One step on the boot partition; durable before the next one begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A kernel or initramfs is there, with the content that its name says.
    Store {
        /// Its path.
        path: String,
        /// The SHA-256 of its content.
        content: Sha256,
    },
    /// An entry is there.
    Entry {
        /// Its name.
        name: EntryName,
        /// What it says.
        entry: BootEntry,
    },
    /// The file that says what kind of entries there are is there.
    Kind,
    /// The loader is told what boots: the commit point.
    Default(LoaderConf),
    /// A file is not there.
    Remove {
        /// Its path.
        path: String,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store { path, .. } => write!(f, "store {path}"),
            Self::Entry { name, .. } => write!(f, "write {}", name.path()),
            Self::Kind => write!(f, "write {ENTRIES_KIND}"),
            Self::Default(conf) => write!(f, "set {LOADER_CONF} to boot {}", conf.default),
            Self::Remove { path } => write!(f, "remove {path}"),
        }
    }
}

/// Steps in their order. Carrying a plan out again after a crash ends in the same state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps.
    pub operations: Vec<Operation>,
}

impl Plan {
    /// Returns whether everything is as it should be.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.operations
            .iter()
            .try_for_each(|operation| writeln!(f, "{operation}"))
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The record has no such deployment.
    #[error("the record has no deployment {0}")]
    Unknown(DeploymentId),
    /// Only a proven deployment can be relied upon.
    #[error("deployment {0} is not proven")]
    NotProven(DeploymentId),
    /// A deployment on trial needs one to fall back to.
    #[error("deployment {0} has no base to fall back to")]
    NoBase(DeploymentId),
    /// A kernel argument would change what other ones mean.
    #[error("deployment {deployment}: `{argument}` is not one kernel argument")]
    Argument {
        /// The deployment.
        deployment: DeploymentId,
        /// The argument.
        argument: String,
    },
}

/// Plans that `deployment` boots next, on trial, and its base when it fails.
pub fn plan_try(
    record: &Record,
    observed: &Observed,
    deployment: DeploymentId,
    settings: &Settings,
) -> Result<Plan, PlanError> {
    let tried = find(record, deployment)?;
    let base = tried.base.ok_or(PlanError::NoBase(deployment))?;
    let base = find_proven(record, base)?;
    let mut plan = Plan::default();
    add_reliable(&mut plan, record, observed, base, settings)?;
    let on_trial = |name: &&EntryName| name.base == Some(base.id);
    if !observed.entries_of(deployment).any(|name| on_trial(&name)) {
        add_files(&mut plan, tried);
        plan.operations.push(Operation::Entry {
            name: EntryName::trial(base.id, deployment, settings.tries),
            entry: entry(record, tried, settings)?,
        });
    }
    add_default(&mut plan, base.id, settings);
    // What was to be tried before is superseded. Until it is gone it sorts behind, by its version.
    let superseded = observed.entries.iter().filter(on_trial);
    plan.operations.extend(
        superseded
            .filter(|name| name.deployment != deployment)
            .map(remove),
    );
    Ok(plan)
}

/// Plans that `deployment`, which is proven, boots next.
pub fn plan_select(
    record: &Record,
    observed: &Observed,
    deployment: DeploymentId,
    settings: &Settings,
) -> Result<Plan, PlanError> {
    let selected = find_proven(record, deployment)?;
    let mut plan = Plan::default();
    add_reliable(&mut plan, record, observed, selected, settings)?;
    // Trials that are based on it would boot first.
    let trials = observed.entries.iter();
    plan.operations.extend(
        trials
            .filter(|name| name.base == Some(deployment))
            .map(remove),
    );
    add_default(&mut plan, deployment, settings);
    Ok(plan)
}

/// Plans that `deployment`, which the record has just called proven, boots from now on, uncounted.
///
/// The new entry is written beside the one on trial, and not renamed from it: FAT may lose a name
/// that is being renamed.
pub fn plan_prove(
    record: &Record,
    observed: &Observed,
    deployment: DeploymentId,
    settings: &Settings,
) -> Result<Plan, PlanError> {
    let proven = find_proven(record, deployment)?;
    let mut plan = Plan::default();
    add_reliable(&mut plan, record, observed, proven, settings)?;
    add_default(&mut plan, deployment, settings);
    let trials = observed.entries_of(deployment);
    plan.operations
        .extend(trials.filter(|name| name.base.is_some()).map(remove));
    Ok(plan)
}

/// Plans that what the record does not know, or calls bad, is not there: entries first, then files.
///
/// What the loader's default names stays, whatever the record says: it is what boots.
pub fn plan_clean(record: &Record, observed: &Observed) -> Plan {
    let default = observed.loader.map(|conf| conf.default);
    let stays = |name: &&EntryName| {
        let state = record
            .deployment(name.deployment)
            .map(|deployment| deployment.state);
        match name.base {
            None => default == Some(name.deployment) || !matches!(state, None | Some(State::Bad)),
            Some(_) => state == Some(State::Trial),
        }
    };
    let mut plan = Plan::default();
    let entries = observed.entries.iter();
    plan.operations
        .extend(entries.clone().filter(|name| !stays(name)).map(remove));
    let unfinished = observed.unfinished.iter().cloned();
    plan.operations
        .extend(unfinished.map(|path| Operation::Remove { path }));
    // An entry that stays without the record knowing its files keeps all of them: better full than dead.
    let kept: Vec<_> = entries
        .filter(stays)
        .map(|name| record.deployment(name.deployment))
        .collect();
    if kept.iter().all(Option::is_some) {
        let named: Vec<String> = record
            .deployments
            .iter()
            .filter(|deployment| deployment.state != State::Bad)
            .flat_map(|deployment| [kernel_name(deployment), initramfs_name(deployment)])
            .collect();
        let unnamed = observed.files.iter().filter(|name| !named.contains(name));
        plan.operations
            .extend(unnamed.map(|name| Operation::Remove {
                path: format!("{FILES}/{name}"),
            }));
    }
    plan
}

/// Plans that the boot partition is as the record says: what an install makes, and a repair mends.
pub fn render(
    record: &Record,
    observed: &Observed,
    settings: &Settings,
) -> Result<Plan, PlanError> {
    let mut plan = Plan::default();
    if !observed.kind {
        plan.operations.push(Operation::Kind);
    }
    let only = record.deployments.len() == 1;
    for deployment in &record.deployments {
        if deployment.state == State::Proven || only {
            add_reliable(&mut plan, record, observed, deployment, settings)?;
        }
    }
    let default = find(record, record.default)?;
    let default = match (default.state, default.base) {
        // Its trial's name begins with the base's, so the base is what the loader is told.
        (State::Trial | State::Staged | State::Bad, Some(base)) => find(record, base)?.id,
        _ => default.id,
    };
    let settled = LoaderConf {
        timeout: settings.timeout,
        default,
    };
    if observed.loader != Some(settled) {
        add_default(&mut plan, default, settings);
    }
    let after = Observed {
        loader: Some(settled),
        ..observed.clone()
    };
    plan.operations
        .extend(plan_clean(record, &after).operations);
    Ok(plan)
}

/// Returns the entry of a deployment.
pub fn entry(
    record: &Record,
    deployment: &Deployment,
    settings: &Settings,
) -> Result<BootEntry, PlanError> {
    Ok(BootEntry {
        title: Some(deployment.title.clone()),
        version: Some(deployment.sequence.to_string()),
        sort_key: Some(SORT_KEY.into()),
        linux: Some(format!("/{FILES}/{}", kernel_name(deployment))),
        initrd: vec![format!("/{FILES}/{}", initramfs_name(deployment))],
        options: vec![command_line(record, deployment, settings)?.to_string()],
        other: Vec::new(),
    })
}

/// Returns the command line of a deployment. The last of equal keys counts, so what names the root comes
/// last, and what an image may change comes first.
pub fn command_line(
    record: &Record,
    deployment: &Deployment,
    settings: &Settings,
) -> Result<Cmdline, PlanError> {
    let wrong = |argument: &&String| !kargs::is_argument(argument) || *argument == "--";
    if let Some(argument) = deployment.kargs.iter().find(wrong) {
        return Err(PlanError::Argument {
            deployment: deployment.id,
            argument: bedplate_model::name::shown(argument.as_bytes()),
        });
    }
    let own = OwnArguments::new(record, deployment, settings);
    let words = [own.first, deployment.kargs.clone(), own.last];
    Ok(Cmdline::from_words(words.into_iter().flatten()))
}

/// The arguments of a command line that come from neither image nor machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnArguments {
    /// Those that others may change: they come before them.
    pub first: Vec<String>,
    /// Those that name root and deployment: they come last.
    pub last: Vec<String>,
}

impl OwnArguments {
    /// Returns those of a deployment.
    pub fn new(record: &Record, deployment: &Deployment, settings: &Settings) -> Self {
        let root = BootRoot::new(&deployment.root, settings.unsealed_allowed);
        Self {
            first: vec![format!("panic={}", settings.panic)],
            last: vec![
                format!("{}=UUID={}", cmdline::ROOT, record.root_uuid),
                format!("{}={}", cmdline::DEPLOYMENT, deployment.id),
                format!("{}={root}", cmdline::ROOT_DIGEST),
            ],
        }
    }
}

/// Returns the name of a deployment's kernel in [`FILES`].
pub fn kernel_name(deployment: &Deployment) -> String {
    format!("vmlinuz-{}", &deployment.vmlinuz.to_hex()[..32])
}

/// Returns the name of a deployment's initramfs in [`FILES`].
pub fn initramfs_name(deployment: &Deployment) -> String {
    format!("initramfs-{}.img", &deployment.initramfs.to_hex()[..32])
}

/// Adds what a deployment that others fall back to needs; an entry that is there is left alone.
fn add_reliable(
    plan: &mut Plan,
    record: &Record,
    observed: &Observed,
    deployment: &Deployment,
    settings: &Settings,
) -> Result<(), PlanError> {
    let name = EntryName::proven(deployment.id);
    let has_files = [kernel_name(deployment), initramfs_name(deployment)]
        .iter()
        .all(|file| observed.files.contains(file));
    if !has_files {
        add_files(plan, deployment);
    }
    if !observed.has(&name) {
        let entry = entry(record, deployment, settings)?;
        plan.operations.push(Operation::Entry { name, entry });
    }
    Ok(())
}

fn add_files(plan: &mut Plan, deployment: &Deployment) {
    for (name, content) in [
        (kernel_name(deployment), deployment.vmlinuz),
        (initramfs_name(deployment), deployment.initramfs),
    ] {
        let path = format!("{FILES}/{name}");
        plan.operations.push(Operation::Store { path, content });
    }
}

fn add_default(plan: &mut Plan, default: DeploymentId, settings: &Settings) {
    plan.operations.push(Operation::Default(LoaderConf {
        timeout: settings.timeout,
        default,
    }));
}

fn remove(name: &EntryName) -> Operation {
    Operation::Remove { path: name.path() }
}

fn find(record: &Record, id: DeploymentId) -> Result<&Deployment, PlanError> {
    record.deployment(id).ok_or(PlanError::Unknown(id))
}

fn find_proven(record: &Record, id: DeploymentId) -> Result<&Deployment, PlanError> {
    let found = find(record, id)?;
    match found.state {
        State::Proven => Ok(found),
        State::Staged | State::Trial | State::Bad => Err(PlanError::NotProven(id)),
    }
}
