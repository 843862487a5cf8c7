//! Writing a tree as a tar that every tool reads, and that reads back as the same tree.
//!
//! ```text
//! ./ , then every name in the order of its bytes, parents first
//! [PAX header: what ustar cannot say]  ustar header  body  padding   …   two zero blocks
//! ```
//!
//! Invariant: the bytes depend on the tree and on what the tar is for, and on nothing else. Holes are
//! therefore written as the zeros that they are: a tree does not know them, to find them every content
//! would have to be read twice (the map stands before the body), the OCI specification advises against
//! sparse members, and what compresses the tar makes next to nothing of the zeros.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use bedplate_model::name::shown;
use bedplate_model::{Content, FileContent, Metadata, NodeId, Rdev, Tree, TreePath};

use super::error::WriteTarError;
use super::flatten::WHITEOUT;
use super::parse::{BLOCK, MAX_ARCHIVE_PATH, MAX_DEPTH, MAX_EXTENSION, MAX_LAYER_PATH, NOBODY};
use super::pax;
use super::table::{CopyError, copy_body};
use super::{acl, attributes};

/// The name of PAX headers, which no reader looks at.
const PAX_NAME: &[u8] = b"././@PaxHeader";

/// What a tar is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TarKind {
    /// A layer of an image, which must give back the very same tree: names of whiteouts and sockets are
    /// refused.
    Layer,
    /// A root file system for any tool: `.wh.` begins a name like any other, and sockets, which nothing but
    /// the program that listens on them can use, are left out.
    RootFileSystem,
}

impl TarKind {
    /// Returns how long a path may be, and in what.
    fn max_path(self) -> (usize, &'static str) {
        match self {
            Self::Layer => (MAX_LAYER_PATH, "a layer"),
            Self::RootFileSystem => (MAX_ARCHIVE_PATH, "a tar"),
        }
    }
}

/// Writes a tree as a deterministic tar, and returns the sockets that were left out.
///
/// `contents` opens what is not in the tree itself.
///
/// What a tar cannot hold is found before the first byte is written.
pub fn write_tar<'a>(
    tree: &Tree,
    kind: TarKind,
    contents: &dyn Fn(&FileContent) -> io::Result<Box<dyn Read + 'a>>,
    out: &mut dyn Write,
) -> Result<Vec<TreePath>, WriteTarError> {
    let left_out = each_member(tree, kind, &mut |_, _, _| Ok(()))?;
    each_member(tree, kind, &mut |path, headers, body| {
        out.write_all(headers).map_err(WriteTarError::Write)?;
        match body {
            Some(content) => write_body(path, content, contents, out),
            None => Ok(()),
        }
    })?;
    out.write_all(&[0; 2 * BLOCK])
        .map_err(WriteTarError::Write)?;
    Ok(left_out)
}

/// What is done with one member: its path, its headers, and the content that follows them.
type EachMember<'a> =
    dyn FnMut(&TreePath, &[u8], Option<&FileContent>) -> Result<(), WriteTarError> + 'a;

