//! Layers over their public seam: what other tools write, what strangers send, and our own way round.

mod archive;
mod flatten;
mod hostile;
mod round_trip;
pub(crate) mod sparse;
mod tools;

use std::collections::HashMap;
use std::io::{self, Cursor, Read};
use std::process::Command;
use std::sync::Mutex;

use bedplate_model::{
    Algorithm, Content, ErofsVersion, FileContent, Metadata, Name, Node, NodeId, ObjectId, Rdev,
    RuleSet, Sha256, Timestamp, Tree, TreePath,
};
use bedplate_store::layer::{
    self, Contents, DecodeLayerError, FlattenError, Layer, LayerError, TarKind, WriteTarError,
    flatten, rewrite_tar, write_tar,
};
use bedplate_store::{PutError, erofs};
use proptest::prelude::*;

/// Whose the tables are.
const DIFF_ID: Sha256 = Sha256([7; 32]);

/// A store of contents in memory.
#[derive(Default)]
struct Memory(Mutex<HashMap<ObjectId, Vec<u8>>>);

impl Contents for Memory {
    fn put(&self, content: &mut dyn Read, size: u64) -> Result<FileContent, PutError> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(PutError::Read)?;
        let found = bytes.len() as u64;
        if found != size {
            return Err(PutError::WrongSize {
                wanted: size,
                found,
            });
        }
        self.put_bytes(&bytes)
    }

    fn put_bytes(&self, bytes: &[u8]) -> Result<FileContent, PutError> {
        if bytes.len() <= 64 {
            return Ok(FileContent::Inline(bytes.into()));
        }
        let id = bedplate_store::verity::digest(Algorithm::Sha256, bytes);
        self.0.lock().unwrap().insert(id, bytes.to_vec());
        Ok(FileContent::Object {
            id,
            size: bytes.len() as u64,
        })
    }
}

impl Memory {
    fn open(&self, content: &FileContent) -> io::Result<Box<dyn Read>> {
        let bytes = match content {
            FileContent::Inline(bytes) => Some(bytes.to_vec()),
            FileContent::Object { id, .. } => self.0.lock().unwrap().get(id).cloned(),
        };
        let bytes = bytes.ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Cursor::new(bytes)))
    }

    fn read(&self, tar: &[u8]) -> Result<Layer, LayerError> {
        layer::read(&mut &*tar, self)
    }

    fn write(&self, tree: &Tree) -> Result<Vec<u8>, WriteTarError> {
        let mut tar = Vec::new();
        write_tar(
            tree,
            TarKind::Layer,
            &|content| self.open(content),
            &mut tar,
        )?;
        Ok(tar)
    }

    fn rewrite(&self, layer: &Layer) -> Vec<u8> {
        let mut tar = Vec::new();
        rewrite_tar(layer, &|content| self.open(content), &mut tar).unwrap();
        tar
    }
}

fn path(text: &str) -> TreePath {
    TreePath::try_from(text).unwrap()
}

fn name(bytes: &[u8]) -> Name {
    Name::new(bytes).unwrap()
}

/// Makes one member: a header, its body, its padding.
pub(crate) fn member(kind: u8, name: &[u8], target: &[u8], body: &[u8]) -> Vec<u8> {
    let mut tar = vec![0; 512];
    tar[..name.len()].copy_from_slice(name);
    tar[100..107].copy_from_slice(b"0000755");
    tar[124..135].copy_from_slice(format!("{:011o}", body.len()).as_bytes());
    tar[136..147].copy_from_slice(b"00000000007");
    tar[156] = kind;
    tar[157..157 + target.len()].copy_from_slice(target);
    tar[257..265].copy_from_slice(b"ustar\x0000");
    sum(&mut tar);
    tar.extend_from_slice(body);
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar
}

pub(crate) fn sum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header[..512].iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

pub(crate) fn tar(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

fn dir(name: &str) -> Vec<u8> {
    member(b'5', name.as_bytes(), b"", b"")
}

pub(crate) fn file(name: &str, body: &str) -> Vec<u8> {
    member(b'0', name.as_bytes(), b"", body.as_bytes())
}

fn symlink(name: &str, target: &str) -> Vec<u8> {
    member(b'2', name.as_bytes(), target.as_bytes(), b"")
}

fn link(name: &str, target: &str) -> Vec<u8> {
    member(b'1', name.as_bytes(), target.as_bytes(), b"")
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..20)
        .map(|digits| rest + digits)
        .find(|length| rest + length.to_string().len() == *length)
        .unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let records: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| record(key, value))
        .collect();
    member(b'x', b"pax", b"", &records)
}

fn flat(layers: &[Vec<Vec<u8>>]) -> Result<Tree, FlattenError> {
    flat_by(layers, RuleSet::Exact1)
}

fn flat_by(layers: &[Vec<Vec<u8>>], rules: RuleSet) -> Result<Tree, FlattenError> {
    let memory = Memory::default();
    let layers: Vec<Layer> = layers
        .iter()
        .map(|members| memory.read(&tar(members)).unwrap())
        .collect();
    flatten(&layers, rules)
}

/// Prints every path, and what is behind it, on one line.
fn listing(tree: &Tree) -> String {
    let lines: Vec<String> = tree
        .walk()
        .map(|(path, id)| match &tree.node(id).content {
            Content::Directory(_) => format!("{path}/"),
            Content::File(FileContent::Inline(bytes)) => {
                format!("{path}={}", String::from_utf8_lossy(bytes))
            }
            Content::Symlink(target) => format!("{path}->{}", String::from_utf8_lossy(target)),
            other => format!("{path} ({})", other.type_name()),
        })
        .collect();
    lines.join(" ")
}
