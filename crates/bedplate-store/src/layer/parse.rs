//! The one parser of tar streams: ustar, PAX and GNU headers become entries.
//!
//! ```text
//! [x | L | K]* header │ map │ body │ padding  … one member; a map in sparse ones alone
//! g                                        … defaults for the members after it
//! two zero blocks, or the end              … anything after that is trailer
//! ```
//!
//! A [`Feed`] gives the bytes: the tar itself, a stored table, or a table on its way out as a tar.
//! Invariants: every byte but bodies passes through [`Feed::fill`], in order; where tools disagree
//! about a stream's meaning, it is refused. (The crate `tar-core` was tried and does not fit: it drops
//! the upper bits of base-256 numbers and ends a PAX header silently at the first malformed record.)

use std::collections::BTreeMap;

use bedplate_model::name::{NameError, shown};
use bedplate_model::tree::SYMLINK_MAX;
use bedplate_model::{FileContent, Metadata, Rdev, Timestamp, TreePath};

use super::entry::{Entry, EntryKind};
use super::error::LayerError;
use super::sparse::{self, Form, MapError, SparseMap};
use super::{MAX_ENTRIES, attributes, pax};

/// Tar's unit.
pub(super) const BLOCK: usize = 512;
/// The most bytes that the extension headers of one member, or all global defaults, may have.
pub(super) const MAX_EXTENSION: u64 = 1 << 20;
/// The largest mode: permissions, and the type of the file above them, which some writers put there.
const MAX_MODE: i128 = 0o177_777;
/// The longest path in a layer: what one system call takes, without the NUL.
pub(super) const MAX_LAYER_PATH: usize = 4095;
/// The longest path in a tar that is no layer: directories may lie deeper than one system call reaches.
pub(super) const MAX_ARCHIVE_PATH: usize = 64 << 10;
/// The most names that a path may have, one below the other: what fits into the longest path of a layer.
///
/// Who walks a tree holds a file open, or some of the stack, for each of them.
pub(super) const MAX_DEPTH: usize = MAX_LAYER_PATH.div_ceil(2);
/// The one mode that Linux gives symbolic links.
pub(super) const SYMLINK_MODE: u16 = 0o777;
/// What system calls take for "leave it as it is": nobody has this number.
pub(super) const NOBODY: u32 = u32::MAX;

/// Where a tar comes from, which says how much is forgiven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A person gave it, and what is in it must be what a file system can hold.
    Archive,
    /// A registry gave it: its digest vouches that it is whole, and other programs compute the same image
    /// of the same bytes.
    Layer,
    /// The store: a tar of these headers was accepted before, and what an earlier version passed over is no
    /// reason to lose it.
    Stored,
}

impl Origin {
    fn max_path(self) -> usize {
        match self {
            Self::Archive => MAX_ARCHIVE_PATH,
            Self::Layer | Self::Stored => MAX_LAYER_PATH,
        }
    }
}

/// Where a tar's bytes come from, bodies apart from all others.
pub(super) trait Feed {
    /// What is wrong with this feed, or with the tar.
    type Error: From<LayerError>;

    /// Returns where the tar comes from.
    fn origin(&self) -> Origin;

    /// Fills the buffer with bytes that are no body; fewer only at the end of the stream.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Self::Error>;

    /// Takes the body of the entry at `index`, whose content is never empty.
    fn body(&mut self, index: usize, path: &TreePath, body: &Body) -> Result<(), Self::Error>;

    /// Takes what stands after the end mark.
    fn trailer(&mut self) -> Result<(), Self::Error>;

    /// Returns how many bytes were taken so far, bodies included.
    fn offset(&self) -> u64;
}

/// The body of a member.
pub(super) struct Body {
    /// How long the file is.
    pub(super) size: u64,
    /// How many bytes of it the stream has.
    pub(super) stream: u64,
    /// Where these lie, unless they are all.
    pub(super) map: Option<SparseMap>,
}

/// What a stream says.
pub(super) struct Parsed {
    /// All members. Contents of files are empty in them: the feed knows the bodies.
    pub(super) entries: Vec<Entry>,
    /// Whether a member leaves out holes.
    pub(super) sparse: bool,
}

/// What names, targets and attributes of members may take in memory: a fixed part, and more for each member.
/// A few bytes of a stream stand for much (a global attribute, a name of 2,000 parts), and compress well.
const TEXT_MAX: u64 = 64 << 20;
const TEXT_PER_MEMBER: u64 = 1 << 10;