/// Makes the headers of every name, in the order of the tar; returns what has none.
fn each_member(
    tree: &Tree,
    kind: TarKind,
    each: &mut EachMember<'_>,
) -> Result<Vec<TreePath>, WriteTarError> {
    let mut left_out = Vec::new();
    let mut first_names: HashMap<NodeId, TreePath> = HashMap::new();
    let names = tree.name_counts();
    let root = std::iter::once((TreePath::root(), Tree::ROOT));
    for (path, id) in root.chain(tree.walk()) {
        let is_whiteout = path
            .split_last()
            .is_some_and(|(_, name)| name.as_bytes().starts_with(WHITEOUT));
        if is_whiteout && kind == TarKind::Layer {
            return Err(WriteTarError::WhiteoutName(path));
        }
        let node = tree.node(id);
        let mut member = Member::new(&path, &node.metadata);
        let mut body = None;
        if let Some(first) = first_names.get(&id) {
            member.kind = b'1';
            member.target = first.to_bytes();
        } else {
            match &node.content {
                Content::Directory(_) => {
                    member.kind = b'5';
                    member
                        .path
                        .extend_from_slice(if path.components().is_empty() {
                            b"./"
                        } else {
                            b"/"
                        });
                }
                Content::File(content) => {
                    member.size = content.size();
                    body = Some(content).filter(|content| content.size() > 0);
                }
                Content::Symlink(target) => {
                    member.kind = b'2';
                    member.target = target.to_vec();
                }
                Content::CharacterDevice(rdev) => {
                    member.kind = b'3';
                    member.rdev = Some(*rdev);
                }
                Content::BlockDevice(rdev) => {
                    member.kind = b'4';
                    member.rdev = Some(*rdev);
                }
                Content::Fifo => member.kind = b'6',
                Content::Socket if kind == TarKind::RootFileSystem => {
                    left_out.push(path);
                    continue;
                }
                Content::Socket => return Err(WriteTarError::Socket(path)),
            }
            if names[id.index()] > 1 {
                first_names.insert(id, path.clone());
            }
        }
        let headers = member.headers(&path, kind)?;
        each(&path, &headers, body)?;
    }
    Ok(left_out)
}

fn write_body<'a>(
    path: &TreePath,
    content: &FileContent,
    contents: &dyn Fn(&FileContent) -> io::Result<Box<dyn Read + 'a>>,
    out: &mut dyn Write,
) -> Result<(), WriteTarError> {
    let wanted = content.size();
    let found = copy_body(content, wanted, None, contents, out).map_err(|error| match error {
        CopyError::Read(source) => WriteTarError::Content {
            path: path.clone(),
            source,
        },
        CopyError::Write(source) => WriteTarError::Write(source),
    })?;
    if found != wanted {
        return Err(WriteTarError::WrongSize {
            path: path.clone(),
            wanted,
            found,
        });
    }
    let padding = (BLOCK - (wanted % BLOCK as u64) as usize) % BLOCK;
    out.write_all(&[0; BLOCK][..padding])
        .map_err(WriteTarError::Write)
}

/// What the headers of one name say.
struct Member<'a> {
    path: Vec<u8>,
    target: Vec<u8>,
    kind: u8,
    size: u64,
    rdev: Option<Rdev>,
    metadata: &'a Metadata,
}

impl<'a> Member<'a> {
    fn new(path: &TreePath, metadata: &'a Metadata) -> Self {
        Self {
            path: path.to_bytes(),
            target: Vec::new(),
            kind: b'0',
            size: 0,
            rdev: None,
            metadata,
        }
    }

