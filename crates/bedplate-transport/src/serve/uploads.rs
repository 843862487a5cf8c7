//! Uploads: POST opens one, PATCH adds to it, PUT finishes it.
//!
//! A session is either at rest in the table or taken out by the one request that writes to it, so two
//! requests never write to one upload. Its bytes are hashed as they arrive.
//!
//! Invariants: the table holds no more than its limits say, and one peer never all of it; the file of an
//! upload goes with the last that knows of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::body::{Body, Bytes};
use bedplate_model::Sha256;
use sha2::{Digest as _, Sha256 as Hasher};
use tokio::sync::mpsc;

use super::connections::{Cut, piece};
use super::error::ApiError;
use super::limits::{Limits, Peer};
use super::route::Repository;
use super::storage::Storage;

/// Pieces of a body that wait for the disk, of at most 256 KiB each.
const PIECES_WAITING: usize = 4;

/// The uploads that are open.
#[derive(Debug)]
pub(super) struct Uploads {
    limits: Limits,
    sessions: Mutex<HashMap<String, Slot>>,
}

#[derive(Debug)]
struct Slot {
    repository: Repository,
    peer: Peer,
    /// `None` while a request writes to it.
    upload: Option<Upload>,
    touched: Instant,
}

/// One upload: what arrived, and its hash so far. Its file goes when this is dropped.
#[derive(Debug)]
pub(super) struct Upload {
    file: File,
    path: PathBuf,
    pub(super) offset: u64,
    hasher: Hasher,
}

impl Upload {
    /// Opens the file of a new upload.
    fn create(path: PathBuf) -> io::Result<Self> {
        let file = File::create_new(&path)?;
        Ok(Self {
            file,
            path,
            offset: 0,
            hasher: Hasher::new(),
        })
    }

    /// Returns the file that the bytes are in.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Returns the name of that file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the digest of what arrived.
    pub(super) fn digest(&self) -> Sha256 {
        Sha256(self.hasher.clone().finalize().into())
    }

