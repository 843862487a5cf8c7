//! Finalizing: at shutdown, what was staged becomes what boots next, on trial.
//!
//! ```text
//! 1. merge /etc three ways       deployments/<id>/etc[-layer]    begun anew when interrupted
//! 2. record: intent Try          the base is what runs now
//! 3. boot partition              kernel, initramfs, entry with tries
//! 4. loader.conf, one sector     COMMIT
//! 5. record: on trial            or the next boot writes it
//! ```
//!
//! Invariant: cut anywhere, the machine boots what runs now or, on trial, what was staged; in the first
//! case it is still staged.

use std::io;
use std::path::PathBuf;

use bedplate_boot::render;
use bedplate_model::record::{Deployment, DeploymentId, EtcMode, Intent, Record, State};
use bedplate_model::tree::TreeError;
use bedplate_model::{FileContent, RootDigest, Tree, TreePath, layout};
use bedplate_store::{DigestOnly, ReadStoreError, ScanError, Store, scan};
use bedplate_sys::{durable, files};

use crate::etc::{
    self, Conflict, Merged, Side, apply::ApplyError, merge::MergeError, merge::Place,
};
use crate::machine::{Machine, MachineError, etc_of};
use crate::settle::Gate;

/// The file beside a deployment's /etc that says what gave way when it was merged.
pub(crate) const CONFLICTS_FILE: &str = "etc-conflicts.json";
/// More bytes than any file of users and groups has.
const ACCOUNTS_MAX: u64 = 16 << 20;

/// What finalizing did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finalized {
    /// Nothing is staged.
    Nothing,
    /// A deployment is staged, and stays so: what runs is not proven, so nothing could be fallen back to.
    Waits(DeploymentId),
    /// The deployment boots next, on trial.
    Trial {
        /// The deployment.
        deployment: DeploymentId,
        /// What gave way in its /etc.
        conflicts: Vec<Conflict>,
    },
}

/// Why what was staged could not be made the next to boot.
#[derive(Debug, thiserror::Error)]
pub enum FinalizeError {
    /// The machine's state could not be read or changed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// /etc could not be merged.
    #[error("cannot merge /etc for deployment {deployment}")]
    Etc {
        /// The deployment.
        deployment: DeploymentId,
        /// Why not.
        source: Box<MergeEtcError>,
    },
}

