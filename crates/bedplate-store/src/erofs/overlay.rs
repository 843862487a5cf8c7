//! What overlayfs must see: the attributes that composefs adds to a tree's own.
//!
//! ```text
//! an object's file   trusted.overlay.metacopy = its digest, trusted.overlay.redirect = its path
//! a whiteout         becomes an empty file with trusted.overlay.overlay.whiteout, user.overlay.whiteout
//! its directory      …overlay.whiteouts, and from version 1 on …overlay.opaque
//! the root           trusted.overlay.opaque = y, and whiteouts 00 to ff that hide the object directories
//! ```
//!
//! An attribute `trusted.overlay.X` of the tree itself is kept as `trusted.overlay.overlay.X`, which
//! overlayfs shows as it was.

use std::borrow::Cow;

use bedplate_model::{Algorithm, Content, Node, ObjectId, Rdev, Xattrs};

const OVERLAY: &[u8] = b"trusted.overlay.";
const ESCAPED: &[u8] = b"trusted.overlay.overlay.";
const METACOPY: &[u8] = b"trusted.overlay.metacopy";
const REDIRECT: &[u8] = b"trusted.overlay.redirect";
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const WHITEOUT: [&[u8]; 2] = [
    b"trusted.overlay.overlay.whiteout",
    b"user.overlay.whiteout",
];
const WHITEOUTS: [&[u8]; 2] = [
    b"trusted.overlay.overlay.whiteouts",
    b"user.overlay.whiteouts",
];
const MARKED_OPAQUE: [&[u8]; 2] = [b"trusted.overlay.overlay.opaque", b"user.overlay.opaque"];

/// Bytes of a digest's attribute before the digest.
const METACOPY_HEADER: usize = 4;

/// The device of a whiteout.
pub(super) const WHITEOUT_DEVICE: Rdev = Rdev { major: 0, minor: 0 };

/// Returns a tree's own attributes under the names that they have in an image.
pub(super) fn escape(xattrs: &Xattrs) -> Xattrs {
    xattrs
        .iter()
        .map(|(name, value)| match name.strip_prefix(OVERLAY) {
            Some(rest) => ([ESCAPED, rest].concat().into(), value.clone()),
            None => (name.clone(), value.clone()),
        })
        .collect()
}

/// One attribute of an image. What every object's file has is made from the object's name when it is
/// asked for: kept as bytes, it would be most of the memory of a large image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Xattr<'a> {
    /// A tree's own, or a mark.
    Own(&'a [u8], &'a [u8]),
    /// The digest of a file's content.
    Metacopy(&'a ObjectId),
    /// The path of a file's content.
    Redirect(&'a ObjectId),
}

impl<'a> Xattr<'a> {
    /// Returns what makes overlayfs take a file's content from an object.
    pub(super) fn of_object(id: &'a ObjectId) -> [Self; 2] {
        [Self::Metacopy(id), Self::Redirect(id)]
    }

    pub(super) fn name(&self) -> &'a [u8] {
        match self {
            Self::Own(name, _) => name,
            Self::Metacopy(_) => METACOPY,
            Self::Redirect(_) => REDIRECT,
        }
    }

    pub(super) fn value_len(&self) -> usize {
        match self {
            Self::Own(_, value) => value.len(),
            Self::Metacopy(id) => METACOPY_HEADER + id.as_bytes().len(),
            // A slash, two digits, a slash, the other digits.
            Self::Redirect(id) => 2 + 2 * id.as_bytes().len(),
        }
    }

    pub(super) fn value(&self) -> Cow<'a, [u8]> {
        match self {
            Self::Own(_, value) => Cow::Borrowed(value),
            Self::Metacopy(id) => {
                let digest = id.as_bytes();
                let length = METACOPY_HEADER + digest.len();
                let mut value = Vec::with_capacity(length);
                value.extend([0, length as u8, 0, id.algorithm().kernel_number()]);
                value.extend_from_slice(digest);
                Cow::Owned(value)
            }
            Self::Redirect(id) => Cow::Owned(format!("/{}", id.object_path()).into_bytes()),
        }
    }
}

/// Adds what makes an empty file a whiteout inside an overlay.
pub(super) fn mark_whiteout(xattrs: &mut Xattrs) {
    for name in WHITEOUT {
        set(xattrs, name, b"");
    }
}

/// Adds what makes overlayfs look for such whiteouts in a directory.
pub(super) fn mark_whiteouts(xattrs: &mut Xattrs, opaque: bool) {
    for name in WHITEOUTS {
        set(xattrs, name, b"");
    }
    if opaque {
        for name in MARKED_OPAQUE {
            set(xattrs, name, b"x");
        }
    }
}

