//! An OCI image layout as a source: a directory, on a disk that somebody carried here.
//!
//! ```text
//! oci-layout             {"imageLayoutVersion": "1.0.0"}
//! index.json             which manifests there are, and what they are called
//! blobs/sha256/<hex>     everything
//! ```
//!
//! By the OCI Image Layout Specification 1.1. A name is looked for as others write it: skopeo has the tag alone in
//! `org.opencontainers.image.ref.name`, podman and containerd the whole name.
//!
//! Invariant: a blob is read as a file of this directory and nowhere else, and counts only when its digest is right.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bedplate_model::format::Shown;
use bedplate_model::oci::{DOCUMENT_MAX, Descriptor, Index};
use bedplate_model::{ImageName, Sha256};
use bedplate_sys::files;
use serde::Deserialize;
use sha2::Digest as _;

use crate::registry::Fetched;

/// What a manifest in an index is called.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The whole name, where containerd writes the tag alone to the other.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// How many names are told to somebody whose own is not among them.
const TOLD_MAX: usize = 8;

/// A layout.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    path: PathBuf,
}

/// Why a layout did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory is no layout, or one of a version that is not known.
    #[error("{} is no OCI image layout: {problem}", path.display())]
    NoLayout {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// It has no such image.
    #[error("{} has no image {name} (it has {there})", path.display())]
    NotFound {
        /// The directory.
        path: PathBuf,
        /// What was looked for.
        name: ImageName,
        /// What there is.
        there: String,
    },
    /// What is there is something else.
    #[error("{} has the digest {got}", path.display())]
    WrongDigest {
        /// The file.
        path: PathBuf,
        /// The digest it has.
        got: Sha256,
    },
    /// What is there has another length.
    #[error("{} should have {wanted} bytes and has {got}", path.display())]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// The length it should have, in bytes.
        wanted: u64,
        /// The length it has.
        got: u64,
    },
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

impl Layout {
    /// Opens a layout.
    pub(crate) fn open(path: &Path) -> Result<Self, LayoutError> {
        let layout = Self {
            path: path.to_owned(),
        };
        let wrong = |problem: String| LayoutError::NoLayout {
            path: path.to_owned(),
            problem,
        };
        let header = match Self::document(&path.join("oci-layout")) {
            Err(LayoutError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(wrong("it has no file `oci-layout`".to_owned()));
            }
            other => other?,
        };
        let header: Header = serde_json::from_slice(&header)
            .map_err(|error| wrong(format!("its `oci-layout` cannot be read: {error}")))?;
        if header.version.split('.').next() != Some("1") {
            let version = Shown(header.version);
            return Err(wrong(format!("its version is {version}")));
        }
        Ok(layout)
    }

    /// Reads the manifest or index that a name stands for.
    pub(crate) fn manifest(&self, image: &ImageName) -> Result<Fetched, LayoutError> {
        if let Some(digest) = image.digest() {
            return self.manifest_by_digest(digest);
        }
        let path = self.path.join("index.json");
        let index: Index = serde_json::from_slice(&Self::document(&path)?).map_err(|error| {
            LayoutError::NoLayout {
                path: self.path.clone(),
                problem: format!("its `index.json` cannot be read: {error}"),
            }
        })?;
        match choose(&index.manifests, image) {
            Some(descriptor) => self.manifest_by_digest(descriptor.digest),
            None => Err(LayoutError::NotFound {
                path: self.path.clone(),
                name: image.clone(),
                there: told(&index.manifests),
            }),
        }
    }

    /// Reads a manifest or index by its digest.
    pub(crate) fn manifest_by_digest(&self, digest: Sha256) -> Result<Fetched, LayoutError> {
        let path = self.blob_path(&digest);
        let bytes = Self::document(&path)?;
        let got = Sha256(sha2::Sha256::digest(&bytes).into());
        if got != digest {
            return Err(LayoutError::WrongDigest { path, got });
        }
        Ok(Fetched { bytes, digest })
    }

    /// Reads a blob piece by piece, to the end; `take` says whether somebody wants more. Says at last whether the
    /// whole blob was taken.
    pub(crate) fn blob(
        &self,
        digest: &Sha256,
        size: u64,
        take: &mut dyn FnMut(Vec<u8>) -> bool,
    ) -> Result<bool, LayoutError> {
        const PIECE: usize = 256 << 10;
        let path = self.blob_path(digest);
        let failed = |source| LayoutError::Read {
            path: path.clone(),
            source,
        };
        let mut file = open(&path).map_err(failed)?;
        let mut hasher = sha2::Sha256::new();
        let mut length = 0;
        loop {
            let mut piece = vec![0; PIECE];
            let filled = file.read(&mut piece).map_err(failed)?;
            piece.truncate(filled);
            length += filled as u64;
            if length > size || filled == 0 && length < size {
                return Err(LayoutError::WrongLength {
                    path,
                    wanted: size,
                    got: length,
                });
            }
            if filled == 0 {
                break;
            }
            hasher.update(&piece);
            if !take(piece) {
                return Ok(false);
            }
        }
        let got = Sha256(hasher.finalize().into());
        if got != *digest {
            return Err(LayoutError::WrongDigest { path, got });
        }
        Ok(true)
    }