/// Reads a stream to its end.
pub(super) fn parse<F: Feed>(feed: &mut F) -> Result<Parsed, F::Error> {
    let mut entries = Vec::new();
    let mut text = 0;
    let mut sparse = false;
    let mut globals = Records::new();
    let origin = feed.origin();
    while let Some(member) = next_member(feed, &mut globals)? {
        if entries.len() >= MAX_ENTRIES {
            return Err(LayerError::TooLarge {
                offset: member.offset,
                what: "members",
                limit: MAX_ENTRIES as u64,
            }
            .into());
        }
        let (entry, stream, form) = member.resolve(&globals, origin)?;
        text += text_of(&entry);
        let limit = TEXT_MAX + TEXT_PER_MEMBER * entries.len() as u64;
        if text > limit {
            return Err(LayerError::TooLarge {
                offset: member.offset,
                what: "names, targets and attributes",
                limit,
            }
            .into());
        }
        let body = match form {
            None => Body {
                size: stream,
                stream,
                map: None,
            },
            Some(form) => {
                sparse = true;
                sparse_body(feed, &member, &entry.path, form, stream)?
            }
        };
        if body.size > 0 {
            feed.body(entries.len(), &entry.path, &body)?;
            let padding = (BLOCK - (body.stream % BLOCK as u64) as usize) % BLOCK;
            let count = feed.fill(&mut [0; BLOCK][..padding])?;
            // Some writers leave out the padding of a layer's last member, and all that follows.
            if count < padding && origin == Origin::Archive {
                let offset = feed.offset();
                return Err(LayerError::NoEnd { offset }.into());
            }
        }
        entries.push(entry);
    }
    feed.trailer()?;
    Ok(Parsed { entries, sparse })
}

/// Returns about how many bytes of memory the names, targets and attributes of an entry take.
fn text_of(entry: &Entry) -> u64 {
    /// What stands around each text.
    const AROUND: u64 = 48;
    let path = |path: &TreePath| -> u64 {
        let parts = path.components().iter();
        parts
            .map(|name| name.as_bytes().len() as u64 + AROUND)
            .sum()
    };
    let target = match &entry.kind {
        EntryKind::HardLink(target) => path(target),
        EntryKind::Symlink(target) => target.len() as u64,
        _ => 0,
    };
    let xattrs = entry.metadata.xattrs.iter();
    let xattrs: u64 = xattrs
        .map(|(name, value)| (name.len() + value.len()) as u64 + AROUND)
        .sum();
    path(&entry.path) + target + xattrs
}

fn sparse_body<F: Feed>(
    feed: &mut F,
    member: &Member,
    path: &TreePath,
    form: Form,
    size: u64,
) -> Result<Body, F::Error> {
    let map = form.read(feed, member, size).map_err(|error| match error {
        MapError::Problem(what) => F::Error::from(LayerError::Sparse {
            path: path.clone(),
            what,
        }),
        MapError::Feed(error) => error,
    })?;
    Ok(Body {
        size: map.size(),
        stream: map
            .segments()
            .iter()
            .map(|segment| segment.end - segment.start)
            .sum(),
        map: Some(map),
    })
}

pub(super) type Records = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Returns what a member's own records say, else those for all; an empty value takes an earlier one back.
pub(super) fn value<'a>(globals: &'a Records, local: &'a Records, key: &[u8]) -> Option<&'a [u8]> {
    let value = local.get(key).or_else(|| globals.get(key))?;
    Some(&**value).filter(|value| !value.is_empty())
}

/// A header and the extensions before it.
pub(super) struct Member {
    pub(super) header: [u8; BLOCK],
    offset: u64,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pub(super) pax: Option<Records>,
    /// The records as they came, for those whose order counts.
    pub(super) pax_data: Vec<u8>,
}

fn next_member<F: Feed>(feed: &mut F, globals: &mut Records) -> Result<Option<Member>, F::Error> {
    let mut member = Member {
        header: [0; BLOCK],
        offset: 0,
        long_name: None,
        long_link: None,
        pax: None,
        pax_data: Vec::new(),
    };
    let mut budget = MAX_EXTENSION;
    loop {
        let offset = feed.offset();
        let count = feed.fill(&mut member.header)?;
        let header = &member.header[..count];
        if header.iter().all(|byte| *byte == 0) {
            let extended =
                member.pax.is_some() || member.long_name.is_some() || member.long_link.is_some();
            if extended {
                return Err(LayerError::Truncated { offset }.into());
            }
            if count < BLOCK && feed.origin() == Origin::Archive {
                return Err(LayerError::NoEnd { offset }.into());
            }
            let mut second = [0; BLOCK];
            let count = if count == BLOCK {
                feed.fill(&mut second)?
            } else {
                0
            };
            if second[..count].iter().any(|byte| *byte != 0) {
                return Err(LayerError::Ambiguous {
                    offset,
                    what: "one zero block, and members after it",
                }
                .into());
            }
            return Ok(None);
        }
        if count < BLOCK {
            return Err(LayerError::Truncated { offset }.into());
        }
        if !checksum_holds(&member.header) {
            return Err(LayerError::Checksum { offset }.into());
        }
        let kind = member.header[156];
        if !matches!(kind, b'x' | b'g' | b'L' | b'K') {
            member.offset = offset;
            return Ok(Some(member));
        }
        let data = extension(feed, &member.header, offset, &mut budget)?;
        let duplicate = match kind {
            b'x' => {
                let records = parse_records(&data, offset)?;
                member.pax_data = data;
                member.pax.replace(records).is_some()
            }
            b'L' => member
                .long_name
                .replace(until_nul(&data).to_vec())
                .is_some(),
            b'K' => member
                .long_link
                .replace(until_nul(&data).to_vec())
                .is_some(),
            _ => {
                add_globals(globals, &data, offset)?;
                false
            }
        };
        if duplicate {
            return Err(LayerError::Ambiguous {
                offset,
                what: "two extension headers of one kind before one member",
            }
            .into());
        }
    }
}

