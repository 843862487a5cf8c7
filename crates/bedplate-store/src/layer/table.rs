//! The layer table: a layer in the store, and the way back to its tar.
//!
//! ```text
//! magic │ required features │ optional features │ skeleton length │ contents length
//! skeleton: the tar without bodies, zstd         contents: one record for each body, in order
//!     and at its end, in a frame that zstd skips: whose table it is, and a check
//! ```
//!
//! Invariant: a table that decodes gives entries that the reader of tars itself made from the
//! skeleton. `docs/format/layer.md` is normative.

use std::io::{self, Read, Write};
use std::ops::Range;

use bedplate_model::tree::INLINE_MAX;
use bedplate_model::{Algorithm, FileContent, ObjectId, Sha256, TreePath};
use sha2::Digest as _;

use super::entry::EntryKind;
use super::error::{DecodeLayerError, LayerError, RewriteError};
use super::parse::{Body, Feed, Origin, parse};
use super::pipeline::Stored;
use super::sparse::SparseMap;
use super::{Layer, MAX_SKELETON};

const MAGIC: &[u8; 8] = b"BPLAYER1";
const HEADER: usize = 32;
/// The required features that this version understands.
const KNOWN_FEATURES: u32 = SPARSE;
/// The required feature: the tar leaves out holes of files, which their contents have.
const SPARSE: u32 = 1;
/// The optional feature: the skeleton ends with a seal.
const SEALED: u32 = 1;
/// A frame that zstd skips (RFC 8878, section 3.1.2), holding a `diff_id` and a check.
const SEAL_HEAD: [u8; 8] = [0x50, 0x2a, 0x4d, 0x18, 64, 0, 0, 0];
const SEAL: usize = SEAL_HEAD.len() + 64;

const INLINE: u8 = 0;
const OBJECT_SHA256: u8 = 1;
const OBJECT_SHA512: u8 = 2;

impl Layer {
    /// Makes the table that the store keeps under `diff_id`.
    pub fn encode(&self, diff_id: &Sha256) -> Vec<u8> {
        let mut contents = Vec::new();
        for content in self.contents().filter(|content| content.size() > 0) {
            match content {
                FileContent::Inline(bytes) => {
                    contents.push(INLINE);
                    contents.push(bytes.len() as u8);
                    contents.extend_from_slice(bytes);
                }
                FileContent::Object { id, .. } => {
                    contents.push(match id.algorithm() {
                        Algorithm::Sha256 => OBJECT_SHA256,
                        Algorithm::Sha512 => OBJECT_SHA512,
                    });
                    contents.extend_from_slice(id.as_bytes());
                }
            }
        }
        let skeleton_size = self.skeleton.len() + SEAL;
        let mut table = Vec::with_capacity(HEADER + skeleton_size + contents.len());
        table.extend_from_slice(MAGIC);
        let required = if self.sparse { SPARSE } else { 0 };
        table.extend_from_slice(&required.to_le_bytes());
        table.extend_from_slice(&SEALED.to_le_bytes());
        table.extend_from_slice(&(skeleton_size as u64).to_le_bytes());
        table.extend_from_slice(&(contents.len() as u64).to_le_bytes());
        table.extend_from_slice(&self.skeleton);
        table.extend_from_slice(&SEAL_HEAD);
        table.extend_from_slice(&diff_id.0);
        table.extend_from_slice(&check(&self.skeleton, &contents));
        table.extend_from_slice(&contents);
        table
    }

    /// Reads the table that the store keeps under `diff_id`, trusting nothing in it.
    ///
    /// That its tar has this digest shows only when the tar is made again.
    pub fn decode(table: &[u8], diff_id: &Sha256) -> Result<Self, DecodeLayerError> {
        let rest = table.strip_prefix(MAGIC).ok_or(DecodeLayerError::Magic)?;
        let (header, rest) = rest
            .split_at_checked(HEADER - MAGIC.len())
            .ok_or(DecodeLayerError::Damaged("it is too short"))?;
        let features = u32::from_le_bytes(array(&header[..4]));
        if features & !KNOWN_FEATURES != 0 {
            return Err(DecodeLayerError::Features(features));
        }
        let skeleton_size = u64::from_le_bytes(array(&header[8..16]));
        let contents_size = u64::from_le_bytes(array(&header[16..24]));
        let (skeleton, contents) = usize::try_from(skeleton_size)
            .ok()
            .and_then(|size| rest.split_at_checked(size))
            .ok_or(DecodeLayerError::Damaged("its skeleton is cut off"))?;
        if contents.len() as u64 != contents_size {
            return Err(DecodeLayerError::Damaged(
                "its contents have another length",
            ));
        }
        let optional = u32::from_le_bytes(array(&header[4..8]));
        let skeleton = if optional & SEALED == 0 {
            skeleton
        } else {
            unsealed(skeleton, contents, diff_id)?
        };
        let mut feed = TableFeed {
            skeleton: open(skeleton)
                .map_err(|_| DecodeLayerError::Damaged("its skeleton is not compressed"))?,
            contents,
            found: Vec::new(),
            offset: 0,
        };
        let mut parsed = parse(&mut feed)?;
        if parsed.sparse && features & SPARSE == 0 {
            return Err(DecodeLayerError::Damaged(
                "it has sparse files and does not say so",
            ));
        }
        if !feed.contents.is_empty() {
            return Err(DecodeLayerError::Damaged("it has contents of no member"));
        }
        for (index, content) in feed.found {
            parsed.entries[index].kind = EntryKind::File(content);
        }
        Ok(Self {
            entries: parsed.entries,
            skeleton: skeleton.to_vec(),
            sparse: parsed.sparse,
        })
    }
}

