//! Stages of a transfer on threads of their own, with bounded channels between them.
//!
//! ```text
//! decompress ─→ pieces ─┬─→ SHA-256 of the tar (its diff_id)
//!                       └─→ PieceReader: Read ─→ tar parser
//! ```

use std::io::{self, Read, Write};
use std::sync::mpsc;

use bedplate_model::Sha256;
use bytes::Bytes;
use sha2::Digest as _;

/// How much one stage hands to the next at once.
pub(crate) const PIECE_LEN: usize = 256 << 10;
/// Pieces that wait between two stages.
const PIECES_WAITING: usize = 6;

/// Makes the channel between two stages.
pub(crate) fn channel() -> (mpsc::SyncSender<Bytes>, PieceReader) {
    let (send, pieces) = mpsc::sync_channel(PIECES_WAITING);
    let reader = PieceReader {
        pieces,
        current: Bytes::new(),
    };
    (send, reader)
}

/// Reads what another thread produces; its end is the end of the channel.
pub(crate) struct PieceReader {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            match self.pieces.recv() {
                Ok(piece) => self.current = piece,
                Err(mpsc::RecvError) => return Ok(0),
            }
        }
        let len = self.current.len().min(buffer.len());
        buffer[..len].copy_from_slice(&self.current.split_to(len));
        Ok(len)
    }
}

impl PieceReader {
    /// Hashes all that comes.
    pub(crate) fn digest(self) -> Sha256 {
        let mut hasher = sha2::Sha256::new();
        for piece in [self.current].into_iter().chain(self.pieces) {
            hasher.update(&piece);
        }
        Sha256(hasher.finalize().into())
    }
}

/// Collects what is written into pieces and gives each to a closure.
pub(crate) struct Pieces<F> {
    piece: Vec<u8>,
    give: F,
}

impl<F: FnMut(Bytes) -> io::Result<()>> Pieces<F> {
    pub(crate) fn new(give: F) -> Self {
        Self {
            piece: Vec::with_capacity(PIECE_LEN),
            give,
        }
    }

    /// Gives the last piece, and the closure back.
    pub(crate) fn finish(mut self) -> io::Result<F> {
        if !self.piece.is_empty() {
            (self.give)(self.piece.into())?;
        }
        Ok(self.give)
    }
}

impl<F: FnMut(Bytes) -> io::Result<()>> Write for Pieces<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE_LEN - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == PIECE_LEN {
            let next = Vec::with_capacity(PIECE_LEN);
            (self.give)(std::mem::replace(&mut self.piece, next).into())?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