/// Reads the data of an extension header and its padding.
fn extension<F: Feed>(
    feed: &mut F,
    header: &[u8; BLOCK],
    offset: u64,
    budget: &mut u64,
) -> Result<Vec<u8>, F::Error> {
    let size = header_size(header, offset)?;
    *budget = budget
        .checked_sub(size.saturating_add(BLOCK as u64))
        .ok_or(LayerError::TooLarge {
            offset,
            what: "extension headers",
            limit: MAX_EXTENSION,
        })?;
    let mut data = vec![0; (size as usize).next_multiple_of(BLOCK)];
    if feed.fill(&mut data)? < data.len() {
        return Err(LayerError::Truncated { offset }.into());
    }
    data.truncate(size as usize);
    Ok(data)
}

fn parse_records(data: &[u8], offset: u64) -> Result<Records, LayerError> {
    let records = pax::records(data).ok_or(LayerError::Pax { offset })?;
    Ok(records
        .into_iter()
        .map(|(key, value)| (key.into(), value.into()))
        .collect())
}

/// Adds defaults for the members that follow; the last value of a key counts.
fn add_globals(globals: &mut Records, data: &[u8], offset: u64) -> Result<(), LayerError> {
    for (key, value) in parse_records(data, offset)? {
        if matches!(&*key, b"path" | b"linkpath" | b"size") || key.starts_with(sparse::PREFIX) {
            return Err(LayerError::Ambiguous {
                offset,
                what: "a global PAX header that gives every member one path, target or size",
            });
        }
        globals.insert(key, value);
    }
    let total: usize = globals
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if total as u64 > MAX_EXTENSION {
        return Err(LayerError::TooLarge {
            offset,
            what: "global PAX headers",
            limit: MAX_EXTENSION,
        });
    }
    Ok(())
}

impl Member {
    /// Applies header, GNU and PAX extensions in the order of their rank; returns the entry and the
    /// length of its body, and how it says that it is sparse, where it is.
    fn resolve(
        &self,
        globals: &Records,
        origin: Origin,
    ) -> Result<(Entry, u64, Option<Form>), LayerError> {
        let offset = self.offset;
        let number = |field| LayerError::Number { offset, field };
        let empty = Records::new();
        let local = self.pax.as_ref().unwrap_or(&empty);
        let value = |key: &[u8]| value(globals, local, key);

        let sparse_name = local.get(sparse::NAME);
        let raw_path = match (sparse_name, value(b"path"), &self.long_name) {
            (Some(path), _, _) => path.to_vec(),
            (None, Some(path), _) => path.to_vec(),
            (None, None, Some(name)) => name.clone(),
            (None, None, None) => header_path(&self.header),
        };
        let path = parse_path(&raw_path, offset, "path", origin)?;
        let mut target = match (value(b"linkpath"), &self.long_link) {
            (Some(target), _) => target.to_vec(),
            (None, Some(target)) => target.clone(),
            (None, None) => until_nul(&self.header[157..257]).to_vec(),
        };

        let form = Form::of(self, local).map_err(|what| LayerError::Sparse {
            path: path.clone(),
            what,
        })?;
        let size = match value(b"size") {
            Some(text) => pax::decimal(text).ok_or(number("size"))?,
            None => header_size(&self.header, offset)?,
        };
        if size > i64::MAX as u64 {
            return Err(number("size"));
        }
        if size > sparse::MAX_SIZE && origin != Origin::Stored {
            return Err(LayerError::TooLarge {
                offset,
                what: "file sizes",
                limit: sparse::MAX_SIZE,
            });
        }
        let id = |key: &[u8], field: &'static str, range: std::ops::Range<usize>| {
            let id = match value(key) {
                Some(text) => pax::decimal(text).map(i128::from),
                None => pax::header_number(&self.header[range]),
            }
            .and_then(|value| u32::try_from(value).ok())
            .ok_or(number(field))?;
            if id == NOBODY && origin != Origin::Stored {
                let path = path.clone();
                return Err(LayerError::Nobody { path, field });
            }
            Ok(id)
        };
        let mtime = match value(b"mtime") {
            Some(text) => pax::parse_time(text).ok_or(number("mtime"))?,
            None => pax::header_number(&self.header[136..148])
                .and_then(|seconds| i64::try_from(seconds).ok())
                .map(Timestamp::from_seconds)
                .ok_or(number("mtime"))?,
        };
        let mode = pax::header_number(&self.header[100..108])
            .filter(|mode| origin == Origin::Stored || (0..=MAX_MODE).contains(mode))
            .ok_or(number("mode"))?;
        let metadata = Metadata {
            mode: (mode & 0o7777) as u16,
            uid: id(b"uid", "uid", 108..116)?,
            gid: id(b"gid", "gid", 116..124)?,
            mtime,
            xattrs: BTreeMap::new(),
        };