/// Returns the skeleton without its seal, which must be that of this layer.
fn unsealed<'a>(
    skeleton: &'a [u8],
    contents: &[u8],
    diff_id: &Sha256,
) -> Result<&'a [u8], DecodeLayerError> {
    let damaged = DecodeLayerError::Damaged;
    let (skeleton, seal) = skeleton
        .split_last_chunk::<SEAL>()
        .ok_or(damaged("its seal is cut off"))?;
    let (head, rest) = seal.split_at(SEAL_HEAD.len());
    let (whose, wanted) = rest.split_at(32);
    if head != SEAL_HEAD || check(skeleton, contents) != wanted {
        return Err(damaged("it does not pass its check"));
    }
    if whose != diff_id.0 {
        return Err(damaged("it is the table of another layer"));
    }
    Ok(skeleton)
}

fn check(skeleton: &[u8], contents: &[u8]) -> [u8; 32] {
    let mut hasher = sha2::Sha256::new();
    hasher.update(skeleton);
    hasher.update(contents);
    hasher.finalize().into()
}

/// Writes the exact bytes that the layer was read from.
pub fn rewrite_tar<'a>(
    layer: &Layer,
    contents: &dyn Fn(&FileContent) -> io::Result<Box<dyn Read + 'a>>,
    out: &mut dyn Write,
) -> Result<(), RewriteError> {
    let mut feed = RewriteFeed {
        layer,
        skeleton: open(&layer.skeleton).map_err(|source| LayerError::Read { offset: 0, source })?,
        contents,
        out,
        offset: 0,
    };
    parse(&mut feed)?;
    Ok(())
}

type Skeleton<'a> = io::Take<zstd::Decoder<'static, io::BufReader<&'a [u8]>>>;

/// Opens a skeleton for reading; no more than a layer may have comes out.
fn open(skeleton: &[u8]) -> io::Result<Skeleton<'_>> {
    Ok(zstd::Decoder::new(skeleton)?.take(MAX_SKELETON))
}

fn fill(
    skeleton: &mut Skeleton<'_>,
    buffer: &mut [u8],
    offset: &mut u64,
) -> Result<usize, LayerError> {
    let mut count = 0;
    while count < buffer.len() {
        let more = skeleton
            .read(&mut buffer[count..])
            .map_err(|source| LayerError::Read {
                offset: *offset,
                source,
            })?;
        if more == 0 {
            break;
        }
        count += more;
    }
    *offset = offset.saturating_add(count as u64);
    Ok(count)
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

/// A stored table.
struct TableFeed<'a> {
    skeleton: Skeleton<'a>,
    contents: &'a [u8],
    found: Stored,
    offset: u64,
}

impl TableFeed<'_> {
    fn next_content(&mut self, size: u64) -> Option<FileContent> {
        let (kind, rest) = self.contents.split_first()?;
        let (content, rest) = match *kind {
            INLINE => {
                let (length, rest) = rest.split_first()?;
                let (bytes, rest) = rest.split_at_checked(usize::from(*length))?;
                if bytes.len() > INLINE_MAX || bytes.len() as u64 != size {
                    return None;
                }
                (FileContent::Inline(bytes.into()), rest)
            }
            kind => {
                let algorithm = match kind {
                    OBJECT_SHA256 => Algorithm::Sha256,
                    OBJECT_SHA512 => Algorithm::Sha512,
                    _ => return None,
                };
                let (bytes, rest) = rest.split_at_checked(algorithm.digest_len())?;
                if size <= INLINE_MAX as u64 {
                    return None;
                }
                let id = ObjectId::from_bytes(algorithm, bytes)?;
                (FileContent::Object { id, size }, rest)
            }
        };
        self.contents = rest;
        Some(content)
    }
}

