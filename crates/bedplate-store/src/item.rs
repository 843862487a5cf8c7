//! What the store keeps under digests, and where.
//!
//! ```text
//!          in place            in a transaction's directory
//! object   objects/ab/cdef…    object-abcdef…
//! image    images/<hex>        image-<hex>
//! layer    layers/<hex>        layer-<hex>
//! blob     blobs/<hex>         blob-<hex>
//! ```
//!
//! Invariant: both names give back the item that they were made from.

use std::ffi::OsStr;
use std::fmt;

use bedplate_model::digest::unhex;
use bedplate_model::{ObjectId, Sha256};

/// One thing in the store that has a digest for its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    /// The content of a file.
    Object(ObjectId),
    /// An EROFS image.
    Image(ObjectId),
    /// The table of a layer, by the layer's `diff_id`.
    Layer(Sha256),
    /// A manifest or config.
    Blob(Sha256),
}

impl Item {
    /// Returns the path below the store's directory.
    pub fn path(&self) -> String {
        match self {
            Self::Object(id) => format!("objects/{}", id.object_path()),
            Self::Image(id) => format!("images/{id}"),
            Self::Layer(diff_id) => format!("layers/{}", diff_id.to_hex()),
            Self::Blob(digest) => format!("blobs/{}", digest.to_hex()),
        }
    }

    /// Returns the name in a transaction's directory.
    pub(crate) fn flat_name(&self) -> String {
        match self {
            Self::Object(id) => format!("object-{id}"),
            Self::Image(id) => format!("image-{id}"),
            Self::Layer(diff_id) => format!("layer-{}", diff_id.to_hex()),
            Self::Blob(digest) => format!("blob-{}", digest.to_hex()),
        }
    }

    /// Reads a name that [`Item::flat_name`] made.
    pub(crate) fn from_flat_name(name: &OsStr) -> Option<Self> {
        let (kind, hex) = name.to_str()?.split_once('-')?;
        match kind {
            "object" => hex.parse().ok().map(Self::Object),
            "image" => hex.parse().ok().map(Self::Image),
            "layer" => unhex(hex).map(Sha256).map(Self::Layer),
            "blob" => unhex(hex).map(Sha256).map(Self::Blob),
            _ => None,
        }
    }

    /// Returns the digest that a sealed file of this item has, where it can be sealed.
    pub(crate) fn sealed_as(&self) -> Option<ObjectId> {
        match self {
            Self::Object(id) | Self::Image(id) => Some(*id),
            Self::Layer(_) | Self::Blob(_) => None,
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(id) => write!(f, "object {id}"),
            Self::Image(id) => write!(f, "image {id}"),
            Self::Layer(diff_id) => write!(f, "layer {diff_id}"),
            Self::Blob(digest) => write!(f, "blob {digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_name_gives_back_its_item() {
        for item in [
            Item::Object(ObjectId::Sha256([1; 32])),
            Item::Object(ObjectId::Sha512([2; 64])),
            Item::Image(ObjectId::Sha256([3; 32])),
            Item::Layer(Sha256([4; 32])),
            Item::Blob(Sha256([5; 32])),
        ] {
            assert_eq!(Item::from_flat_name(item.flat_name().as_ref()), Some(item));
        }
        for name in ["part-1", "object-12", "image", "blob-", "other-00"] {
            assert_eq!(Item::from_flat_name(name.as_ref()), None, "{name}");
        }
    }
}
