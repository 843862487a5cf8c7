//! Who must act when a verb failed: the exit code, and the hint below the error.
//!
//! Libraries have typed errors; this file is the one place that sorts them. It looks for the first
//! error in the chain that it knows, and never at any text.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use bedplate_build::BuildError;
use bedplate_build::kernel::KernelError;
use bedplate_deploy::bootable::BootableError;
use bedplate_deploy::firmware::RegisterError;
use bedplate_deploy::grow::GrowError;
use bedplate_deploy::install::{ExecuteError, PlanError, TargetError};
use bedplate_deploy::kargs::{EditError, KargsError};
use bedplate_deploy::machine::MachineError;
use bedplate_deploy::pin::PinError;
use bedplate_deploy::rollback::RollbackError;
use bedplate_deploy::stage::StageError;
use bedplate_deploy::undeploy::UndeployError;
use bedplate_model::image::ParseImageNameError;
use bedplate_model::name::NameError;
use bedplate_store::diff::SummaryError;
use bedplate_store::fsck::{FsckError, RepairError};
use bedplate_store::gc::GcError;
use bedplate_store::layer::{ImportError, LayerError, WriteTarError};
use bedplate_store::{
    BeginError, CheckoutError, CommitError, CreateError, FindError, IndexError, Item, OpenError,
    PartError, PutError, ReadContentError, ReadStoreError, RefsError, ScanError,
};
use bedplate_sys::mount::MountImageError;
use bedplate_transport::serve::ServeError;
use bedplate_transport::{
    AuthError, ConfigError, ConnectError, HttpError, LayoutError, PackageError, PullError,
    PushError, RegistryError, ResolveError,
};

use crate::output::WriteOutputError;
use crate::vm::VmError;

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
            Self::Bug => crate::BUG,
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

