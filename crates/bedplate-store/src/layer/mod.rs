//! Layers: tar streams as they come from strangers, kept to the byte, and turned into trees.
//!
//! ```text
//! tar ─ read ─→ Layer { entries, skeleton }          bodies ─→ Contents (the store's transaction)
//!                 │  │        └ every byte that is no body, compressed
//!                 │  └─ encode ⇄ decode   layers/<diff_id> in the store (docs/format/layer.md)
//!                 ├─ rewrite_tar ─→ the same tar, byte for byte
//! [Layer…] ───────┴─ flatten(rules) ─→ Tree ─ write_tar ─→ a tar that reads back as this tree
//! a tar that is no layer ─ import ─────┘
//! ```
//!
//! Invariants: one parser reads the tar, the stored table and the table that is written out again, so
//! the entries of a layer never differ from its bytes; bodies are never held whole above 1 MiB; what
//! memory is used is bounded by limits of ours, never by a number that stands in the stream.

mod acl;
mod attributes;
mod contents;
mod entry;
mod error;
mod flatten;
mod parse;
mod pax;
mod pipeline;
mod read;
mod sparse;
mod table;
mod write;

pub use contents::Contents;
pub use entry::{Entry, EntryKind};
pub use error::{DecodeLayerError, FlattenError, LayerError, RewriteError, WriteTarError};
pub use flatten::flatten;
pub use read::read;
pub use sparse::{Expanded, SparseMap};
pub use table::rewrite_tar;
pub use write::{TarKind, write_tar};

use std::io::Read;

use bedplate_model::{FileContent, ObjectId, Tree};

use parse::Origin;

/// The most bytes of headers, padding and trailer that a layer may have, before compression.
pub const MAX_SKELETON: u64 = 1 << 30;
/// The most entries that a layer may have, and nodes that a flattened tree may have.
pub const MAX_ENTRIES: usize = 1 << 22;

/// A layer: its entries in the order of the tar, and what is needed to write that tar again.
#[derive(Clone, Debug)]
pub struct Layer {
    entries: Vec<Entry>,
    /// The tar without the bodies of its files, zstd-compressed.
    skeleton: Vec<u8>,
    /// Whether the tar leaves out holes of files.
    sparse: bool,
}

impl Layer {
    /// Returns the entries, in the order of the tar.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the objects that hold this layer's contents, with their lengths; one may be met several times.
    pub fn objects(&self) -> impl Iterator<Item = (ObjectId, u64)> {
        self.contents().filter_map(|content| match content {
            FileContent::Object { id, size } => Some((*id, *size)),
            FileContent::Inline(_) => None,
        })
    }

    /// Returns the contents of the regular files, in the order of the tar.
    pub fn contents(&self) -> impl Iterator<Item = &FileContent> {
        self.entries.iter().filter_map(|entry| match &entry.kind {
            EntryKind::File(content) => Some(content),
            _ => None,
        })
    }
}

/// Reads one plain tar as a whole tree: it is no layer, and has no whiteouts.
///
/// Nothing vouches for it, so what ends early is refused, and what no file system could hold; the mode of
/// what has an access list is the one that Linux derives from that.
pub fn import(tar: &mut dyn Read, contents: &dyn Contents) -> Result<Tree, ImportError> {
    let layer = read::read_from(Origin::Archive, tar, contents)?;
    Ok(flatten::unpack(&layer)?)
}

/// Why a plain tar did not become a tree.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The tar could not be read.
    #[error(transparent)]
    Read(#[from] LayerError),
    /// Its entries make no tree.
    #[error(transparent)]
    Flatten(#[from] FlattenError),
}
