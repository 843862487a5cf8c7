//! Uploads: POST opens one, PATCH adds to it, PUT finishes it.
//!
//! A session is either at rest in the table or taken out by the one request that writes to it, so two
//! requests never write to one upload. Its bytes are hashed as they arrive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use bedplate_model::Sha256;
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256 as Hasher};
use tokio::sync::mpsc;

use super::error::ApiError;
use super::route::Repository;
use super::storage::Storage;

/// The most uploads that are open at once.
const SESSIONS_MAX: usize = 256;
/// How long an upload that nobody writes to is kept.
const SESSION_IDLE: Duration = Duration::from_secs(60 * 60);
/// How long a sender may stay silent in the middle of a body.
const BODY_STALL: Duration = Duration::from_secs(60);
/// Pieces of a body that wait for the disk; a piece has at most some 400 KiB.
const PIECES_WAITING: usize = 8;

/// The uploads that are open.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    sessions: Mutex<HashMap<String, Slot>>,
}

#[derive(Debug)]
struct Slot {
    repository: Repository,
    /// `None` while a request writes to it.
    upload: Option<Upload>,
    touched: Instant,
}

/// One upload: what arrived, and its hash so far.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) offset: u64,
    hasher: Hasher,
}

impl Upload {
    /// Opens the file of a new upload.
    pub(super) fn create(path: PathBuf) -> io::Result<Self> {
        let file = File::create_new(&path)?;
        Ok(Self {
            file,
            path,
            offset: 0,
            hasher: Hasher::new(),
        })
    }

    /// Returns the digest of what arrived.
    pub(super) fn digest(&self) -> Sha256 {
        Sha256(self.hasher.clone().finalize().into())
    }

    /// Adds a request's body. What arrived before an error stays and can be continued.
    pub(super) async fn receive(self, mut body: Body) -> (Self, Result<(), ApiError>) {
        let (send, receive) = mpsc::channel::<Bytes>(PIECES_WAITING);
        let writer = tokio::task::spawn_blocking(move || self.write_pieces(receive));
        let mut outcome = Ok(());
        loop {
            match tokio::time::timeout(BODY_STALL, body.frame()).await {
                Err(_) => outcome = Err(ApiError::UploadInvalid("its sender fell silent")),
                Ok(Some(Err(_))) => outcome = Err(ApiError::UploadInvalid("its body broke off")),
                Ok(None) => {}
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    // A writer that is gone reports why below.
                    Ok(piece) => {
                        if send.send(piece).await.is_ok() {
                            continue;
                        }
                    }
                    Err(_trailers) => continue,
                },
            }
            break;
        }
        drop(send);
        let (upload, written) = writer.await.expect("the writer does not panic");
        (upload, outcome.and(written.map_err(ApiError::from)))
    }

    fn write_pieces(mut self, mut pieces: mpsc::Receiver<Bytes>) -> (Self, io::Result<()>) {
        while let Some(piece) = pieces.blocking_recv() {
            if let Err(error) = self.file.write_all(&piece) {
                return (self, Err(error));
            }
            self.hasher.update(&piece);
            self.offset += piece.len() as u64;
        }
        (self, Ok(()))
    }
}

/// An upload taken out of the table; it returns there, or its file goes, when this is dropped.
pub(super) struct Taken {
    uploads: Arc<Uploads>,
    id: String,
}

impl Taken {
    /// Puts the upload back, to be continued.
    pub(super) fn put_back(self, upload: Upload) {
        if let Some(slot) = self.uploads.lock().get_mut(&self.id) {
            slot.upload = Some(upload);
            slot.touched = Instant::now();
        }
        std::mem::forget(self);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.uploads.lock().remove(&self.id);
    }
}

impl Uploads {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Slot>> {
        // Every change of the table is one insertion or removal: no panic leaves it half done.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session and returns its id.
    pub(super) fn open(
        &self,
        storage: &Storage,
        repository: &Repository,
    ) -> Result<String, ApiError> {
        self.forget_idle();
        if self.lock().len() >= SESSIONS_MAX {
            return Err(ApiError::TooManyUploads);
        }
        let id = uuid::Uuid::new_v4().to_string();
        let slot = Slot {
            repository: repository.clone(),
            upload: Some(Upload::create(storage.upload_path(&id))?),
            touched: Instant::now(),
        };
        self.lock().insert(id.clone(), slot);
        Ok(id)
    }

    /// Takes an upload out for one request to write to.
    pub(super) fn take(
        self: &Arc<Self>,
        repository: &Repository,
        id: &str,
    ) -> Result<(Upload, Taken), ApiError> {
        let mut sessions = self.lock();
        let slot = Self::slot(&mut sessions, repository, id)?;
        let upload = slot
            .upload
            .take()
            .ok_or(ApiError::UploadInvalid("another request is writing to it"))?;
        let taken = Taken {
            uploads: Arc::clone(self),
            id: id.to_owned(),
        };
        Ok((upload, taken))
    }

    /// Returns how many bytes of an upload arrived.
    pub(super) fn offset(&self, repository: &Repository, id: &str) -> Result<u64, ApiError> {
        let mut sessions = self.lock();
        let slot = Self::slot(&mut sessions, repository, id)?;
        slot.upload
            .as_ref()
            .map(|upload| upload.offset)
            .ok_or(ApiError::UploadInvalid("another request is writing to it"))
    }

    fn slot<'a>(
        sessions: &'a mut HashMap<String, Slot>,
        repository: &Repository,
        id: &str,
    ) -> Result<&'a mut Slot, ApiError> {
        sessions
            .get_mut(id)
            .filter(|slot| slot.repository == *repository)
            .ok_or(ApiError::UploadUnknown)
    }

    fn forget_idle(&self) {
        let mut sessions = self.lock();
        sessions.retain(|_, slot| match &slot.upload {
            Some(upload) if slot.touched.elapsed() > SESSION_IDLE => {
                // A file that stays behind goes at the next start.
                let _ = std::fs::remove_file(&upload.path);
                false
            }
            _ => true,
        });
    }
}