/// Finds the error of the chain that says most about who must act.
fn verdict(error: &anyhow::Error) -> (Blame, Option<String>) {
    let mut chain: Vec<&(dyn Error + 'static)> = Vec::new();
    for cause in error.chain() {
        chain.push(cause);
        chain.extend(behind(cause));
    }
    let bug = || {
        let hint = "this should not happen; please report it with the command and its output";
        (Blame::Bug, Some(hint.to_owned()))
    };
    let specific = chain.iter().find_map(|error| known(*error));
    specific
        .or_else(|| chain.iter().find_map(|error| of_operation(*error)))
        .unwrap_or_else(bug)
}

/// Returns the error that a transparent one stands for: its chain of causes passes that by.
fn behind<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    if let Some(error) = error.downcast_ref::<PullError>() {
        return match error {
            PullError::Registry(error) => Some(error),
            PullError::Store(error) => Some(error.own()),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<PushError>() {
        return match error {
            PushError::Registry(error) => Some(error),
            PushError::Store(error) | PushError::Package(PackageError::Store(error)) => {
                Some(error.own())
            }
            _ => None,
        };
    }
    if let Some(PackageError::Store(error)) = error.downcast_ref() {
        return Some(error.own());
    }
    if let Some(error) = error.downcast_ref::<PlanError>() {
        return match error {
            PlanError::Read(error) => Some(error),
            PlanError::Find(error) => Some(error),
            PlanError::Target(error) => Some(error),
            PlanError::Bootable(error) => Some(error),
            _ => None,
        };
    }
    // The chain of causes shows its box, which no downcast sees through.
    if let Some(CheckoutError::Content { source, .. }) = error.downcast_ref() {
        return Some(&**source);
    }
    if let Some(BuildError::Kernel(error)) = error.downcast_ref() {
        return Some(error);
    }
    if let Some(error) = error.downcast_ref::<KargsError>() {
        return match error {
            KargsError::Store(error) => Some(error),
            KargsError::Edit(error) => Some(error),
            KargsError::Stage(error) => Some(error),
            KargsError::Machine(_) | KargsError::Image(_) | KargsError::Long(_) => None,
        };
    }
    None
}

/// Sorts an error by the operation that it belongs to, when nothing more is known about it.
fn of_operation(error: &(dyn Error + 'static)) -> Option<(Blame, Option<String>)> {
    let say = |blame| Some((blame, None));
    if error.is::<PullError>() || error.is::<PushError>() {
        return say(Blame::Remote);
    }
    if is_of_machine(error) {
        return say(Blame::Host);
    }
    if error.is::<BuildError>()
        || error.is::<ImportError>()
        || error.is::<WriteTarError>()
        || error.is::<PlanError>()
        || error.is::<StageError>()
        || error.is::<RollbackError>()
        || error.is::<PinError>()
        || error.is::<KargsError>()
        || error.is::<UndeployError>()
        || error.is::<SummaryError>()
    {
        return say(Blame::Usage);
    }
    if error.is::<ScanError>()
        || error.is::<CheckoutError>()
        || error.is::<CommitError>()
        || error.is::<ExecuteError>()
        || error.is::<MachineError>()
        || error.is::<MountImageError>()
        || error.is::<ConfigError>()
        || error.is::<ServeError>()
        || error.is::<GrowError>()
        || error.is::<RegisterError>()
        || error.is::<FsckError>()
        || error.is::<IndexError>()
        || error.is::<RepairError>()
    {
        return say(Blame::Host);
    }
    if error.is::<GcError>() || error.is::<RefsError>() {
        return say(Blame::Damage);
    }
    None
}

/// Sorts why a virtual machine did not do what it was started for.
fn of_machine_run(error: &VmError) -> Option<(Blame, Option<String>)> {
    let say = |blame, hint: &str| Some((blame, Some(hint.to_owned())));
    match error {
        VmError::Start(_) => say(Blame::Host, "the Debian package is qemu-system-x86"),
        VmError::Timeout { .. } => say(
            Blame::Usage,
            "--timeout gives it longer; an image that an older version of bedplate built never answers",
        ),
        VmError::Io { .. } => Some((Blame::Host, None)),
        VmError::Boot(_) | VmError::Ended { .. } | VmError::Guest(_) | VmError::Interrupted(_) => {
            Some((Blame::Usage, None))
        }
    }
}

/// Returns whether a verb of the machine only passes on that the machine's state could not be used.
fn is_of_machine(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(StageError::Machine(_)))
        || matches!(error.downcast_ref(), Some(RollbackError::Machine(_)))
        || matches!(error.downcast_ref(), Some(PinError::Machine(_)))
        || matches!(
            error.downcast_ref(),
            Some(KargsError::Machine(_) | KargsError::Stage(StageError::Machine(_)))
        )
        || matches!(error.downcast_ref(), Some(UndeployError::Machine(_)))
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
            ReadStoreError::Damaged { .. }
            | ReadStoreError::Image { .. }
            | ReadStoreError::Missing(_) => say(Blame::Damage, DAMAGE_HINT),
            ReadStoreError::Read { source, .. } if is_no_file(source) => {
                say(Blame::Damage, DAMAGE_HINT)
            }
            ReadStoreError::Read { source, .. } => Some(of_io(source)),
            // A file that somebody chose may be large; a document of the store never is.
            ReadStoreError::TooLarge {
                item: Item::Object(_),
                ..
            } => Some((Blame::Usage, None)),
            ReadStoreError::TooLarge { .. } => say(Blame::Damage, DAMAGE_HINT),
        };
    }
    if let Some(error) = error.downcast_ref::<OpenError>() {
        return match error {
            OpenError::Missing(_) => say(
                Blame::Usage,
                "`bedplate commit`, `import`, `build` and `pull` make a store; --store DIR names one",
            ),
            OpenError::Read { source, .. } if is_no_file(source) => say(
                Blame::Damage,
                "move it away, and put back the file from a copy of the store",
            ),
            OpenError::Read { source, .. } => Some(of_io(source)),
            OpenError::Damaged { .. } => Some((Blame::Damage, None)),
            OpenError::Format { .. } | OpenError::Algorithm { .. } => say(
                Blame::Host,
                "a newer version of bedplate wrote it: use that one",
            ),
        };
    }
    if let Some(CreateError::Open(error)) = error.downcast_ref() {
        return known(error);
    }
    if let Some(CreateError::NotEmpty(_)) = error.downcast_ref() {
        return say(
            Blame::Usage,
            "name an empty directory, or one that is not there",
        );
    }
    if let Some(CheckoutError::NotEmpty(_)) = error.downcast_ref() {
        return say(
            Blame::Usage,
            "name an empty directory, or one that is not there",
        );
    }
    if let Some(CheckoutError::Nobody { .. }) = error.downcast_ref() {
        return Some((Blame::Usage, None));
    }
    if let Some(ImportError::Read(error)) = error.downcast_ref() {
        match error {
            LayerError::NamesAlone { .. } => {
                return say(Blame::Usage, "`tar --numeric-owner` writes numbers");
            }
            LayerError::NoEnd { .. } => {
                return say(
                    Blame::Usage,
                    "where nothing is missing, `(zcat -f FILE; head -c 1024 /dev/zero) | bedplate import - NAME` \
                     adds the end that its writer left out",
                );
            }
            _ => {}
        }
    }
    if let Some(error) = error.downcast_ref::<CheckoutError>()
        && error.needs_root()
    {
        return say(
            Blame::Host,
            "only root can restore owners and devices; --unprivileged leaves them out",
        );
    }
    if let Some(error) = error.downcast_ref::<PullError>() {
        return of_pull(error);
    }
    if let Some(error) = error.downcast_ref::<RegistryError>() {
        return match error {
            RegistryError::Auth(
                AuthError::Read { .. } | AuthError::Damaged { .. } | AuthError::Helper { .. },
            ) => say(Blame::Host, "`podman login` writes these credentials anew"),
            RegistryError::Http(HttpError::Connect { source, .. }) => of_connection(source),
            RegistryError::Local(_) => say(Blame::Usage, "name a registry: HOST/REPOSITORY:TAG"),
            RegistryError::Blocked(_) => say(Blame::Host, "see /etc/containers/registries.conf"),
            RegistryError::Auth(_) | RegistryError::Denied { .. } => say(
                Blame::Remote,
                "`podman login` keeps credentials where bedplate finds them",
            ),
            RegistryError::NotFound { .. } => say(Blame::Usage, "check the name and the tag"),
            RegistryError::Http(_)
            | RegistryError::Refused { .. }
            | RegistryError::Body { .. }
            | RegistryError::WrongDigest { .. }
            | RegistryError::WrongLength { .. }
            | RegistryError::Nonsense { .. } => Some((Blame::Remote, None)),
        };
    }
    if error.is::<ParseImageNameError>() {
        return say(Blame::Usage, "an image is [HOST/]REPOSITORY[:TAG][@DIGEST]");
    }
    if error.is::<NameError>() {
        return say(
            Blame::Usage,
            "each name in a path has 1 to 255 bytes, no NUL, and is neither `.` nor `..`",
        );
    }
    if let Some(error) = error.downcast_ref::<FindError>() {
        return match error {
            FindError::Refs(error) => known(error),
            FindError::Ambiguous { .. } => say(Blame::Usage, "give more digits, or a name"),
        };
    }
    if error.is::<WriteOutputError>() {
        return Some((Blame::Host, None));
    }
    if let Some(TargetError::HoldsData { .. }) = error.downcast_ref() {
        return say(
            Blame::Usage,
            "name another file or disk; --wipe overwrites this one, and all that is on it is lost",
        );
    }
    if let Some(BootableError::NoKernel) = error.downcast_ref() {
        return say(
            Blame::Usage,
            "`bedplate build --rootfs DIR` makes a bootable image of a root directory; `commit` and `import` only \
             store one",
        );
    }
    if let Some(error) = error.downcast_ref::<VmError>() {
        return of_machine_run(error);
    }
    if let Some(PlanError::Unnamed(_)) = error.downcast_ref() {
        return say(
            Blame::Usage,
            "--target-image names where upgrades come from; or give the image a name with `bedplate tag`",
        );
    }
    if let Some(PlanError::NoImage(_)) = error.downcast_ref() {
        return say(
            Blame::Usage,
            "`bedplate images` lists what there is; `bedplate pull` fetches from a registry",
        );
    }
    if let Some(BuildError::Unfit { .. }) = error.downcast_ref() {
        return say(
            Blame::Usage,
            "`bedplate lint` explains; --skip-lint NAME switches one off",
        );
    }
    if let Some(error) = error.downcast_ref::<KernelError>() {
        return Some((Blame::Usage, error.hint().map(str::to_owned)));
    }
    if let Some(PushError::Missing(_)) = error.downcast_ref() {
        return say(Blame::Usage, "`bedplate images` lists what there is");
    }
    // The image's owner must act, also where it was on its way to a registry.
    if let Some(WriteTarError::Socket(_) | WriteTarError::WhiteoutName(_)) = error.downcast_ref() {
        return say(
            Blame::Usage,
            "layers have no way to say it; `bedplate export` writes a tar for other tools",
        );
    }
    if let Some(
        WriteTarError::XattrName { .. }
        | WriteTarError::PathTooLong { .. }
        | WriteTarError::TooDeep { .. }
        | WriteTarError::Nobody { .. }
        | WriteTarError::TooLarge(_),
    ) = error.downcast_ref()
    {
        return Some((Blame::Usage, None));
    }
    if let Some(PutError::Image(_)) = error.downcast_ref() {
        return say(
            Blame::Usage,
            "an image cannot hold it: see docs/format/image.md",
        );
    }
    if let Some(PutError::Missing(_) | PutError::Damaged { .. }) = error.downcast_ref() {
        return say(Blame::Damage, DAMAGE_HINT);
    }
    if let Some(GcError::Layer { .. }) = error.downcast_ref() {
        return say(Blame::Damage, DAMAGE_HINT);
    }
    if refs_error(error).is_some_and(RefsError::is_damaged_ref) {
        return say(
            Blame::Damage,
            "`bedplate fsck --repair` sets the file aside, and says how to give the name again",
        );
    }
    if let Some(RefsError::Damaged { path, .. } | RefsError::Misplaced { path, .. }) =
        refs_error(error)
        && path.parent().is_some_and(|parent| parent.ends_with("pins"))
    {
        return Some((
            Blame::Damage,
            Some(format!(
                "it holds the image of a mount or a deployment: nothing mends it, and nothing is collected \
                 meanwhile; remove {} once what it was for is gone",
                path.display()
            )),
        ));
    }
    if let Some(RefsError::Damaged { .. } | RefsError::Misplaced { .. }) = refs_error(error) {
        return say(Blame::Damage, DAMAGE_HINT);
    }
    if let Some(part) = error.downcast_ref() {
        return Some(of_part(part));
    }
    if let Some(part) = within_store(error).and_then(io::Error::get_ref)
        && let Some(part) = part.downcast_ref()
    {
        return Some(of_part(part));
    }
    if within_store(error).is_some_and(is_missing_part) {
        return say(Blame::Damage, DAMAGE_HINT);
    }
    if let Some(StageError::Bad { .. }) = error.downcast_ref() {
        return say(
            Blame::Remote,
            "a newer version is staged by itself; --retry stages this one again",
        );
    }
    if let Some(StageError::Space { .. }) = error.downcast_ref() {
        return say(
            Blame::Host,
            "`bedplate status` lists deployments; `bedplate undeploy` removes one, with its kernel, and \
             `bedplate gc` removes what no name reaches",
        );
    }
    if let Some(error) = error.downcast_ref::<EditError>() {
        return match error {
            EditError::Argument(_) => say(
                Blame::Usage,
                "an argument is one word; white space in a value stands in double quotes",
            ),
            EditError::Owned(_) => say(
                Blame::Usage,
                "for one boot, the loader's menu takes other arguments (`e`)",
            ),
            EditError::NoValue(_)
            | EditError::Missing(_)
            | EditError::Ambiguous { .. }
            | EditError::Several { .. } => say(
                Blame::Usage,
                "`bedplate kargs` lists them; --delete ARG and --append ARG change one exactly",
            ),
        };
    }
    if let Some(PinError::Staged(_)) = error.downcast_ref() {
        return say(Blame::Usage, "reboot into it, and pin it then");
    }
    if let Some(error) = error.downcast_ref::<UndeployError>() {
        return match error {
            UndeployError::Machine(_) | UndeployError::Find(_) => None,
            UndeployError::Booted(_) => say(
                Blame::Usage,
                "boot another one first: `bedplate rollback`, and a reboot",
            ),
            UndeployError::Default(_) => say(
                Blame::Usage,
                "`bedplate rollback` makes another one boot next",
            ),
            UndeployError::FallBack { .. } => say(
                Blame::Usage,
                "wait until the trial is over; `bedplate rollback` ends it",
            ),
            UndeployError::Pinned(_) => say(Blame::Usage, "`bedplate unpin` lets it go"),
        };
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return Some(of_io(error));
    }
    None
}

