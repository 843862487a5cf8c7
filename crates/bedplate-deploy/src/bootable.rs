//! What a machine needs of an image to boot it.
//!
//! ```text
//! /usr/lib/modules/<release>/{vmlinuz, initramfs.img}      both, in exactly one release
//! /usr/lib/systemd/boot/efi/systemd-bootx64.efi            for install
//! /usr/lib/grub/i386-pc/                                   for install to a machine with a BIOS
//! /usr/lib/{bootc,bedplate}/kargs.d/*.toml                 arguments
//! os-release                                               title and version
//! ```
//!
//! Invariant: every byte was checked against the image's digests before it is given out: what lies on
//! a boot partition is checked by nobody later.

use bedplate_boot::kargs::{self, ImageKargsError};
use bedplate_model::human;
use bedplate_model::os_release::{self, OsRelease};
use bedplate_model::{Content, FileContent, NodeId, Sha256, Tree, TreePath, layout};
use bedplate_store::{ReadStoreError, Store};
use sha2::Digest as _;

use crate::config::{self, ImageConfig};

/// The most bytes of a kernel, initramfs or loader: more would fill a boot partition.
const BOOT_FILE_MAX: u64 = 512 << 20;

/// The most bytes of one of GRUB's files.
const GRUB_FILE_MAX: u64 = 1 << 20;

/// The architecture of kernel arguments that are for one alone, as Rust names it.
const ARCHITECTURE: &str = std::env::consts::ARCH;

/// One file for the boot partition.
#[derive(Clone, PartialEq, Eq)]
pub struct BootFile {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their SHA-256: what the file is named by.
    pub sha256: Sha256,
}

impl std::fmt::Debug for BootFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = human::bytes(self.bytes.len() as u64);
        write!(f, "{} ({size})", self.sha256)
    }
}

/// What a machine needs of an image to boot it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootable {
    /// The kernel's release.
    pub release: String,
    /// The kernel.
    pub vmlinuz: BootFile,
    /// The initramfs.
    pub initramfs: BootFile,
    /// systemd-boot, where the image has it.
    pub loader: Option<BootFile>,
    /// What a boot menu calls the system.
    pub title: String,
    /// The version that the image says of itself.
    pub version: Option<String>,
    /// The kernel arguments that the image brings.
    pub kargs: Vec<String>,
    /// What the image sets about its machines.
    pub config: ImageConfig,
}

impl Bootable {
    /// Reads what boots an image.
    pub fn read(store: &Store, tree: &Tree) -> Result<Self, BootableError> {
        let release = release(tree)?;
        let home = format!("{}/{release}", layout::MODULES);
        let needed = |name: &str| {
            let path = format!("{home}/{name}");
            match content(tree, &path) {
                Some(content) => boot_file(store, &path, content),
                None => Err(BootableError::Missing { path }),
            }
        };
        let says = os_release(store, tree);
        Ok(Self {
            vmlinuz: needed(layout::VMLINUZ)?,
            initramfs: needed(layout::INITRAMFS)?,
            loader: loader(store, tree)?,
            title: says.title().to_owned(),
            version: says.version().map(str::to_owned),
            kargs: image_kargs(store, tree)?,
            config: image_config(store, tree),
            release,
        })
    }
}

/// Reads the loader that an image brings.
pub(crate) fn loader(store: &Store, tree: &Tree) -> Result<Option<BootFile>, BootableError> {
    content(tree, layout::SYSTEMD_BOOT)
        .map(|content| boot_file(store, layout::SYSTEMD_BOOT, content))
        .transpose()
}

/// Reads one of the files that GRUB's code for a BIOS is made of.
pub(crate) fn grub_file(
    store: &Store,
    tree: &Tree,
    name: &str,
) -> std::io::Result<Option<Vec<u8>>> {
    let path = format!("{}/{name}", layout::GRUB);
    let read = |content| {
        let bytes = store.read_small(content, GRUB_FILE_MAX);
        bytes.map_err(std::io::Error::other)
    };
    content(tree, &path).map(read).transpose()
}

/// Reads the kernel arguments that an image brings.
pub(crate) fn image_kargs(store: &Store, tree: &Tree) -> Result<Vec<String>, ImageKargsError> {
    kargs::of_image(tree, ARCHITECTURE, &mut |_, content| {
        store
            .read_small(content, kargs::FILE_MAX)
            .map_err(std::io::Error::other)
    })
}

/// Reads what an image sets about its machines; what cannot be used has its defaults, as on a machine that runs it.
fn image_config(store: &Store, tree: &Tree) -> ImageConfig {
    content(tree, config::IMAGE_FILE)
        .and_then(|content| store.read_small(content, config::FILE_MAX).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .map(|text| ImageConfig::parse(&text))
        .unwrap_or_default()
}

/// Reads what an image says about itself; one that says nothing is a Linux without a version.
fn os_release(store: &Store, tree: &Tree) -> OsRelease {
    os_release::PATHS
        .iter()
        .filter_map(|path| content(tree, path))
        .find_map(|content| store.read_small(content, os_release::SIZE_MAX).ok())
        .map(|bytes| OsRelease::parse(&bytes))
        .unwrap_or_default()
}

/// Finds the one release that has a kernel.
fn release(tree: &Tree) -> Result<String, BootableError> {
    let names: Vec<String> = lookup(tree, layout::MODULES)
        .and_then(|id| tree.entries(id))
        .into_iter()
        .flatten()
        .filter(|(_, id)| tree.child(**id, layout::VMLINUZ.as_bytes()).is_some())
        .map(|(name, _)| name.to_string())
        .collect();
    match <[String; 1]>::try_from(names) {
        Ok([name]) => Ok(name),
        Err(names) if names.is_empty() => Err(BootableError::NoKernel),
        Err(names) => Err(BootableError::Kernels { releases: names }),
    }
}

fn lookup(tree: &Tree, path: &str) -> Option<NodeId> {
    tree.lookup(&TreePath::try_from(path).ok()?)
}

fn content<'a>(tree: &'a Tree, path: &str) -> Option<&'a FileContent> {
    match &tree.node(lookup(tree, path)?).content {
        Content::File(content) => Some(content),
        _ => None,
    }
}

fn boot_file(store: &Store, path: &str, content: &FileContent) -> Result<BootFile, BootableError> {
    let bytes = store
        .read_small(content, BOOT_FILE_MAX)
        .map_err(|source| BootableError::Read {
            path: path.to_owned(),
            source,
        })?;
    let sha256 = Sha256(sha2::Sha256::digest(&bytes).into());
    Ok(BootFile { bytes, sha256 })
}

/// Why an image cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootableError {
    /// No kernel.
    #[error("the image has no kernel below /usr/lib/modules")]
    NoKernel,
    /// More than one kernel.
    #[error("the image has more than one kernel: {}", releases.join(", "))]
    Kernels {
        /// Their releases.
        releases: Vec<String>,
    },
    /// A file is missing.
    #[error("the image has no /{path}; `bedplate build` makes images that have it")]
    Missing {
        /// The file.
        path: String,
    },
    /// A file could not be read.
    #[error("cannot read the image's /{path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: ReadStoreError,
    },
    /// The kernel arguments are wrong.
    #[error(transparent)]
    Kargs(#[from] ImageKargsError),
}
