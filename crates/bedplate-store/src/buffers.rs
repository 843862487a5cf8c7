//! Buffers that are used again: fresh memory costs a page fault for every 4 KiB.
//!
//! Invariant: each begins at a multiple of [`ALIGNMENT`], so that it can be written past the page cache.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use bedplate_sys::direct::ALIGNMENT;

/// The size of a buffer: most files of a system fit in one, and one fits in a core's cache.
pub(crate) const BUFFER: usize = 256 * 1024;

/// Buffers that nobody uses at the moment; as many as there ever were threads at once.
#[derive(Debug, Default)]
pub(crate) struct Buffers(Mutex<Vec<Box<[u8]>>>);

impl Buffers {
    /// Takes a buffer, which comes back when it is dropped. What it holds is of no meaning.
    pub(crate) fn take(&self) -> Buffer<'_> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer {
            bytes: free.unwrap_or_else(|| vec![0; BUFFER + ALIGNMENT].into_boxed_slice()),
            home: self,
        }
    }
}

/// A buffer on loan.
#[derive(Debug)]
pub(crate) struct Buffer<'a> {
    /// Longer than a buffer by what may have to be left out at its beginning.
    bytes: Box<[u8]>,
    home: &'a Buffers,
}

impl Buffer<'_> {
    fn start(&self) -> usize {
        self.bytes.as_ptr().align_offset(ALIGNMENT)
    }
}

impl Deref for Buffer<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.start();
        &self.bytes[start..start + BUFFER]
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.start();
        &mut self.bytes[start..start + BUFFER]
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.home
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(bytes);
    }
}