    fn blob_path(&self, digest: &Sha256) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.to_hex())
    }

    /// Reads a document, whose length has a limit.
    fn document(path: &Path) -> Result<Vec<u8>, LayoutError> {
        let failed = |source| LayoutError::Read {
            path: path.to_owned(),
            source,
        };
        let mut bytes = Vec::new();
        let file = open(path).map_err(failed)?;
        file.take(DOCUMENT_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > DOCUMENT_MAX {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        Ok(bytes)
    }
}

/// Opens a regular file: a pipe would make the reader wait, and a link would lead elsewhere.
fn open(path: &Path) -> io::Result<File> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let file = files::open_file(files::open_root(parent)?, name)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok(file)
}

/// Finds the manifest that a name stands for: by the whole name, by the tag, or because there is but one.
fn choose<'m>(manifests: &'m [Descriptor], image: &ImageName) -> Option<&'m Descriptor> {
    let whole = image.to_string();
    let tag = image.manifest_reference();
    let called = |wanted: &str| {
        manifests.iter().find(|one| {
            [CONTAINERD_NAME, REF_NAME]
                .iter()
                .any(|key| one.annotations.get(*key).is_some_and(|name| name == wanted))
        })
    };
    let only = match manifests {
        [one] if !one.annotations.contains_key(REF_NAME) => Some(one),
        _ => None,
    };
    called(&whole).or_else(|| called(&tag)).or(only)
}

/// Says what there is.
fn told(manifests: &[Descriptor]) -> String {
    let name = |one: &Descriptor| match one.annotations.get(REF_NAME) {
        Some(name) => Shown(name.clone()).to_string(),
        None => one.digest.to_string(),
    };
    let names: Vec<String> = manifests.iter().take(TOLD_MAX).map(name).collect();
    match (names.is_empty(), manifests.len() > TOLD_MAX) {
        (true, _) => "nothing".to_owned(),
        (false, true) => format!("{}, and more", names.join(", ")),
        (false, false) => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn descriptor(byte: u8, name: Option<&str>) -> Descriptor {
        let annotations = name.map(|name| (REF_NAME.to_owned(), name.to_owned()));
        Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: Sha256([byte; 32]),
            size: 1,
            annotations: annotations.into_iter().collect(),
            platform: None,
        }
    }

    #[test]
    fn a_name_is_found_as_skopeo_and_as_podman_write_it() {
        let image: ImageName = "registry.test/os:stable".parse().unwrap();
        let found = |manifests: &[Descriptor]| choose(manifests, &image).map(|one| one.digest.0[0]);
        let other = descriptor(1, Some("other"));
        assert_eq!(
            found(&[other.clone(), descriptor(2, Some("stable"))]),
            Some(2)
        );
        let both = [
            descriptor(2, Some("stable")),
            descriptor(3, Some("registry.test/os:stable")),
        ];
        assert_eq!(found(&both), Some(3));
        assert_eq!(found(&[descriptor(4, None)]), Some(4), "there is but one");
        assert_eq!(
            found(std::slice::from_ref(&other)),
            None,
            "it is called something else"
        );
        assert_eq!(found(&[descriptor(4, None), descriptor(5, None)]), None);
        assert_eq!(told(&[other]), "other");
        assert_eq!(told(&[]), "nothing");
    }

    #[test]
    fn what_is_no_layout_or_has_been_altered_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert!(matches!(
            Layout::open(path),
            Err(LayoutError::NoLayout { .. })
        ));
        for (text, fine) in [
            ("{}", false),
            ("{\"imageLayoutVersion\":\"2.0.0\"}", false),
            ("{\"imageLayoutVersion\":\"1.0.0\"}", true),
        ] {
            fs::write(path.join("oci-layout"), text).unwrap();
            assert_eq!(Layout::open(path).is_ok(), fine, "{text}");
        }
        let layout = Layout::open(path).unwrap();
        let digest = Sha256(sha2::Sha256::digest(b"blob").into());
        let blobs = path.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let at = blobs.join(digest.to_hex());
        let read = |size| layout.blob(&digest, size, &mut |_| true);
        assert!(matches!(read(4), Err(LayoutError::Read { .. })));
        fs::write(&at, b"blob").unwrap();
        assert!(read(4).unwrap());
        assert!(!layout.blob(&digest, 4, &mut |_| false).unwrap());
        assert!(matches!(
            read(3),
            Err(LayoutError::WrongLength { got: 4, .. })
        ));
        assert!(matches!(
            read(5),
            Err(LayoutError::WrongLength { got: 4, .. })
        ));
        fs::write(&at, b"blab").unwrap();
        assert!(matches!(read(4), Err(LayoutError::WrongDigest { .. })));
        assert!(matches!(
            layout.manifest_by_digest(digest),
            Err(LayoutError::WrongDigest { .. })
        ));
        // A pipe would make the reader wait, and a link would lead elsewhere.
        fs::remove_file(&at).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &at).unwrap();
        assert!(matches!(read(4), Err(LayoutError::Read { .. })));
        fs::remove_file(&at).unwrap();
        fs::create_dir(&at).unwrap();
        assert!(matches!(read(4), Err(LayoutError::Read { .. })));
    }
}
