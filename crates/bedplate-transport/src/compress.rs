//! Layers as we send them: the same tar always gives the same bytes, on any number of threads.
//!
//! ```text
//! tar ─→ pieces of fixed size ─→ worker 0, 1, … ─→ frames (members) in order ─→ blob
//! ```
//!
//! Each piece is a frame (a gzip member) of its own, so that neither threads nor timing reach the
//! result; readers take several frames as one stream.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::mpsc;
use std::thread::JoinHandle;

use bedplate_model::oci::Compression;

/// How a layer's compressed bytes are made: enough to make them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// Plain tar.
    None,
    /// gzip at a level from 1 to 9.
    Gzip(u8),
    /// Zstandard at a level from 1 to 19.
    Zstd(u8),
}

impl Recipe {
    /// The default: three times faster to unpack than gzip, and smaller.
    pub const ZSTD: Self = Self::Zstd(3);
    /// For readers that know nothing newer.
    pub const GZIP: Self = Self::Gzip(6);

    /// Returns what the result is compressed by.
    pub const fn compression(self) -> Compression {
        match self {
            Self::None => Compression::None,
            Self::Gzip(_) => Compression::Gzip,
            Self::Zstd(_) => Compression::Zstd,
        }
    }

    /// Returns the length of the pieces that are compressed each on its own. Part of the recipe: a
    /// change changes every digest. Long enough that the seams cost less than one percent.
    const fn piece_len(self) -> usize {
        match self {
            Self::None => 256 << 10,
            Self::Gzip(_) => 1 << 20,
            Self::Zstd(_) => 4 << 20,
        }
    }
}

impl Default for Recipe {
    fn default() -> Self {
        Self::ZSTD
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Gzip(level) => write!(f, "gzip-{level}"),
            Self::Zstd(level) => write!(f, "zstd-{level}"),
        }
    }
}

impl FromStr for Recipe {
    type Err = ParseRecipeError;

    /// Parses `none`, `gzip`, `zstd`, `gzip-6`, `zstd-3`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseRecipeError(text.chars().take(40).collect());
        let (name, level) = match text.split_once('-') {
            Some((name, level)) => (name, Some(level.parse::<u8>().map_err(|_| refuse())?)),
            None => (text, None),
        };
        match (name, level) {
            ("none", None) => Ok(Self::None),
            ("gzip", None) => Ok(Self::GZIP),
            ("zstd", None) => Ok(Self::ZSTD),
            ("gzip", Some(level @ 1..=9)) => Ok(Self::Gzip(level)),
            ("zstd", Some(level @ 1..=19)) => Ok(Self::Zstd(level)),
            _ => Err(refuse()),
        }
    }
}

/// A text that is no recipe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no compression (there are none, gzip-1 to gzip-9 and zstd-1 to zstd-19)")]
pub struct ParseRecipeError(String);

/// Compresses what is written to it on several threads.
///
/// It must be finished; one that is dropped has written an unusable part.
pub(crate) struct Compressor<W: Write> {
    recipe: Recipe,
    out: W,
    piece: Vec<u8>,
    workers: Vec<Worker>,
    /// Which workers have a piece in hand, in the order of the pieces.
    pending: VecDeque<usize>,
    next: usize,
    wrote_any: bool,
}

struct Worker {
    pieces: Option<mpsc::Sender<Vec<u8>>>,
    frames: mpsc::Receiver<io::Result<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

/// Pieces that one worker has at a time: one to compress and one to go on with.
const PIECES_EACH: usize = 2;

impl<W: Write> Compressor<W> {
    /// Starts `threads` workers.
    pub(crate) fn new(recipe: Recipe, threads: usize, out: W) -> io::Result<Self> {
        let threads = match recipe {
            Recipe::None => 0,
            Recipe::Gzip(_) | Recipe::Zstd(_) => threads.max(1),
        };
        Ok(Self {
            recipe,
            out,
            piece: Vec::new(),
            workers: (0..threads)
                .map(|_| Worker::start(recipe))
                .collect::<io::Result<_>>()?,
            pending: VecDeque::new(),
            next: 0,
            wrote_any: false,
        })
    }

    /// Compresses what is left and returns the writer.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        // Nothing at all is one empty frame: no reader takes zero bytes for a stream.
        if !self.piece.is_empty() || !self.wrote_any {
            self.hand_out()?;
        }
        while !self.pending.is_empty() {
            self.take_in()?;
        }
        Ok(self.out)
    }

    fn hand_out(&mut self) -> io::Result<()> {
        self.wrote_any = true;
        let piece = std::mem::take(&mut self.piece);
        if self.workers.is_empty() {
            return self.out.write_all(&piece);
        }
        if self.pending.len() >= self.workers.len() * PIECES_EACH {
            self.take_in()?;
        }
        let worker = self.next;
        self.next = (worker + 1) % self.workers.len();
        let sent = self.workers[worker]
            .pieces
            .as_ref()
            .is_some_and(|pieces| pieces.send(piece).is_ok());
        if !sent {
            return Err(stopped());
        }
        self.pending.push_back(worker);
        Ok(())
    }

