//! Who must act when a verb failed: the exit code, and the hint below the error.
//!
//! Libraries have typed errors; this file is the one place that sorts them. It looks for the first
//! error in the chain that it knows, and never at any text.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use bedplate_build::BuildError;
use bedplate_model::image::ParseImageNameError;
use bedplate_model::name::NameError;
use bedplate_store::{CheckoutError, CreateError, OpenError, ReadContentError, ReadStoreError};
use bedplate_transport::{PullError, PushError, RegistryError};

/// Who must act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The person: the command or its input.
    Usage,
    /// This host: its disk, permissions or tools.
    Host,
    /// The remote side: a registry, the network.
    Remote,
    /// Damage: something is not what its digest says.
    Damage,
    /// We: a bug in Bedplate.
    Bug,
}

impl Blame {
    /// Returns the exit code.
    pub(crate) fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage => 2,
            Self::Host => 3,
            Self::Remote => 4,
            Self::Damage => 5,
            Self::Bug => 70,
        })
    }
}

/// A failure that the command line itself found, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    pub(crate) blame: Blame,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Refusal {
    /// Makes a refusal of what the person typed.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            blame: Blame::Usage,
            message: message.into(),
            hint: Some(hint.into()),
        }
    }
}

/// Draws an error: what was attempted, why it failed, and what to do.
pub(crate) fn report(error: &anyhow::Error, out: &mut dyn Write) -> ExitCode {
    let (blame, hint) = verdict(error);
    // Standard error is the last resort: there is nobody left to tell when it fails.
    let _ = writeln!(out, "error: {}", sentence(error.as_ref()));
    if let Some(hint) = hint {
        let _ = writeln!(out, "hint: {hint}");
    }
    blame.exit_code()
}

/// Prints an error and its causes as one sentence; what a wrapper only passes on is said once.
pub(crate) fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// Finds the first error of the chain that says who must act.
fn verdict(error: &anyhow::Error) -> (Blame, Option<String>) {
    for cause in error.chain() {
        if let Some(verdict) = known(cause) {
            return verdict;
        }
    }
    (Blame::Bug, Some("this should not happen; please report it with the command and its output".into()))
}

/// Sorts an error that is known here.
fn known(error: &(dyn Error + 'static)) -> Option<(Blame, Option<String>)> {
    let say = |blame, hint: &str| Some((blame, Some(hint.to_owned())));
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return Some((refusal.blame, refusal.hint.clone()));
    }
    if let Some(error) = error.downcast_ref::<ReadContentError>() {
        return match error {
            ReadContentError::Damaged { .. } | ReadContentError::WrongSize { .. } => {
                say(Blame::Damage, DAMAGE_HINT)
            }
        };
    }
    if let Some(error) = error.downcast_ref::<ReadStoreError>() {
        return match error {
            ReadStoreError::Damaged { .. } | ReadStoreError::Image { .. } | ReadStoreError::Missing(_) => {
                say(Blame::Damage, DAMAGE_HINT)
            }
            ReadStoreError::Read { source, .. } => Some(of_io(source)),
            ReadStoreError::TooLarge { .. } => Some((Blame::Usage, None)),
        };
    }
    if let Some(error) = error.downcast_ref::<OpenError>() {
        return match error {
            OpenError::Missing(_) => say(
                Blame::Usage,
                "`bedplate commit`, `import`, `build` and `pull` make a store; --store DIR names one",
            ),
            OpenError::Read { source, .. } => Some(of_io(source)),
            OpenError::Damaged { .. } => Some((Blame::Damage, None)),
            OpenError::Format { .. } | OpenError::Algorithm { .. } => {
                say(Blame::Host, "a newer version of bedplate wrote it: use that one")
            }
        };
    }
    if let Some(CreateError::NotEmpty(_)) = error.downcast_ref() {
        return say(Blame::Usage, "name an empty directory, or one that is not there");
    }
    if let Some(error) = error.downcast_ref::<CheckoutError>()
        && error.needs_root()
    {
        return say(Blame::Host, "only root can restore owners and devices");
    }
    if let Some(error) = error.downcast_ref::<RegistryError>() {
        return match error {
            RegistryError::Local(_) => say(Blame::Usage, "name a registry: HOST/REPOSITORY:TAG"),
            RegistryError::Blocked(_) => say(Blame::Host, "see /etc/containers/registries.conf"),
            RegistryError::Auth(_) | RegistryError::Denied { .. } => {
                say(Blame::Remote, "`podman login` keeps credentials where bedplate finds them")
            }
            RegistryError::NotFound { .. } => say(Blame::Usage, "check the name and the tag"),
            RegistryError::Http(_) => say(
                Blame::Remote,
                "check host and port; --tls-verify=false permits a registry without TLS",
            ),
            RegistryError::Refused { .. }
            | RegistryError::Body { .. }
            | RegistryError::WrongDigest { .. }
            | RegistryError::WrongLength { .. }
            | RegistryError::Nonsense { .. } => Some((Blame::Remote, None)),
        };
    }
    if error.is::<PullError>() || error.is::<PushError>() {
        // Their causes say more, where they have any.
        return error.source().and_then(known_chain).or(Some((Blame::Remote, None)));
    }
    if error.is::<ParseImageNameError>() || error.is::<NameError>() {
        return say(Blame::Usage, "an image is [HOST/]REPOSITORY[:TAG][@DIGEST]");
    }
    if let Some(error) = error.downcast_ref::<BuildError>() {
        return match error {
            BuildError::Unfit { .. } => say(Blame::Usage, "`bedplate lint` explains; `--skip-lint NAME` switches one off"),
            BuildError::Kernel(error) => Some((Blame::Usage, error.hint().map(str::to_owned))),
            BuildError::Karg(_) | BuildError::Hostname(_) => Some((Blame::Usage, None)),
            _ => error.source().and_then(known_chain),
        };
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return Some(of_io(error));
    }
    None
}

fn known_chain(error: &(dyn Error + 'static)) -> Option<(Blame, Option<String>)> {
    known(error).or_else(|| error.source().and_then(known_chain))
}

/// Sorts what the system said.
fn of_io(error: &io::Error) -> (Blame, Option<String>) {
    // Errors of ours travel inside the system's.
    if let Some(verdict) = error.get_ref().and_then(|inner| known_chain(inner)) {
        return verdict;
    }
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::AlreadyExists => {
            (Blame::Usage, None)
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (Blame::Host, Some("free some space (`bedplate gc` removes what no name reaches) and run it again".into()))
        }
        io::ErrorKind::PermissionDenied => (Blame::Host, Some("another user owns it, or it needs root".into())),
        _ => (Blame::Host, None),
    }
}

const DAMAGE_HINT: &str = "`bedplate fsck` lists all damage; pull or build the image again to replace it";
