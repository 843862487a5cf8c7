//! One blob from a registry or a layout, as a stream that threads read.
//!
//! ```text
//! registry, layout ─→ task: length, digest, resumption ─→ bounded channel ─→ BlobReader: Read
//! ```
//!
//! Invariant: the reader reaches its end only when the blob came whole and with the right digest;
//! otherwise it fails, and the task's result says why.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use bedplate_model::Sha256;
use bedplate_model::oci::Descriptor;
use bytes::Bytes;
use sha2::Digest as _;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::client::http;
use crate::layout::{Layout, LayoutError};
use crate::origin::{Origin, OriginError};
use crate::registry::{RegistryError, Remote};

/// How often a broken download goes on where it broke.
const RESUMPTIONS: u32 = 6;
/// How long the first resumption waits; each later one waits longer by as much.
const RESUME_WAIT: Duration = Duration::from_millis(400);
/// Pieces between the network and who reads: at most a few hundred KiB each.
const PIECES_WAITING: usize = 16;

enum Piece {
    Bytes(Bytes),
    /// All that came before is the blob.
    Verified,
}

/// A blob on its way.
pub(crate) struct Download {
    pub(crate) reader: BlobReader,
    pub(crate) outcome: Outcome,
}

/// How a download ended; known when its reader was read or dropped.
pub(crate) struct Outcome {
    task: JoinHandle<Result<(), DownloadError>>,
    runtime: Handle,
}

/// Why a download did not reach its end.
pub(crate) enum DownloadError {
    Origin(OriginError),
    /// Nobody read on.
    Abandoned,
}

impl Download {
    /// Starts to fetch a blob.
    pub(crate) fn start(runtime: &Handle, origin: Origin, blob: &Descriptor) -> Self {
        let (send, pieces) = mpsc::channel(PIECES_WAITING);
        let (digest, size) = (blob.digest, blob.size);
        Self {
            reader: BlobReader {
                pieces,
                current: Bytes::new(),
                ended: false,
            },
            outcome: Outcome {
                task: runtime.spawn(fetch(origin, digest, size, send)),
                runtime: runtime.clone(),
            },
        }
    }
}

impl Outcome {
    /// Waits for the end. The reader must have been read to its end or dropped.
    pub(crate) fn wait(self) -> Result<(), DownloadError> {
        match self.runtime.block_on(self.task) {
            Ok(result) => result,
            Err(panic) if panic.is_panic() => std::panic::resume_unwind(panic.into_panic()),
            Err(_) => Err(DownloadError::Abandoned),
        }
    }
}

/// Fetches a whole small blob, such as a config.
pub(crate) async fn fetch_small(
    origin: Origin,
    digest: Sha256,
    size: u64,
) -> Result<Vec<u8>, OriginError> {
    let (send, mut pieces) = mpsc::channel(PIECES_WAITING);
    let task = tokio::spawn(fetch(origin, digest, size, send));
    let mut bytes = Vec::new();
    while let Some(Piece::Bytes(piece)) = pieces.recv().await {
        bytes.extend_from_slice(&piece);
    }
    match task.await {
        Ok(Err(DownloadError::Origin(error))) => Err(error),
        Ok(Ok(()) | Err(DownloadError::Abandoned)) => Ok(bytes),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

async fn fetch(
    origin: Origin,
    digest: Sha256,
    size: u64,
    send: mpsc::Sender<Piece>,
) -> Result<(), DownloadError> {
    match origin {
        Origin::Registry(remote) => fetch_from_registry(remote, digest, size, send).await,
        Origin::Layout(layout) => {
            let read = tokio::task::spawn_blocking(move || {
                read_from_layout(&layout, &digest, size, &send)
            });
            match read.await {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
    }
}

fn read_from_layout(
    layout: &Layout,
    digest: &Sha256,
    size: u64,
    send: &mpsc::Sender<Piece>,
) -> Result<(), DownloadError> {
    let mut take = |piece: Vec<u8>| send.blocking_send(Piece::Bytes(piece.into())).is_ok();
    if !layout.blob(digest, size, &mut take)? {
        return Err(DownloadError::Abandoned);
    }
    // Who stopped reading before the end has all that it wanted.
    let _ = send.blocking_send(Piece::Verified);
    Ok(())
}

async fn fetch_from_registry(
    remote: Remote,
    digest: Sha256,
    size: u64,
    send: mpsc::Sender<Piece>,
) -> Result<(), DownloadError> {
    let what = || format!("the blob {digest}");
    let mut hasher = sha2::Sha256::new();
    let mut offset = 0;
    let mut resumptions = 0;
    while offset < size || resumptions == 0 && size == 0 {
        let (mut answer, start) = remote.blob(&digest, offset).await?;
        // A server without ranges begins again; what we have already is passed over.
        let mut at = start;
        let mut pieces = http::Pieces::of(answer.body_mut());
        let broken = loop {
            match pieces.next().await {
                Ok(None) => break None,
                Err(error) if error.is_transient() => break Some(error),
                Err(source) => {
                    return Err(RegistryError::Body {
                        what: what(),
                        source,
                    }
                    .into());
                }
                Ok(Some(mut piece)) => {
                    let known = offset.saturating_sub(at).min(piece.len() as u64);
                    at += piece.len() as u64;
                    if at > size {
                        return Err(RegistryError::WrongLength {
                            what: what(),
                            wanted: size,
                            got: at,
                        }
                        .into());
                    }
                    let piece = piece.split_off(known as usize);
                    if piece.is_empty() {
                        continue;
                    }
                    offset += piece.len() as u64;
                    hasher.update(&piece);
                    if send.send(Piece::Bytes(piece)).await.is_err() {
                        return Err(DownloadError::Abandoned);
                    }
                }
            }
        };
        if offset == size {
            break;
        }
        if resumptions == RESUMPTIONS {
            return Err(match broken {
                Some(source) => RegistryError::Body {
                    what: what(),
                    source,
                },
                None => RegistryError::WrongLength {
                    what: what(),
                    wanted: size,
                    got: offset,
                },
            }
            .into());
        }
        resumptions += 1;
        tokio::time::sleep(RESUME_WAIT * resumptions).await;
    }
    let got = Sha256(hasher.finalize().into());
    if got != digest {
        return Err(RegistryError::WrongDigest {
            what: format!("a blob of {}", remote.repository()),
            wanted: digest,
            got,
        }
        .into());
    }
    // Who stopped reading before the end has all that it wanted.
    let _ = send.send(Piece::Verified).await;
    Ok(())
}

impl From<RegistryError> for DownloadError {
    fn from(error: RegistryError) -> Self {
        Self::Origin(error.into())
    }
}

impl From<LayoutError> for DownloadError {
    fn from(error: LayoutError) -> Self {
        Self::Origin(error.into())
    }
}

/// Reads a blob while it comes.
pub(crate) struct BlobReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl BufRead for BlobReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(piece)) => self.current = piece,
                Some(Piece::Verified) => self.ended = true,
                None => return Err(io::Error::other("the download failed")),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        let _ = self.current.split_to(amount);
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let len = available.len().min(buffer.len());
        buffer[..len].copy_from_slice(&available[..len]);
        self.consume(len);
        Ok(len)
    }
}
