//! Finding an image by what a person writes for it.
//!
//! ```text
//! root digest        refs, then pins, then the image itself: nothing needs to name it
//! name               refs, and what they remember
//! digits             refs and pins, when no ref has them for its name; they must mean one image
//! ```
//!
//! Invariant: digits that fit two images find none.

use std::collections::BTreeMap;

use bedplate_model::{ImageName, ImageSelector, RootDigest};

use crate::item::Item;
use crate::refs::{RefTarget, RefsError};
use crate::store::Store;

/// An image that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The name that was asked for, or one that points at the image; `None` where nothing but a pin
    /// holds it, or nothing at all.
    pub name: Option<ImageName>,
    /// The image; its `created` is 0 where it has no name.
    pub target: RefTarget,
}

/// Why an image could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The refs or pins could not be read.
    #[error(transparent)]
    Refs(#[from] RefsError),
    /// The digits do not say enough.
    #[error("`{digits}` begins the digests of {} images: {}", .roots.len(), list(.roots))]
    Ambiguous {
        /// What was given.
        digits: String,
        /// The images that it fits.
        roots: Vec<RootDigest>,
    },
}

impl Store {
    /// Finds the image that is meant, or returns `None` where the store does not have it.
    pub fn find(&self, wanted: &ImageSelector) -> Result<Option<Found>, FindError> {
        match wanted {
            ImageSelector::Root(root) => self.find_root(*root),
            ImageSelector::Prefix(digits) => self.find_digits(digits),
            ImageSelector::Name(revision) => {
                let target = self.resolve_revision(revision)?;
                match (target, wanted.digest_prefix()) {
                    (Some(target), _) => Ok(Some(Found {
                        // An earlier image has the name no more.
                        name: (revision.back().unwrap_or(0) == 0).then(|| revision.name().clone()),
                        target,
                    })),
                    (None, Some(digits)) => self.find_digits(digits),
                    (None, None) => Ok(None),
                }
            }
        }
    }

    fn find_root(&self, root: RootDigest) -> Result<Option<Found>, FindError> {
        let held = self
            .held()?
            .into_iter()
            .find(|held| held.target.root == root);
        if held.is_some() {
            return Ok(held);
        }
        let there = self.has(&Item::Image(root.image));
        Ok(there.then(|| unnamed(root)))
    }

    fn find_digits(&self, digits: &str) -> Result<Option<Found>, FindError> {
        let mut fitting: BTreeMap<RootDigest, Found> = BTreeMap::new();
        for held in self.held()? {
            let target = &held.target;
            let manifest = target.manifest.map(|digest| digest.to_hex());
            if target.root.image.to_hex().starts_with(digits)
                || manifest.is_some_and(|hex| hex.starts_with(digits))
            {
                fitting.entry(target.root).or_insert(held);
            }
        }
        if fitting.len() > 1 {
            return Err(FindError::Ambiguous {
                digits: digits.to_owned(),
                roots: fitting.into_keys().collect(),
            });
        }
        Ok(fitting.into_values().next())
    }

    /// Returns what refs and pins hold; of one image, what says most about it comes first.
    fn held(&self) -> Result<Vec<Found>, RefsError> {
        let refs = self.refs()?.into_iter().map(|(name, target)| Found {
            name: Some(name),
            target,
        });
        let pins = self.pins()?.into_iter().map(|pin| Found {
            name: None,
            target: RefTarget {
                manifest: pin.manifest,
                config: pin.config,
                ..unnamed(pin.root).target
            },
        });
        let mut held: Vec<_> = refs.chain(pins).collect();
        held.sort_by_key(|found| (found.name.is_none(), found.target.manifest.is_none()));
        Ok(held)
    }
}

fn unnamed(root: RootDigest) -> Found {
    Found {
        name: None,
        target: RefTarget::new(root, 0),
    }
}

fn list(roots: &[RootDigest]) -> String {
    /// More than this many say nothing more.
    const SHOWN: usize = 4;
    let mut texts: Vec<_> = roots.iter().take(SHOWN).map(ToString::to_string).collect();
    if roots.len() > SHOWN {
        texts.push("…".to_owned());
    }
    texts.join(", ")
}