/// Why an /etc could not be merged or written.
#[derive(Debug, thiserror::Error)]
pub enum MergeEtcError {
    /// An image cannot be read.
    #[error(transparent)]
    Store(#[from] ReadStoreError),
    /// The two images name their contents by different algorithms, so they cannot be compared.
    #[error("the two images have different digest algorithms")]
    Algorithms,
    /// The /etc of what runs cannot be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// Lines could not be merged.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The layer could not be put together.
    #[error(transparent)]
    Layer(#[from] TreeError),
    /// The result could not be written.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Something around it could not be written.
    #[error("cannot write to the root")]
    Write(#[from] io::Error),
}

impl Machine<'_> {
    /// Makes what is staged the next to boot, on trial.
    pub fn finalize(&self, store: &Store) -> Result<Finalized, FinalizeError> {
        let _lock = self.lock()?;
        let mut record = self.settle(store, Gate::Unknown)?;
        let Some(staged) = staged(&record).cloned() else {
            return Ok(Finalized::Nothing);
        };
        let booted = self.booted().deployment;
        let base = match record.deployment(booted) {
            Some(base) if base.state == State::Proven => base.clone(),
            _ => return Ok(Finalized::Waits(staged.id)),
        };

        let conflicts = self // 1.
            .write_etc(store, &base, &staged)
            .map_err(|source| FinalizeError::Etc {
                deployment: staged.id,
                source: Box::new(source),
            })?;
        record.intent = Some(Intent::Try {
            deployment: staged.id,
        });
        if let Some(staged) = record.deployment_mut(staged.id) {
            staged.base = Some(base.id);
        }
        self.write(&record)?; // 2.
        self.change_boot(store, &record, |observed, settings| {
            render::plan_try(&record, observed, staged.id, settings)
        })?; // 3. and 4.
        self.settle(store, Gate::Unknown)?; // 5.
        Ok(Finalized::Trial {
            deployment: staged.id,
            conflicts,
        })
    }

    /// Merges the /etc of what runs into that of a staged deployment, and writes it.
    fn write_etc(
        &self,
        store: &Store,
        base: &Deployment,
        staged: &Deployment,
    ) -> Result<Vec<Conflict>, MergeEtcError> {
        let trees = || Ok((store.tree(&base.root)?, store.tree(&staged.root)?));
        let Some(merged) = self.merge_etc(store, base, (staged.root, staged.etc), trees)? else {
            return Ok(Vec::new());
        };
        let home = self.make_home(staged.id)?;
        let name = match staged.etc {
            EtcMode::Overlay => layout::ETC_LAYER,
            _ => layout::ETC,
        };
        self.host.writes.next("the merged /etc")?;
        etc::apply::apply(
            &merged,
            &self.etc_here(base),
            &|content: &FileContent| store.read_content(content).map_err(io::Error::other),
            (&home, name),
        )?;
        let path = home.join(CONFLICTS_FILE);
        let text = serde_json::to_vec_pretty(&merged.conflicts).map_err(io::Error::other)?;
        self.host.writes.next("the conflicts of /etc")?;
        durable::replace(&path, &text, 0o600)?;
        Ok(merged.conflicts)
    }

    /// Merges, and writes nothing: what the plan shows. `None` where one of the two keeps no changes of its /etc:
    /// then early boot makes the new one of its image. `trees` reads both images, the running one first.
    pub(crate) fn merge_etc(
        &self,
        store: &Store,
        base: &Deployment,
        (root, mode): (RootDigest, EtcMode),
        trees: impl FnOnce() -> Result<(Tree, Tree), ReadStoreError>,
    ) -> Result<Option<Merged>, MergeEtcError> {
        if !base.etc.keeps_changes() || !mode.keeps_changes() {
            return Ok(None);
        }
        let algorithm = base.root.image.algorithm();
        if root.image.algorithm() != algorithm {
            return Err(MergeEtcError::Algorithms);
        }
        let here = self.etc_here(base);
        let current = scan(&here, &DigestOnly(algorithm), &())?;
        let (old, new) = trees()?;
        let (old, old_etc) = etc_of(old)?;
        let (new, new_etc) = etc_of(new)?;
        let directory = files::open_root(&here)?;
        let mut read = |side: Side, path: &TreePath, content: &FileContent| match side {
            Side::Base | Side::Image => store
                .read_small(content, ACCOUNTS_MAX)
                .map_err(io::Error::other),
            Side::Here => read_here(&directory, path),
        };
        let image = Place::new(&new, new_etc);
        let merged = etc::merge(
            Place::new(&old, old_etc),
            Place::new(&current, Tree::ROOT),
            image,
            &mut read,
        )?;
        Ok(Some(match mode {
            EtcMode::Overlay => etc::layer(&merged, image)?,
            _ => merged,
        }))
    }

    /// Where the /etc of the running deployment is read: a layer alone does not say what there is.
    fn etc_here(&self, base: &Deployment) -> PathBuf {
        match base.etc {
            EtcMode::Overlay => self.host.system.join(layout::ETC),
            _ => self.home(base.id).join(layout::ETC),
        }
    }
}

/// Returns the staged deployment.
pub(crate) fn staged(record: &Record) -> Option<&Deployment> {
    record
        .deployments
        .iter()
        .find(|deployment| deployment.state == State::Staged)
}

/// Reads a file directly below /etc.
fn read_here(directory: &std::os::fd::OwnedFd, path: &TreePath) -> io::Result<Vec<u8>> {
    let Some(([], name)) = path.split_last() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let file = files::open_file(directory, name.as_os_str())?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, ACCOUNTS_MAX), &mut bytes)?;
    Ok(bytes)
}