    /// Adds a request's body, of at most `max` bytes. What arrived before an error stays and can be
    /// continued.
    pub(super) async fn receive(
        self,
        mut body: Body,
        max: u64,
        limits: &Limits,
    ) -> (Self, Result<(), ApiError>) {
        let (send, receive) = mpsc::channel::<Bytes>(PIECES_WAITING);
        let writer = tokio::task::spawn_blocking(move || self.write_pieces(receive));
        let mut left = max;
        let outcome = loop {
            match piece(&mut body, limits.silence).await {
                Err(Cut::Silent) => {
                    break Err(ApiError::UploadInvalid("its sender fell silent"));
                }
                Err(Cut::Broken) => break Err(ApiError::UploadInvalid("its body broke off")),
                Ok(None) => break Ok(()),
                Ok(Some(piece)) => {
                    let Some(rest) = left.checked_sub(piece.len() as u64) else {
                        break Err(ApiError::SizeInvalid);
                    };
                    left = rest;
                    // A writer that is gone reports why below.
                    if send.send(piece).await.is_err() {
                        break Ok(());
                    }
                }
            }
        };
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

impl Drop for Upload {
    fn drop(&mut self) {
        // It has another name when it was finished. A file that stays behind goes at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// An upload taken out of the table; its session ends when this is dropped.
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
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            sessions: Mutex::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Slot>> {
        // Every change of the table is one insertion or removal: no panic leaves it half done.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session and returns its id.
    pub(super) fn open(
        &self,
        storage: &Storage,
        repository: &Repository,
        peer: Peer,
    ) -> Result<String, ApiError> {
        let mut sessions = self.lock();
        if held(&sessions, peer) >= self.limits.uploads_of_peer {
            end_oldest(&mut sessions, peer)?;
        } else if sessions.len() >= self.limits.uploads {
            // Who holds most gives way, so that nobody is pushed out by one who opens many.
            let peers = sessions.values().map(|slot| slot.peer);
            let most = peers.max_by_key(|peer| held(&sessions, *peer));
            end_oldest(&mut sessions, most.unwrap_or(peer))?;
        }
        let id = uuid::Uuid::new_v4().to_string();
        let slot = Slot {
            repository: repository.clone(),
            peer,
            upload: Some(Upload::create(storage.upload_path(&id))?),
            touched: Instant::now(),
        };
        sessions.insert(id.clone(), slot);
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

    /// Ends the sessions that nobody wrote to for too long.
    pub(super) fn forget_idle(&self) {
        self.lock().retain(|_, slot| {
            slot.upload.is_none() || slot.touched.elapsed() <= self.limits.upload_rest
        });
    }
}

fn held(sessions: &HashMap<String, Slot>, peer: Peer) -> usize {
    sessions.values().filter(|slot| slot.peer == peer).count()
}

/// Ends the session of a peer that rests for the longest time.
fn end_oldest(sessions: &mut HashMap<String, Slot>, peer: Peer) -> Result<(), ApiError> {
    let oldest = sessions
        .iter()
        .filter(|(_, slot)| slot.peer == peer && slot.upload.is_some())
        .min_by_key(|(_, slot)| slot.touched)
        .map(|(id, _)| id.clone());
    match oldest.and_then(|id| sessions.remove(&id)) {
        Some(_) => Ok(()),
        // Each of them is written to at this moment.
        None => Err(ApiError::TooManyUploads),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    struct Table {
        dir: tempfile::TempDir,
        storage: Storage,
        uploads: Arc<Uploads>,
    }

    impl Table {
        fn new(limits: Limits) -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self {
                storage: Storage::open(dir.path()).unwrap(),
                uploads: Arc::new(Uploads::new(limits)),
                dir,
            }
        }

        fn open(&self, peer: &str) -> Result<String, ApiError> {
            let peer = Peer::of(peer.parse().unwrap());
            self.uploads.open(&self.storage, &repository(), peer)
        }

        fn is_open(&self, id: &str) -> bool {
            self.uploads.offset(&repository(), id).is_ok()
        }

        fn files(&self) -> usize {
            let files = std::fs::read_dir(self.dir.path().join("uploads"));
            files.unwrap().count()
        }
    }

    fn repository() -> Repository {
        Repository::parse("a").unwrap()
    }

    fn limits() -> Limits {
        Limits {
            uploads: 4,
            uploads_of_peer: 3,
            ..Limits::default()
        }
    }

    #[test]
    fn a_peer_that_opens_too_many_loses_its_own_oldest() {
        let table = Table::new(limits());
        let other = table.open("192.0.2.2").unwrap();
        let ids: Vec<_> = (0..10).map(|_| table.open("192.0.2.1").unwrap()).collect();
        assert!(table.is_open(&other));
        let open: Vec<_> = ids.iter().map(|id| table.is_open(id)).collect();
        assert_eq!(open.iter().filter(|open| **open).count(), 3);
        assert!(open[7] && open[8] && open[9]);
        assert_eq!(table.files(), 4, "their files are gone too");
    }

    #[test]
    fn when_all_is_full_who_holds_most_gives_way() {
        let table = Table::new(limits());
        let other = table.open("192.0.2.2").unwrap();
        let many: Vec<_> = (0..3).map(|_| table.open("192.0.2.1").unwrap()).collect();
        let third = table.open("192.0.2.3").unwrap();
        assert!(table.is_open(&other) && table.is_open(&third));
        assert!(!table.is_open(&many[0]) && table.is_open(&many[1]));
    }

    #[test]
    fn an_upload_that_is_written_to_is_never_ended_for_another() {
        let table = Table::new(limits());
        let ids: Vec<_> = (0..3).map(|_| table.open("192.0.2.1").unwrap()).collect();
        let taken: Vec<_> = ids
            .iter()
            .map(|id| table.uploads.take(&repository(), id).unwrap())
            .collect();
        let refused = table.open("192.0.2.1");
        assert!(matches!(refused, Err(ApiError::TooManyUploads)));
        for (upload, taken) in taken {
            taken.put_back(upload);
        }
        assert!(ids.iter().all(|id| table.is_open(id)));
    }

    #[test]
    fn what_rests_too_long_goes_and_what_is_broken_off_too() {
        let table = Table::new(Limits {
            upload_rest: Duration::ZERO,
            ..limits()
        });
        let id = table.open("192.0.2.1").unwrap();
        let (upload, taken) = table.uploads.take(&repository(), &id).unwrap();
        table.uploads.forget_idle();
        assert_eq!(table.files(), 1, "it is being written to");
        taken.put_back(upload);
        table.uploads.forget_idle();
        assert_eq!(table.files(), 0);

        let id = table.open("192.0.2.1").unwrap();
        drop(table.uploads.take(&repository(), &id).unwrap());
        assert!(!table.is_open(&id));
        assert_eq!(table.files(), 0);
    }
}