        let rdev = || -> Result<Rdev, LayerError> {
            let part = |range: std::ops::Range<usize>| {
                pax::header_number(&self.header[range])
                    .and_then(|value| u32::try_from(value).ok())
                    .ok_or(number("device number"))
            };
            let rdev = Rdev {
                major: part(329..337)?,
                minor: part(337..345)?,
            };
            // What Linux has room for.
            if origin != Origin::Stored && (rdev.major >= 1 << 12 || rdev.minor >= 1 << 20) {
                return Err(number("device number"));
            }
            Ok(rdev)
        };
        let unsupported = |what: &str| LayerError::Unsupported {
            path: path.clone(),
            what: what.to_owned(),
        };
        let kind = match self.header[156] {
            // Before there was a type for directories, a slash said it.
            0 if raw_path.ends_with(b"/") && form.is_none() => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File(FileContent::Inline(Box::default())),
            b'1' => EntryKind::HardLink(parse_path(&target, offset, "link target", origin)?),
            b'2' => {
                if target.is_empty() || target.len() > SYMLINK_MAX || target.contains(&0) {
                    return Err(number("link target"));
                }
                EntryKind::Symlink(std::mem::take(&mut target).into())
            }
            b'3' => EntryKind::CharacterDevice(rdev()?),
            b'4' => EntryKind::BlockDevice(rdev()?),
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                return Err(unsupported(&format!(
                    "a member of type `{}`",
                    shown(&[other])
                )));
            }
        };
        if size > 0 && !matches!(kind, EntryKind::File(_)) {
            return Err(LayerError::Ambiguous {
                offset,
                what: "a body behind something that is no regular file",
            });
        }
        let mut entry = Entry {
            path,
            metadata,
            kind,
        };
        attributes::add(&mut entry, globals, local, offset, origin)?;
        if origin == Origin::Archive && matches!(entry.kind, EntryKind::Symlink(_)) {
            entry.metadata.mode = SYMLINK_MODE;
        }
        Ok((entry, size, form))
    }
}

fn parse_path(
    bytes: &[u8],
    offset: u64,
    field: &'static str,
    origin: Origin,
) -> Result<TreePath, LayerError> {
    let refused = |source| LayerError::Path {
        offset,
        field,
        source,
    };
    if bytes.is_empty() {
        return Err(refused(NameError::Empty));
    }
    let limit = origin.max_path();
    if bytes.len() > limit {
        return Err(LayerError::LongPath {
            offset,
            field,
            limit,
        });
    }
    let path = TreePath::parse(bytes).map_err(refused)?;
    if path.components().len() > MAX_DEPTH {
        return Err(LayerError::TooLarge {
            offset,
            what: "levels of directories",
            limit: MAX_DEPTH as u64,
        });
    }
    Ok(path)
}

/// Joins name and, in POSIX headers, its prefix.
fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    // GNU headers keep times where POSIX ones keep the prefix.
    if &header[257..263] != b"ustar\0" || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

fn header_size(header: &[u8; BLOCK], offset: u64) -> Result<u64, LayerError> {
    pax::header_number(&header[124..136])
        .and_then(|size| u64::try_from(size).ok())
        .ok_or(LayerError::Number {
            offset,
            field: "size",
        })
}

/// Sums the header with its checksum as spaces; some old writers added signed bytes.
fn checksum_holds(header: &[u8; BLOCK]) -> bool {
    let blanked = header.iter().enumerate().map(|(position, byte)| {
        if (148..156).contains(&position) {
            b' '
        } else {
            *byte
        }
    });
    let unsigned: i128 = blanked.clone().map(i128::from).sum();
    let signed: i128 = blanked.map(|byte| i128::from(byte as i8)).sum();
    pax::header_number(&header[148..156]).is_some_and(|sum| sum == unsigned || sum == signed)
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    &bytes[..end]
}