/// Sorts what a registry gave: whatever is wrong with an image itself, its maker must act.
fn of_pull(error: &PullError) -> Option<(Blame, Option<String>)> {
    match error {
        // These say more themselves, further down the chain.
        PullError::Registry(_)
        | PullError::Store(_)
        | PullError::Layer {
            source: LayerError::Store { .. },
            ..
        } => None,
        PullError::Layout(error) => match error {
            LayoutError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Some((
                Blame::Usage,
                Some("the layout is not whole, or lies elsewhere".into()),
            )),
            LayoutError::Read { .. } => Some((Blame::Host, None)),
            LayoutError::NoLayout { .. } | LayoutError::NotFound { .. } => Some((
                Blame::Usage,
                Some("`skopeo copy docker://NAME oci:DIR:TAG` makes one that has the image".into()),
            )),
            LayoutError::WrongDigest { .. } | LayoutError::WrongLength { .. } => {
                Some((Blame::Damage, None))
            }
        },
        PullError::Platform { .. } => Some((
            Blame::Usage,
            Some("the image was built for other machines".into()),
        )),
        _ => Some((Blame::Remote, None)),
    }
}

/// Sorts why there is no connection.
fn of_connection(error: &ConnectError) -> Option<(Blame, Option<String>)> {
    let say = |blame, hint: &str| Some((blame, Some(hint.to_owned())));
    match error {
        ConnectError::Resolve(ResolveError::Unknown) | ConnectError::NoAddress => {
            say(Blame::Remote, "check the name of the host")
        }
        ConnectError::Resolve(ResolveError::Silent | ResolveError::Server(_)) => {
            say(Blame::Remote, "check the network, and /etc/resolv.conf")
        }
        ConnectError::Resolve(ResolveError::Configuration(_)) => {
            say(Blame::Host, "see /etc/resolv.conf and /etc/hosts")
        }
        ConnectError::Certificate { .. } => say(Blame::Host, "replace the file, or remove it"),
        ConnectError::Tls(_) => say(
            Blame::Remote,
            "a CA file belongs into /etc/containers/certs.d/HOST[:PORT]/; --tls-verify=false \
             takes any certificate, and no TLS at all",
        ),
        ConnectError::Tcp(_) | ConnectError::Timeout => say(Blame::Remote, "check host and port"),
    }
}

