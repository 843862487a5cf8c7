//! From a root directory to a bootable image.
//!
//! ```text
//! directory ─ scan ─→ tree ─ lint ─→ kernel · livable · identity · program · initramfs ─→ tree
//!                                                                                           │
//!                           ref ◀─ commit ◀─ manifest, config ◀─ package ◀─ EROFS image ◀───┘
//! ```
//!
//! Two transactions, because a layer is made from what the store has: the first brings the contents,
//! the second holds them, and ends with the name.
//!
//! Invariant: the same directory and the same options give the same manifest digest. No name points
//! anywhere new unless everything succeeded; what the first transaction left is garbage, and collected.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bedplate_boot::initramfs::{self, InitramfsError, InitramfsInput, ModuleSource};
use bedplate_model::oci::RunConfig;
use bedplate_model::{
    Content, ImageName, RootDigest, RuleSet, Sha256, Timestamp, Tree, TreePath, layout, oci,
    os_release,
};
use bedplate_store::{
    BeginError, CommitError, PutError, RefTarget, ScanError, ScanObserver, Store, scan,
};
use bedplate_transport::{PackageError, PackageOptions, Recipe, package};

use crate::edit::{EditError, Editor, resolve};
use crate::files::{DirectoryFiles, Files};
use crate::kernel::{self, Kernel, KernelError};
use crate::lint::{self, Finding, Severity, Subject};
use crate::{identity, livable, program};

/// What to build, besides the directory.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The program, which goes into the image.
    pub program: Vec<u8>,
    /// The early-boot program, which goes into the image and its initramfs.
    pub init: Vec<u8>,
    /// Labels besides those that build sets, and instead of them where they have the same name. That
    /// of the version counts as the image's version; without it, os-release says one.
    pub labels: BTreeMap<String, String>,
    /// Kernel arguments of the image.
    pub kargs: Vec<String>,
    /// Whether warnings of lints refuse the directory, too.
    pub fatal_warnings: bool,
    /// The host name of every machine of the image; otherwise they have none to begin with.
    pub hostname: Option<String>,
    /// Lints that are switched off, by name.
    pub lints_off: Vec<String>,
    /// How the layer is compressed when it is pushed.
    pub compression: Recipe,
    /// When the name is set, in seconds since 1970. The image itself does not depend on it.
    pub now: i64,
}

/// What is told while an image is built. Called from many threads at once.
pub trait BuildObserver: Sync {
    /// Something happened.
    fn on(&self, event: BuildEvent<'_>);
}

/// One thing that happened while an image was built.
#[derive(Clone, Copy, Debug)]
pub enum BuildEvent<'a> {
    /// One more entry of the directory was taken; for a file, with its length.
    Taken {
        /// The length.
        bytes: u64,
    },
    /// A lint found something.
    Found(&'a Finding),
    /// The kernel was found.
    Kernel {
        /// Its release.
        release: &'a str,
    },
    /// The initramfs was made.
    Initramfs {
        /// Its length.
        bytes: u64,
    },
    /// The layer's digest is being computed.
    Packaging,
}

/// Nobody who wants to know.
impl BuildObserver for () {
    fn on(&self, _: BuildEvent<'_>) {}
}

struct Taken<'a>(&'a dyn BuildObserver);

impl ScanObserver for Taken<'_> {
    fn taken(&self, bytes: u64) {
        self.0.on(BuildEvent::Taken { bytes });
    }
}

/// An image that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// What the image is.
    pub root: RootDigest,
    /// Its manifest.
    pub manifest: Sha256,
    /// Its config.
    pub config: Sha256,
    /// Its kernel's release.
    pub kernel: String,
    /// The version it says of itself.
    pub version: Option<String>,
    /// What lints found; no errors are among them.
    pub findings: Vec<Finding>,
}

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The transaction could not begin.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// The directory could not be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// Lints found errors.
    #[error("{} is not fit to be an image: {}", path.display(), list(findings))]
    Unfit {
        /// The directory.
        path: PathBuf,
        /// Everything that lints found.
        findings: Vec<Finding>,
    },
    /// There is no single kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The tree could not be changed.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// A kernel argument that is none.
    #[error("`{0}` is not one kernel argument")]
    Karg(String),
    /// A host name that is none.
    #[error("`{0}` is not a host name")]
    Hostname(String),
    /// The initramfs could not be made.
    #[error("cannot make the initramfs of kernel {release}")]
    Initramfs {
        /// The kernel's release.
        release: String,
        /// Why.
        source: InitramfsError,
    },
    /// The image could not be stored.
    #[error("cannot store the image {name}")]
    Put {
        /// Its name.
        name: ImageName,
        /// Why.
        source: PutError,
    },
    /// The manifest could not be made.
    #[error("cannot package the image {name}")]
    Package {
        /// Its name.
        name: ImageName,
        /// Why.
        source: PackageError,
    },
    /// The commit failed; nothing happened.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

fn list(findings: &[Finding]) -> String {
    findings
        .iter()
        .map(|finding| finding.message.as_str())
        .collect::<Vec<_>>()
        .join("; ")
}

