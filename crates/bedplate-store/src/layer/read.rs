//! Reading a tar: entries to memory, bodies to the store, every other byte into the skeleton.

use std::io::{self, BufReader, Read, Write as _};
use std::sync::mpsc::SyncSender;

use bedplate_model::tree::INLINE_MAX;
use bedplate_model::{FileContent, TreePath};

use super::contents::Contents;
use super::entry::EntryKind;
use super::error::LayerError;
use super::parse::{Body, Feed, Origin, parse};
use super::pipeline::{self, Job, Stored};
use super::{Layer, MAX_SKELETON};

/// Bodies up to this size are held in memory and stored by the workers.
const BUFFERED_MAX: u64 = 1 << 20;
/// How hard the skeleton is compressed: headers repeat so much that more brings little.
const LEVEL: i32 = 3;
/// How much is read at once.
const READ_BUFFER: usize = 256 << 10;

/// Reads a layer's uncompressed tar stream to its end; the caller hashes it on the way.
///
/// The bodies of files go to `contents`, from several threads.
pub fn read(tar: &mut dyn Read, contents: &dyn Contents) -> Result<Layer, LayerError> {
    read_from(Origin::Layer, tar, contents)
}

/// Reads a tar stream to its end.
pub(super) fn read_from(
    origin: Origin,
    tar: &mut dyn Read,
    contents: &dyn Contents,
) -> Result<Layer, LayerError> {
    let ((mut parsed, mut feed), stored) = pipeline::run(contents, |queue| {
        let mut feed = TarFeed {
            origin,
            tar: BufReader::with_capacity(READ_BUFFER, tar),
            contents,
            queue,
            stored: Vec::new(),
            skeleton: zstd::Encoder::new(Vec::new(), LEVEL)
                .map_err(|source| LayerError::Read { offset: 0, source })?,
            skeleton_size: 0,
            offset: 0,
        };
        let parsed = parse(&mut feed)?;
        let finished = feed.skeleton.finish().map_err(|source| LayerError::Read {
            offset: feed.offset,
            source,
        })?;
        Ok((parsed, (finished, feed.stored)))
    })?;
    for (index, content) in feed.1.drain(..).chain(stored) {
        parsed.entries[index].kind = EntryKind::File(content);
    }
    Ok(Layer {
        entries: parsed.entries,
        skeleton: feed.0,
        sparse: parsed.sparse,
    })
}

/// The tar itself.
struct TarFeed<'a> {
    origin: Origin,
    tar: BufReader<&'a mut dyn Read>,
    contents: &'a dyn Contents,
    queue: &'a SyncSender<Job>,
    /// What the reading thread stored itself.
    stored: Stored,
    skeleton: zstd::Encoder<'static, Vec<u8>>,
    skeleton_size: u64,
    offset: u64,
}

impl TarFeed<'_> {
    /// Reads until the buffer is full or the stream ends.
    fn take(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let mut count = 0;
        while count < buffer.len() {
            match self.tar.read(&mut buffer[count..]) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(LayerError::Read {
                        offset: self.offset.saturating_add(count as u64),
                        source,
                    });
                }
            }
        }
        self.offset = self.offset.saturating_add(count as u64);
        Ok(count)
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.skeleton_size = self.skeleton_size.saturating_add(bytes.len() as u64);
        if self.skeleton_size > MAX_SKELETON {
            return Err(LayerError::TooLarge {
                offset: self.offset,
                what: "headers",
                limit: MAX_SKELETON,
            });
        }
        self.skeleton
            .write_all(bytes)
            .map_err(|source| LayerError::Read {
                offset: self.offset,
                source,
            })
    }
}

impl Feed for TarFeed<'_> {
    type Error = LayerError;

    fn origin(&self) -> Origin {
        self.origin
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let count = self.take(buffer)?;
        self.keep(&buffer[..count])?;
        Ok(count)
    }

    fn body(&mut self, index: usize, path: &TreePath, body: &Body) -> Result<(), LayerError> {
        if body.size > BUFFERED_MAX {
            let mut data = (&mut self.tar).take(body.stream);
            let result = match &body.map {
                None => self.contents.put(&mut data, body.size),
                Some(map) => self.contents.put_sparse(&mut data, map),
            };
            let left = data.limit();
            self.offset = self.offset.saturating_add(body.stream - left);
            let content = match result {
                Ok(content) => content,
                Err(_) if left > 0 && self.tar.buffer().is_empty() && at_end(&mut self.tar) => {
                    return Err(LayerError::Truncated {
                        offset: self.offset,
                    });
                }
                Err(source) => {
                    return Err(LayerError::Store {
                        path: path.clone(),
                        source,
                    });
                }
            };
            if left > 0 {
                return Err(LayerError::Truncated {
                    offset: self.offset,
                });
            }
            self.stored.push((index, content));
            return Ok(());
        }
        let mut bytes = vec![0; body.size as usize];
        let whole = 0..body.size;
        let segments = match &body.map {
            None => std::slice::from_ref(&whole),
            Some(map) => map.segments(),
        };
        for segment in segments {
            let segment = &mut bytes[segment.start as usize..segment.end as usize];
            if self.take(segment)? < segment.len() {
                return Err(LayerError::Truncated {
                    offset: self.offset,
                });
            }
        }
        if bytes.len() <= INLINE_MAX {
            self.stored.push((index, FileContent::Inline(bytes.into())));
            return Ok(());
        }
        let job = Job {
            index,
            path: path.clone(),
            bytes,
        };
        // The queue closes only when a worker failed; its error is the one that is reported.
        self.queue.send(job).map_err(|_| LayerError::Read {
            offset: self.offset,
            source: io::ErrorKind::BrokenPipe.into(),
        })
    }

    fn trailer(&mut self) -> Result<(), LayerError> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = self.take(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            self.keep(&buffer[..count])?;
        }
    }

    fn offset(&self) -> u64 {
        self.offset
    }
}

/// Returns whether the stream has nothing more, after something else already failed.
fn at_end(tar: &mut dyn Read) -> bool {
    matches!(tar.read(&mut [0]), Ok(0))
}
