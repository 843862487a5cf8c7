//! What every verb works with: the store, the clock, where output goes.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bedplate_deploy::config::Config;
use bedplate_deploy::events::Actor;
use bedplate_model::{ImageName, ImageSelector, RootDigest, layout};
use bedplate_store::{Found, RefTarget, Store};

use bedplate_transport::{Client, ClientOptions, TlsVerify};

use crate::blame::{Blame, Refusal, sentence};
use crate::cli::{Cli, Remote};
use crate::host::Host;
use crate::render::note;

/// What every verb works with.
pub(crate) struct Context<'a> {
    pub(crate) host: &'a Host,
    pub(crate) out: &'a mut dyn Write,
    /// Whether progress may be drawn.
    pub(crate) quiet: bool,
    store: Option<PathBuf>,
    /// The verb, for the machine's log.
    command: &'static str,
    /// Whether this program has mounts of its own already.
    entered: Cell<bool>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(cli: &Cli, host: &'a Host, out: &'a mut dyn Write) -> Self {
        Self {
            host,
            out,
            quiet: cli.quiet,
            store: cli.store.clone(),
            command: cli.verb.command(),
            entered: Cell::new(false),
        }
    }

    /// Opens the store, and makes it where there is none: for verbs that put something in.
    ///
    /// On a machine this must come before anything that starts threads: see [`Context::enter`].
    pub(crate) fn writable_store(&self) -> anyhow::Result<Store> {
        let path = self.store_path()?;
        self.enter()?;
        Store::create(&path).with_context(|| format!("cannot open the store {}", path.display()))
    }

    /// Opens a store that is there.
    pub(crate) fn store(&self) -> anyhow::Result<Store> {
        self.enter()?;
        self.store_as_it_is()
    }

    /// Opens a store that is there, and leaves this program among the mounts that everybody sees.
    pub(crate) fn store_as_it_is(&self) -> anyhow::Result<Store> {
        let path = self.store_path()?;
        Store::open(&path).with_context(|| format!("cannot open the store {}", path.display()))
    }

    /// Refuses to go on where there is no machine of ours.
    pub(crate) fn require_machine(&self) -> anyhow::Result<()> {
        if !self.host.is_machine() {
            return Err(Refusal {
                blame: Blame::Usage,
                message: "this system was not booted by bedplate".into(),
                hint: Some("`bedplate install` makes a machine of an image".into()),
            }
            .into());
        }
        Ok(())
    }

    /// Opens the machine that this program runs on, for verbs that change it.
    pub(crate) fn machine(&self) -> anyhow::Result<bedplate_deploy::Host> {
        self.require_machine()?;
        if !rustix::process::geteuid().is_root() {
            return Err(Refusal {
                blame: Blame::Host,
                message: "only root may change this machine".into(),
                hint: Some("`bedplate status` is for everybody".into()),
            }
            .into());
        }
        self.enter_root()?;
        Ok(bedplate_deploy::Host::this_machine(
            self.host.now(),
            self.actor(),
            &Self::config(),
        ))
    }

    /// Says who changes this machine: the log is told.
    pub(crate) fn actor(&self) -> Actor {
        Actor {
            who: self.host.person(),
            command: self.command.to_owned(),
        }
    }

    /// Reads what is set about this machine. What cannot be used is told, and the defaults hold: a mistake in
    /// a file is no reason to leave a machine without its health gate.
    pub(crate) fn config() -> Config {
        let (config, problems) = Config::read(Path::new("/"));
        for problem in problems {
            note(&format!("{}; the rest of it holds", sentence(&problem)));
        }
        config
    }

    /// Makes the machine's store writable for this program, where it is the one that is used.
    fn enter(&self) -> anyhow::Result<()> {
        if self.is_machine_store() {
            self.enter_root()
        } else {
            Ok(())
        }
    }

    /// Returns whether the machine's own store is used, which is read-only for everybody.
    pub(crate) fn is_machine_store(&self) -> bool {
        self.store.is_none() && self.host.is_machine() && rustix::process::geteuid().is_root()
    }

    fn enter_root(&self) -> anyhow::Result<()> {
        if !self.entered.replace(true) {
            bedplate_deploy::host::enter_root(Path::new(layout::SYSROOT))?;
        }
        Ok(())
    }

    fn store_path(&self) -> anyhow::Result<PathBuf> {
        match &self.store {
            Some(path) => Ok(path.clone()),
            None => self.host.default_store().ok_or_else(|| {
                Refusal {
                    blame: Blame::Usage,
                    message: "there is no default store: neither XDG_DATA_HOME nor HOME is set"
                        .into(),
                    hint: Some("name a store with --store DIR".into()),
                }
                .into()
            }),
        }
    }

    /// Makes a client of registries.
    pub(crate) fn client(&self, remote: &Remote) -> anyhow::Result<Client> {
        let mut options = ClientOptions::of_system(&self.host.registry_environment())?;
        if let Some(file) = &remote.authfile {
            // Who names a file means it; those that are looked for may be missing.
            File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
            options.auth_files = vec![file.clone()];
        }
        options.tls_verify = match remote.tls_verify {
            None => TlsVerify::On,
            Some(true) => TlsVerify::Strict,
            Some(false) => TlsVerify::Off,
        };
        Ok(Client::new(options)?)
    }

    /// Returns the target of a new ref to an image that has no manifest yet.
    pub(crate) fn target(&self, root: RootDigest) -> RefTarget {
        RefTarget::new(root, self.host.now())
    }

    /// Returns the same target, set now.
    pub(crate) fn set_now(&self, target: RefTarget) -> RefTarget {
        RefTarget {
            created: self.host.now(),
            ..target
        }
    }
}

/// Finds an image by its name or digest, or says that the store has none.
pub(crate) fn find_image(store: &Store, name: &ImageSelector) -> anyhow::Result<Found> {
    let found = store
        .find(name)
        .with_context(|| format!("cannot look up {name}"))?;
    found.ok_or_else(|| {
        if let ImageSelector::Name(revision) = name
            && revision.back().is_some_and(|back| back > 0)
        {
            return Refusal::usage(
                format!("the store has no image {name}"),
                format!(
                    "`bedplate log {}` lists the images of the name",
                    revision.name()
                ),
            )
            .into();
        }
        if let Some(digits) = name.digest_prefix() {
            return Refusal::usage(
                format!(
                    "the store has no image of this name, and none whose root or manifest digest begins \
                     with {digits}"
                ),
                "`bedplate images` lists names and the first digits of both digests",
            )
            .into();
        }
        Refusal::usage(
            format!("the store has no image {name}"),
            "`bedplate images` lists what there is; `bedplate pull` fetches from a registry",
        )
        .into()
    })
}

/// Checks that a name can be given: a digest is found out, not chosen.
pub(crate) fn tag_name(name: &ImageName) -> anyhow::Result<ImageName> {
    let local = name.to_string();
    let local = local.strip_prefix("localhost/").unwrap_or(&local);
    if name.digest().is_some() || local.parse::<RootDigest>().is_ok() {
        return Err(Refusal::usage(
            format!("{name} cannot be given to an image: it has a digest in it"),
            "name it REPOSITORY:TAG",
        )
        .into());
    }
    Ok(name.clone())
}
