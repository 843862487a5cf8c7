//! The seam between a layer and where the bodies of its files go.

use std::io::Read;

use bedplate_model::FileContent;

use super::sparse::SparseMap;
use crate::transaction::{PutError, Transaction};

/// Takes the bodies of files and says how they are named from now on. Threads share it.
pub trait Contents: Sync {
    /// Stores exactly `size` bytes of a stream.
    fn put(&self, content: &mut dyn Read, size: u64) -> Result<FileContent, PutError>;

    /// Stores a file with holes, of which `data` gives the segments that the map names, one behind the other.
    fn put_sparse(&self, data: &mut dyn Read, map: &SparseMap) -> Result<FileContent, PutError> {
        self.put(&mut map.expand(data), map.size())
    }

    /// Stores some bytes.
    fn put_bytes(&self, bytes: &[u8]) -> Result<FileContent, PutError>;
}

impl Contents for Transaction<'_> {
    fn put(&self, content: &mut dyn Read, size: u64) -> Result<FileContent, PutError> {
        self.put_object(content, size)
    }

    fn put_sparse(&self, data: &mut dyn Read, map: &SparseMap) -> Result<FileContent, PutError> {
        Transaction::put_sparse(self, data, map)
    }

    fn put_bytes(&self, bytes: &[u8]) -> Result<FileContent, PutError> {
        Transaction::put_bytes(self, bytes)
    }
}