/// Builds a bootable image from a root directory and gives it a name.
pub fn build(
    store: &Store,
    rootfs: &Path,
    name: &ImageName,
    options: &BuildOptions,
    observer: &dyn BuildObserver,
) -> Result<Built, BuildError> {
    let put_error = |source| BuildError::Put {
        name: name.clone(),
        source,
    };
    let transaction = store.begin()?;

    // 1. What is there, and whether it is fit.
    let mut tree = scan(rootfs, &transaction, &Taken(observer))?;
    let files = DirectoryFiles::new(rootfs);
    let findings = lint::lint(&tree, Subject::RootDirectory, &files, &options.lints_off);
    for finding in &findings {
        observer.on(BuildEvent::Found(finding));
    }
    let fatal = |finding: &Finding| options.fatal_warnings || finding.severity == Severity::Error;
    if findings.iter().any(fatal) {
        return Err(BuildError::Unfit {
            path: rootfs.to_owned(),
            findings,
        });
    }
    if let Some(hostname) = &options.hostname
        && !is_hostname(hostname)
    {
        return Err(BuildError::Hostname(hostname.clone()));
    }
    if let Some(argument) = options
        .kargs
        .iter()
        .find(|argument| !bedplate_boot::kargs::is_argument(argument))
    {
        return Err(BuildError::Karg(argument.clone()));
    }
    let release = crate::files::os_release(&tree, &files).unwrap_or_default();
    let version = options
        .labels
        .get(oci::LABEL_VERSION)
        .cloned()
        .or_else(|| release.version().map(str::to_owned));

    // 2. What a machine needs.
    let time = time_of_additions(&tree);
    let scanned = tree.clone();
    let put = |bytes: &[u8]| {
        transaction
            .put_bytes(bytes)
            .map_err(|error| Box::new(error).into())
    };
    let mut editor = Editor::new(&mut tree, time, &put);
    let Kernel {
        release: kernel, ..
    } = kernel::adopt(&mut editor)?;
    observer.on(BuildEvent::Kernel { release: &kernel });
    livable::make_livable(&mut editor)?;
    identity::remove_identity(&mut editor, options.hostname.as_deref())?;
    program::add(&mut editor, &options.program, &options.init)?;
    program::add_kargs(&mut editor, &options.kargs)?;
    let initramfs = initramfs::build(&InitramfsInput {
        release: &kernel,
        modules: &Modules {
            tree: &scanned,
            files: &files,
            home: format!("{}/{kernel}", layout::MODULES),
        },
        init: &options.init,
    })
    .map_err(|source| BuildError::Initramfs {
        release: kernel.clone(),
        source,
    })?;
    observer.on(BuildEvent::Initramfs {
        bytes: initramfs.len() as u64,
    });
    program::add_initramfs(&mut editor, &kernel, &initramfs)?;

    // 3. The image.
    transaction
        .put_image(&tree, RuleSet::Exact1)
        .map_err(put_error)?;
    transaction.commit()?;

    // 4. What registries need of it.
    let transaction = store.begin()?;
    let root = transaction
        .put_image(&tree, RuleSet::Exact1)
        .map_err(put_error)?;
    observer.on(BuildEvent::Packaging);
    let package_options = PackageOptions {
        recipe: options.compression,
        config: RunConfig {
            labels: labels(options, version.as_deref()),
            ..RunConfig::default()
        },
        created_by: "bedplate build".to_owned(),
        ..PackageOptions::default()
    };
    let packaged = package(store, &transaction, &root, &package_options).map_err(|source| {
        BuildError::Package {
            name: name.clone(),
            source,
        }
    })?;

    // 5. The name, and the commit point.
    let target = RefTarget {
        manifest: Some(packaged.manifest),
        config: Some(packaged.config),
        ..RefTarget::new(root, options.now)
    };
    transaction.set_ref(name, target).map_err(put_error)?;
    transaction.commit()?;
    Ok(Built {
        root,
        manifest: packaged.manifest,
        config: packaged.config,
        kernel,
        version,
        findings,
    })
}

/// The most bytes of a kernel module or of a list of them.
const MODULE_MAX: u64 = 256 << 20;

/// The modules of a kernel, read from the directory that was scanned.
struct Modules<'a> {
    tree: &'a Tree,
    files: &'a dyn Files,
    home: String,
}

impl ModuleSource for Modules<'_> {
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let path = TreePath::try_from(format!("{}/{path}", self.home).as_str())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let Some(id) = self.tree.lookup(&path) else {
            return Ok(None);
        };
        match &self.tree.node(id).content {
            Content::File(content) => self.files.read(&path, content, MODULE_MAX).map(Some),
            _ => Ok(None),
        }
    }
}

/// Returns the time of what build adds: that of os-release, which changes with the distribution's
/// version and not with the hour of the build.
fn time_of_additions(tree: &Tree) -> Timestamp {
    resolve(tree, os_release::PATHS[1])
        .map(|id| tree.node(id).metadata.mtime)
        .unwrap_or_default()
}

/// Joins the labels of every bootable image with those that were asked for, which go first.
fn labels(options: &BuildOptions, version: Option<&str>) -> BTreeMap<String, String> {
    let mut labels = options.labels.clone();
    let ours = [(oci::LABEL_BOOTC, Some("1")), (oci::LABEL_VERSION, version)];
    for (name, value) in ours {
        if let Some(value) = value {
            labels
                .entry(name.to_owned())
                .or_insert_with(|| value.to_owned());
        }
    }
    labels
}

/// RFC 1123: labels of letters, digits and inner hyphens, 64 bytes in all as Linux has it.
fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    text.len() <= 64 && text.split('.').all(label)
}