/// Returns what is wrong with names; a commit's error says that in the same words, and hides it.
fn refs_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e RefsError> {
    match error.downcast_ref() {
        Some(CommitError::Ref(error)) => Some(error),
        _ => error.downcast_ref(),
    }
}

/// Returns what the system said of a store's own directories and files.
fn within_store<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e io::Error> {
    if let Some(RefsError::Read { source, .. } | RefsError::Write { source, .. }) =
        refs_error(error)
    {
        return Some(source);
    }
    if let Some(PutError::Write { source, .. }) = error.downcast_ref() {
        return Some(source);
    }
    if let Some(CommitError::Write { source, .. }) = error.downcast_ref() {
        return Some(source);
    }
    if let Some(GcError::Store { source, .. }) = error.downcast_ref() {
        return Some(source);
    }
    if let Some(BeginError { source, .. }) = error.downcast_ref() {
        return Some(source);
    }
    let FsckError { source, .. } = error.downcast_ref()?;
    Some(source)
}

/// Sorts what is wrong with a store's own directories: what is to be done about it nobody else knows.
fn of_part(error: &PartError) -> (Blame, Option<String>) {
    let hint = match error {
        PartError::Link(path) => format!(
            "put the directory that it leads to in its place: mount it at {path}, or remove the link and move \
             the directory there; `bedplate fsck` lists all such places",
            path = path.display()
        ),
        PartError::NotADirectory(_) | PartError::NotAFile(_) => {
            "move it away, and put back what was there; `bedplate fsck` lists all such places"
                .into()
        }
        PartError::Missing(path) => format!(
            "put it back from a copy of the store; where there is none, `mkdir -m 700 {path}`, and \
             `bedplate fsck --repair` brings back what a registry or another store still has",
            path = path.display()
        ),
    };
    (Blame::Damage, Some(hint))
}