    /// Waits for the oldest frame and writes it.
    fn take_in(&mut self) -> io::Result<()> {
        if let Some(worker) = self.pending.pop_front() {
            let frame = self.workers[worker]
                .frames
                .recv()
                .map_err(|_| stopped())??;
            self.out.write_all(&frame)?;
        }
        Ok(())
    }
}

fn stopped() -> io::Error {
    io::Error::other("a compression thread stopped")
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.recipe.piece_len();
        if self.piece.capacity() == 0 {
            self.piece.reserve_exact(len);
        }
        let taken = bytes.len().min(len - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == len {
            self.hand_out()?;
        }
        Ok(taken)
    }

    /// Does nothing: a piece that were cut here would be another recipe.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Worker {
    fn start(recipe: Recipe) -> io::Result<Self> {
        let (pieces, receive_pieces) = mpsc::channel::<Vec<u8>>();
        let (send_frames, frames) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("compress".into())
            .spawn(move || {
                let mut encoder = Encoder::new(recipe);
                for piece in receive_pieces {
                    let frame = encoder.as_mut().map_or_else(
                        |error| Err(io::Error::new(error.kind(), error.to_string())),
                        |encoder| encoder.frame(&piece),
                    );
                    if send_frames.send(frame).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            pieces: Some(pieces),
            frames,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.pieces.take();
        if let Some(thread) = self.thread.take() {
            // A worker that panicked was reported as stopped already.
            let _ = thread.join();
        }
    }
}

/// What one worker keeps from piece to piece.
enum Encoder {
    Gzip(flate2::Compression),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Encoder {
    fn new(recipe: Recipe) -> io::Result<Self> {
        Ok(match recipe {
            Recipe::Gzip(level) => Self::Gzip(flate2::Compression::new(level.into())),
            Recipe::Zstd(level) => Self::Zstd(zstd::bulk::Compressor::new(level.into())?),
            Recipe::None => return Err(io::Error::other("plain tar needs no worker")),
        })
    }

    fn frame(&mut self, piece: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(level) => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), *level);
                encoder.write_all(piece)?;
                encoder.finish()
            }
            Self::Zstd(encoder) => encoder.compress(piece),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    /// Bytes with some structure, so that there is something to compress.
    fn sample(len: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let step = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (*state >> 24) as u8 & 31
        };
        (0..len).map(|_| step(&mut state)).collect()
    }

    fn compress(recipe: Recipe, threads: usize, write_len: usize, bytes: &[u8]) -> Vec<u8> {
        let mut compressor = Compressor::new(recipe, threads, Vec::new()).unwrap();
        for part in bytes.chunks(write_len) {
            compressor.write_all(part).unwrap();
        }
        compressor.finish().unwrap()
    }

    #[test]
    fn neither_threads_nor_the_size_of_writes_change_the_result() {
        let bytes = sample(9 << 20);
        for recipe in [Recipe::None, Recipe::Gzip(1), Recipe::Zstd(1)] {
            let one = compress(recipe, 1, 1 << 20, &bytes);
            assert!(one == compress(recipe, 5, 77_777, &bytes), "{recipe}");
            let mut unpacked = Vec::new();
            crate::decompress::reader(recipe.compression(), &one[..])
                .unwrap()
                .read_to_end(&mut unpacked)
                .unwrap();
            assert!(unpacked == bytes, "{recipe}");
        }
    }

    #[test]
    fn nothing_is_a_stream_too() {
        for recipe in [Recipe::GZIP, Recipe::ZSTD] {
            let bytes = compress(recipe, 2, 1, b"");
            assert!(!bytes.is_empty());
            let mut unpacked = Vec::new();
            crate::decompress::reader(recipe.compression(), &bytes[..])
                .unwrap()
                .read_to_end(&mut unpacked)
                .unwrap();
            assert_eq!(unpacked, b"");
        }
    }

    #[test]
    fn a_reader_that_is_gone_stops_the_writer() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut compressor = Compressor::new(Recipe::Zstd(1), 2, Full).unwrap();
        let outcome = compressor.write_all(&sample(40 << 20));
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn recipes_print_as_they_parse() {
        for text in ["none", "gzip-1", "gzip-9", "zstd-3", "zstd-19"] {
            assert_eq!(text.parse::<Recipe>().unwrap().to_string(), text);
        }
        for text in [
            "", "zip", "gzip-0", "gzip-10", "zstd-20", "zstd--1", "none-1", "zstd-3-x",
        ] {
            assert!(text.parse::<Recipe>().is_err(), "{text}");
        }
    }
}
