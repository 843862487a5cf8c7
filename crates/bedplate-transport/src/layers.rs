//! The layers of an image: each different one once, several at once.
//!
//! ```text
//! manifest's layers ─┐
//!                    ├─→ Layers ─→ each (threads) ─→ one result for each different layer
//! config's diff_ids ─┘       └─ order: which of them stands where
//! ```
//!
//! Invariant: what a manifest repeats is neither transferred nor counted twice, and its length bounds what
//! it can ask for.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use bedplate_model::Sha256;
use bedplate_model::human::Size;
use bedplate_model::oci::Descriptor;

/// The most layers that an image may have. Docker's storage stops at 127.
pub(crate) const LAYERS_MAX: usize = 1024;

/// The layers of one image.
pub(crate) struct Layers<'a> {
    /// The different ones, in the order of their first places.
    pub(crate) different: Vec<(&'a Descriptor, &'a Sha256)>,
    /// For each layer of the image, where it stands among the different ones.
    pub(crate) order: Vec<usize>,
}

impl<'a> Layers<'a> {
    /// Joins a manifest's layers with the digests of their tars.
    pub(crate) fn new(
        blobs: &'a [Descriptor],
        diff_ids: &'a [Sha256],
    ) -> Result<Self, LayersError> {
        if blobs.len() != diff_ids.len() {
            return Err(LayersError::Unequal {
                layers: blobs.len(),
                diff_ids: diff_ids.len(),
            });
        }
        if blobs.len() > LAYERS_MAX {
            return Err(LayersError::TooMany(blobs.len()));
        }
        let mut places = HashMap::new();
        let mut different = Vec::new();
        let order = blobs
            .iter()
            .zip(diff_ids)
            .map(|(blob, diff_id)| {
                // The whole claim counts: the same bytes under two digests of a tar are one lie.
                *places.entry((blob.digest, *diff_id)).or_insert_with(|| {
                    different.push((blob, diff_id));
                    different.len() - 1
                })
            })
            .collect();
        Ok(Self { different, order })
    }

    /// Returns how many bytes the different layers are said to have, in all.
    pub(crate) fn bytes(&self) -> u64 {
        let sizes = self.different.iter().map(|(blob, _)| blob.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// Works on each different layer, `jobs` at once; ends early when one fails.
    pub(crate) fn each<T: Send, E: Send>(
        &self,
        jobs: NonZeroUsize,
        work: impl Fn(&Descriptor, &Sha256) -> Result<T, E> + Sync,
    ) -> Result<Vec<T>, E> {
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let done: Mutex<Vec<(usize, Result<T, E>)>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..jobs.get().min(self.different.len()) {
                scope.spawn(|| {
                    while !failed.load(Ordering::Relaxed) {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some((blob, diff_id)) = self.different.get(at) else {
                            return;
                        };
                        let outcome = work(blob, diff_id);
                        failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
                        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                        done.push((at, outcome));
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_unstable_by_key(|(at, _)| *at);
        done.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

/// Why an image's layers are not even looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayersError {
    /// Manifest and config do not belong together.
    #[error("the manifest has {layers} layers and the config {diff_ids}")]
    Unequal {
        /// Layers in the manifest.
        layers: usize,
        /// Layers in the config.
        diff_ids: usize,
    },
    /// There are more than any honest image has.
    #[error("the image has {0} layers, and at most {LAYERS_MAX} are taken")]
    TooMany(usize),
    /// They are larger than what is fetched.
    #[error("the image's layers are said to have {}, and at most {} are fetched", Size(*.said), Size(*.limit))]
    TooLarge {
        /// How many bytes the manifest announces, at least.
        said: u64,
        /// How many are allowed.
        limit: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(digest: u8, size: u64) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: Sha256([digest; 32]),
            size,
            annotations: [].into(),
            platform: None,
        }
    }

    #[test]
    fn a_layer_that_appears_again_is_worked_on_once_and_keeps_its_places() {
        let blobs = [blob(1, 10), blob(2, 20), blob(1, 10), blob(1, 10)];
        let diff_ids = [7, 8, 7, 9].map(|byte| Sha256([byte; 32]));
        let layers = Layers::new(&blobs, &diff_ids).unwrap();
        assert_eq!(
            layers.order,
            [0, 1, 0, 2],
            "another diff_id is another claim"
        );
        assert_eq!(layers.bytes(), 40);
        let jobs = NonZeroUsize::new(2).unwrap();
        let worked: Result<Vec<_>, ()> =
            layers.each(jobs, |blob, diff_id| Ok((blob.digest.0[0], diff_id.0[0])));
        assert_eq!(worked.unwrap(), [(1, 7), (2, 8), (1, 9)]);
    }

    #[test]
    fn numbers_of_strangers_are_bounded_and_never_overflow() {
        let blobs = vec![blob(1, u64::MAX); LAYERS_MAX + 1];
        let diff_ids: Vec<_> = (0..=LAYERS_MAX).map(|n| Sha256([n as u8; 32])).collect();
        let new = |count: usize, more: usize| {
            let layers = Layers::new(&blobs[..count], &diff_ids[..more]);
            layers.map(|layers| layers.bytes())
        };
        assert_eq!(new(2, 2), Ok(u64::MAX));
        let unequal = LayersError::Unequal {
            layers: 2,
            diff_ids: 1,
        };
        assert_eq!(new(2, 1), Err(unequal));
        let over = LAYERS_MAX + 1;
        assert_eq!(new(over, over), Err(LayersError::TooMany(over)));
    }
}