impl Feed for TableFeed<'_> {
    type Error = DecodeLayerError;

    fn origin(&self) -> Origin {
        Origin::Stored
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, DecodeLayerError> {
        Ok(fill(&mut self.skeleton, buffer, &mut self.offset)?)
    }

    fn body(&mut self, index: usize, _: &TreePath, body: &Body) -> Result<(), DecodeLayerError> {
        let content = self
            .next_content(body.size)
            .ok_or(DecodeLayerError::Damaged(
                "a content does not fit its member",
            ))?;
        self.offset = self.offset.saturating_add(body.stream);
        self.found.push((index, content));
        Ok(())
    }

    fn trailer(&mut self) -> Result<(), DecodeLayerError> {
        io::copy(&mut self.skeleton, &mut io::sink())
            .map(drop)
            .map_err(|_| DecodeLayerError::Damaged("its skeleton is not compressed"))
    }

    fn offset(&self) -> u64 {
        self.offset
    }
}

impl From<LayerError> for DecodeLayerError {
    fn from(error: LayerError) -> Self {
        Self::Skeleton(error)
    }
}

/// A layer on its way out as a tar.
struct RewriteFeed<'a, 'c> {
    layer: &'a Layer,
    skeleton: Skeleton<'a>,
    contents: &'a dyn Fn(&FileContent) -> io::Result<Box<dyn Read + 'c>>,
    out: &'a mut dyn Write,
    offset: u64,
}

impl Feed for RewriteFeed<'_, '_> {
    type Error = RewriteError;

    fn origin(&self) -> Origin {
        Origin::Stored
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, RewriteError> {
        let count = fill(&mut self.skeleton, buffer, &mut self.offset)?;
        self.out
            .write_all(&buffer[..count])
            .map_err(RewriteError::Write)?;
        Ok(count)
    }

    fn body(&mut self, index: usize, path: &TreePath, body: &Body) -> Result<(), RewriteError> {
        let Some(EntryKind::File(content)) = self.layer.entries.get(index).map(|entry| &entry.kind)
        else {
            return Err(LayerError::Truncated {
                offset: self.offset,
            }
            .into());
        };
        let found = copy_body(
            content,
            body.size,
            body.map.as_ref(),
            self.contents,
            self.out,
        )
        .map_err(|error| match error {
            CopyError::Read(source) => RewriteError::Content {
                path: path.clone(),
                source,
            },
            CopyError::Write(source) => RewriteError::Write(source),
        })?;
        if found != body.size {
            return Err(RewriteError::WrongSize {
                path: path.clone(),
                wanted: body.size,
                found,
            });
        }
        self.offset = self.offset.saturating_add(body.stream);
        Ok(())
    }

    fn trailer(&mut self) -> Result<(), RewriteError> {
        let mut buffer = vec![0; 64 << 10];
        while self.fill(&mut buffer)? > 0 {}
        Ok(())
    }

    fn offset(&self) -> u64 {
        self.offset
    }
}

/// Which side of a copy failed.
pub(super) enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Copies a content that should have `size` bytes, or the segments of it that a map names; returns how
/// many it has, or one more than `size`.
pub(super) fn copy_body<'a>(
    content: &FileContent,
    size: u64,
    map: Option<&SparseMap>,
    contents: &dyn Fn(&FileContent) -> io::Result<Box<dyn Read + 'a>>,
    out: &mut dyn Write,
) -> Result<u64, CopyError> {
    let mut segments = Segments::of(map);
    if let FileContent::Inline(bytes) = content {
        if bytes.len() as u64 == size {
            segments.write(0, bytes, out).map_err(CopyError::Write)?;
        }
        return Ok(bytes.len() as u64);
    }
    let mut body = contents(content).map_err(CopyError::Read)?;
    let mut buffer = vec![0; (size.min(128 << 10) as usize).saturating_add(1)];
    let mut found = 0_u64;
    // The end must be met too: what checks a digest reports damage there.
    loop {
        let count = match body.read(&mut buffer) {
            Ok(0) => return Ok(found),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Read(error)),
        };
        let position = found;
        found = found.saturating_add(count as u64);
        if found > size {
            return Ok(found);
        }
        segments
            .write(position, &buffer[..count], out)
            .map_err(CopyError::Write)?;
    }
}

/// The parts of a content that a tar has.
struct Segments<'a> {
    /// Those that are not written yet; `None` where all of it is.
    left: Option<&'a [Range<u64>]>,
}

impl<'a> Segments<'a> {
    fn of(map: Option<&'a SparseMap>) -> Self {
        Self {
            left: map.map(SparseMap::segments),
        }
    }

    /// Writes what a tar has of the bytes at this position; the positions only grow.
    fn write(&mut self, position: u64, bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
        let Some(left) = &mut self.left else {
            return out.write_all(bytes);
        };
        let end = position.saturating_add(bytes.len() as u64);
        while let Some((segment, rest)) = left.split_first() {
            let (from, to) = (segment.start.max(position), segment.end.min(end));
            if from < to {
                out.write_all(&bytes[(from - position) as usize..(to - position) as usize])?;
            }
            if segment.end > end {
                break;
            }
            *left = rest;
        }
        Ok(())
    }
}