/// Returns whether something else stands in the place of a store's file: a directory, a link. Nobody typed
/// its name.
fn is_no_file(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory
    ) || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// Returns whether a part of a store is gone, or something else stands in its place: `format.json` was
/// there, so that is damage, and nothing that was typed.
fn is_missing_part(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory
    )
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
        io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::AlreadyExists => (Blame::Usage, None),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (
            Blame::Host,
            Some(
                "free some space (`bedplate gc` removes what no name reaches; with --keep 1, \
                    earlier images of names, too) and run it again"
                    .into(),
            ),
        ),
        io::ErrorKind::PermissionDenied => (
            Blame::Host,
            Some("another user owns it, or it needs root".into()),
        ),
        io::ErrorKind::Unsupported | io::ErrorKind::UnexpectedEof => (Blame::Usage, None),
        io::ErrorKind::InvalidData => (Blame::Damage, None),
        _ => (Blame::Host, None),
    }
}

const DAMAGE_HINT: &str = "`bedplate fsck` lists all damage; `bedplate fsck --repair` brings back what a \
    registry or another store still has";

#[cfg(test)]
mod tests {
    use super::*;
    use bedplate_model::Sha256;

    fn blamed(error: impl Error + Send + Sync + 'static) -> Blame {
        let error = anyhow::Error::new(error).context("cannot pull a.example/os:v1");
        verdict(&error).0
    }