    /// Makes the ustar header, after a PAX header for all that does not fit.
    fn headers(&self, path: &TreePath, kind: TarKind) -> Result<Vec<u8>, WriteTarError> {
        let (limit, of) = kind.max_path();
        if self.path.len() > limit || self.target.len() > limit {
            let path = path.clone();
            return Err(WriteTarError::PathTooLong { path, limit, of });
        }
        if path.components().len() > MAX_DEPTH {
            let path = path.clone();
            let limit = MAX_DEPTH;
            return Err(WriteTarError::TooDeep { path, limit });
        }
        for (id, field) in [(self.metadata.uid, "uid"), (self.metadata.gid, "gid")] {
            if id == NOBODY {
                let path = path.clone();
                return Err(WriteTarError::Nobody { path, field });
            }
        }
        let mut header = [0; BLOCK];
        let mut pax = Vec::new();
        if std::str::from_utf8(&self.path).is_err() || std::str::from_utf8(&self.target).is_err() {
            pax::push_record(&mut pax, b"hdrcharset", b"BINARY");
        }
        put_text(&mut header[..100], &self.path, b"path", &mut pax);
        put_text(&mut header[157..257], &self.target, b"linkpath", &mut pax);
        put_number(
            &mut header[108..116],
            u64::from(self.metadata.uid),
            b"uid",
            &mut pax,
        );
        put_number(
            &mut header[116..124],
            u64::from(self.metadata.gid),
            b"gid",
            &mut pax,
        );
        put_number(&mut header[124..136], self.size, b"size", &mut pax);
        let mtime = self.metadata.mtime;
        let seconds = u64::try_from(mtime.seconds)
            .ok()
            .filter(|seconds| fits(*seconds, 12));
        if seconds.is_none() || mtime.nanoseconds != 0 {
            pax::push_record(&mut pax, b"mtime", pax::print_time(mtime).as_bytes());
        }
        put_octal(&mut header[136..148], seconds.unwrap_or(0));
        for (name, value) in &self.metadata.xattrs {
            // The key ends at the first '=', and PAX keys are UTF-8.
            if name.is_empty() || name.contains(&b'=') || std::str::from_utf8(name).is_err() {
                return Err(WriteTarError::XattrName {
                    path: path.clone(),
                    name: shown(name),
                });
            }
            pax::push_record(&mut pax, &[attributes::XATTR, name].concat(), value);
        }
        // Once more for tools that read access lists as text alone; our own reader prefers the attribute.
        for (key, name) in acl::KINDS {
            let list = self.metadata.xattrs.get(name);
            if let Some(text) = list.and_then(|list| acl::to_text(list)) {
                pax::push_record(&mut pax, key, text.as_bytes());
            }
        }
        put_octal(
            &mut header[100..108],
            u64::from(self.metadata.mode & 0o7777),
        );
        let rdev = self.rdev.unwrap_or(Rdev { major: 0, minor: 0 });
        put_device(&mut header[329..337], rdev.major);
        put_device(&mut header[337..345], rdev.minor);
        seal(&mut header, self.kind);
        if pax.is_empty() {
            return Ok(header.to_vec());
        }
        if pax.len() as u64 > MAX_EXTENSION - BLOCK as u64 {
            return Err(WriteTarError::TooLarge(path.clone()));
        }
        let mut extension = [0; BLOCK];
        extension[..PAX_NAME.len()].copy_from_slice(PAX_NAME);
        for (range, value) in [
            (100..108, 0o644),
            (108..116, 0),
            (116..124, 0),
            (124..136, pax.len() as u64),
            (136..148, 0),
            (329..337, 0),
            (337..345, 0),
        ] {
            put_octal(&mut extension[range], value);
        }
        seal(&mut extension, b'x');
        let mut headers = extension.to_vec();
        headers.append(&mut pax);
        headers.resize(headers.len().next_multiple_of(BLOCK), 0);
        headers.extend_from_slice(&header);
        Ok(headers)
    }
}

/// Writes a name; what is long or not ASCII goes to a record, and its beginning here.
fn put_text(field: &mut [u8], text: &[u8], key: &[u8], pax: &mut Vec<u8>) {
    if text.len() > field.len() || !text.is_ascii() {
        pax::push_record(pax, key, text);
    }
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// Writes a number; what is too large goes to a record, and 0 here.
fn put_number(field: &mut [u8], value: u64, key: &[u8], pax: &mut Vec<u8>) {
    if fits(value, field.len()) {
        put_octal(field, value);
    } else {
        pax::push_record(pax, key, value.to_string().as_bytes());
        put_octal(field, 0);
    }
}

/// Writes a device number, which PAX has no record for: in base 256 when it is too large.
fn put_device(field: &mut [u8], value: u32) {
    if fits(u64::from(value), field.len()) {
        put_octal(field, u64::from(value));
    } else {
        field.fill(0);
        field[0] = 0x80;
        let start = field.len() - 4;
        field[start..].copy_from_slice(&value.to_be_bytes());
    }
}

/// Returns whether octal digits and a NUL fit into so many bytes.
fn fits(value: u64, bytes: usize) -> bool {
    value >> (3 * (bytes - 1)) == 0
}

fn put_octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    for (position, byte) in field[..digits].iter_mut().enumerate() {
        *byte = b'0' + ((value >> (3 * (digits - 1 - position))) & 7) as u8;
    }
}

/// Writes type, magic and, last, the checksum.
fn seal(header: &mut [u8; BLOCK], kind: u8) {
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    put_octal(&mut header[148..155], sum);
}