/// Adds what hides everything below an image's root in lower layers.
pub(super) fn mark_root(xattrs: &mut Xattrs) {
    set(xattrs, OPAQUE, b"y");
}

fn set(xattrs: &mut Xattrs, name: &[u8], value: &[u8]) {
    xattrs.insert(name.into(), value.into());
}

/// Returns whether a name of the root is one of those that hide the directories of objects.
pub(super) fn is_stub_name(name: &[u8]) -> bool {
    name.len() == 2
        && name
            .iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns whether a node is a whiteout.
pub(super) fn is_whiteout(node: &Node) -> bool {
    matches!(node.content, Content::CharacterDevice(WHITEOUT_DEVICE))
}

/// Undoes [`escape`].
pub(super) fn unescape(xattrs: Xattrs) -> Xattrs {
    xattrs
        .into_iter()
        .map(|(name, value)| match name.strip_prefix(ESCAPED) {
            Some(rest) => ([OVERLAY, rest].concat().into(), value),
            None => (name, value),
        })
        .collect()
}

/// Undoes [`escape`] and [`mark_root`].
pub(super) fn unescape_root(mut xattrs: Xattrs) -> Xattrs {
    xattrs.remove(OPAQUE);
    unescape(xattrs)
}

/// Returns a name that nearly every file has, without memory of its own.
pub(super) fn usual_name(prefix: &[u8], suffix: &[u8]) -> Option<&'static [u8]> {
    let mut usual = [METACOPY, REDIRECT].into_iter();
    usual.find(|name| name.strip_prefix(prefix) == Some(suffix))
}

/// The attributes that an image has for a node, those that name an object apart: nearly every file has
/// these and no others.
#[derive(Debug, Default)]
pub(super) struct Attributes<'a> {
    own: Xattrs,
    metacopy: Option<&'a [u8]>,
    redirect: Option<&'a [u8]>,
}

impl<'a> Attributes<'a> {
    /// Adds one, and returns whether it was not there.
    pub(super) fn add(&mut self, name: Cow<'_, [u8]>, value: &'a [u8]) -> bool {
        match &*name {
            METACOPY => self.metacopy.replace(value).is_none(),
            REDIRECT => self.redirect.replace(value).is_none(),
            _ => self.own.insert(name.into(), value.into()).is_none(),
        }
    }

    /// Returns all of them.
    pub(super) fn all(self) -> Xattrs {
        let mut xattrs = self.own;
        for (name, value) in [(METACOPY, self.metacopy), (REDIRECT, self.redirect)] {
            if let Some(value) = value {
                set(&mut xattrs, name, value);
            }
        }
        xattrs
    }
}

/// Undoes [`escape`] and what [`Xattr::of_object`] gives, or returns `None` where no object is named.
pub(super) fn take_object(attributes: Attributes<'_>) -> Option<(ObjectId, Xattrs)> {
    let (metacopy, redirect) = (attributes.metacopy?, attributes.redirect?);
    let [0, length, 0, number, digest @ ..] = metacopy else {
        return None;
    };
    let algorithm = [Algorithm::Sha256, Algorithm::Sha512]
        .into_iter()
        .find(|algorithm| algorithm.kernel_number() == *number)?;
    let id = ObjectId::from_bytes(algorithm, digest)?;
    let fits = usize::from(*length) == metacopy.len()
        && redirect
            .strip_prefix(b"/")
            .is_some_and(|path| id.is_object_path(path));
    fits.then(|| (id, unescape(attributes.own)))
}

/// Removes what [`mark_whiteout`] added, after [`unescape`], and returns whether it was there.
pub(super) fn take_whiteout(xattrs: &mut Xattrs) -> bool {
    take(
        xattrs,
        &[b"trusted.overlay.whiteout", b"user.overlay.whiteout"],
    )
}

/// Removes what [`mark_whiteouts`] added, after [`unescape`].
pub(super) fn unmark_whiteouts(xattrs: &mut Xattrs) {
    take(
        xattrs,
        &[b"trusted.overlay.whiteouts", b"user.overlay.whiteouts"],
    );
    take(xattrs, &[b"trusted.overlay.opaque", b"user.overlay.opaque"]);
}

fn take(xattrs: &mut Xattrs, names: &[&[u8]]) -> bool {
    let all = names.iter().all(|name| xattrs.contains_key(*name));
    if all {
        for name in names {
            xattrs.remove(*name);
        }
    }
    all
}