    #[test]
    fn what_is_wrong_with_a_remote_image_is_not_this_hosts_fault() {
        let layer = Sha256([0; 32]);
        let broken = |kind| PullError::Damaged {
            layer,
            source: io::Error::from(kind),
        };
        for kind in [
            io::ErrorKind::InvalidInput,
            io::ErrorKind::InvalidData,
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::Other,
        ] {
            assert_eq!(blamed(broken(kind)), Blame::Remote, "{kind}");
        }
        let impossible = PullError::Layer {
            layer,
            source: LayerError::Path {
                offset: 0,
                field: "path",
                source: bedplate_model::Name::try_from("..").unwrap_err(),
            },
        };
        assert_eq!(blamed(impossible), Blame::Remote);
    }

    #[test]
    fn what_the_store_says_in_a_transfer_is_about_this_host() {
        let missing = || ReadStoreError::Missing(Item::Blob(Sha256([0; 32])));
        assert_eq!(blamed(PullError::Store(missing().into())), Blame::Damage);
        assert_eq!(blamed(PushError::Store(missing().into())), Blame::Damage);
        let packaging = PackageError::Store(missing().into());
        assert_eq!(blamed(PushError::Package(packaging)), Blame::Damage);
        let full = PutError::Write {
            what: "a blob".into(),
            path: "store".into(),
            source: io::ErrorKind::StorageFull.into(),
        };
        assert_eq!(blamed(PullError::Store(full.into())), Blame::Host);
    }
}
