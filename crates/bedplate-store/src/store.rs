//! A store's directory: making it, opening it, finding things in it.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bedplate_model::format::{FormatError, FormatHeader};
use bedplate_model::human::Size;
use bedplate_model::{Algorithm, ErofsVersion, ObjectId, RootDigest, Sha256, Tree};
use bedplate_sys::lock::Lock;
use bedplate_sys::{durable, files, verity};
use serde::{Deserialize, Serialize};

use crate::erofs;
use crate::item::Item;
use crate::parts;
use crate::transaction::{BeginError, Transaction};

const FORMAT: &str = "bedplate-store";
const VERSION: u32 = 1;
/// The file that makes a directory a store.
const FORMAT_FILE: &str = "format.json";
/// Nobody else's business: contents include `/etc/shadow`.
pub(crate) const DIRECTORY_MODE: u32 = 0o700;
/// What may lie in a store beside its description and its directories.
const FILES: [&str; 8] = [
    "damaged",
    "lock",
    "sealed",
    "journal",
    "journal.new",
    "journal.done",
    "journal.stale",
    "journal.damaged",
];
/// The most bytes that a manifest or a config may have: 16 MiB. Registries take manifests of 4 MiB.
pub const BLOB_MAX: u64 = 16 << 20;
/// The most bytes that an image or a layer's table may have: 2 GiB. A million files take a few hundred MiB.
const METADATA_MAX: u64 = 2 << 30;

/// How much memory is asked for at once on a file's word: a damaged one may claim any length.
const ROOM_MAX: u64 = 64 << 20;
/// More bytes of `format.json` than any version writes.
const FORMAT_FILE_MAX: u64 = 64 * 1024;

/// What `format.json` holds.
#[derive(Serialize, Deserialize)]
struct FormatDocument {
    #[serde(flatten)]
    header: FormatHeader,
    /// The algorithm of new objects and images.
    algorithm: String,
}

/// A store on a disk. Shared by threads; processes side by side are fine, too.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    objects_path: PathBuf,
    /// The directory itself: what was opened stays open, wherever its path leads later.
    root: OwnedFd,
    algorithm: Algorithm,
    sealing: OnceLock<Sealing>,
    /// Set once every directory was found to be one.
    prepared: OnceLock<()>,
}

/// Whether files of a store are sealed with fs-verity when they come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealing {
    /// Every object and image is sealed.
    Sealed,
    /// The file system or the kernel has no fs-verity, or the store cannot be written to.
    Unsealed,
}

/// Why a store could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The directory has other things in it.
    #[error("{} is not empty, and not a store", .0.display())]
    NotEmpty(PathBuf),
    /// A directory or file could not be made.
    #[error("cannot make {}", path.display())]
    Make {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is there, but cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no store.
    #[error("there is no store at {}", .0.display())]
    Missing(PathBuf),
    /// A file of it could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its description is damaged.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It is of a newer version.
    #[error("cannot use the store {}", path.display())]
    Format {
        /// The store.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// Its algorithm is unknown.
    #[error("the store {} uses the algorithm `{name}`, which needs a newer version of bedplate", path.display())]
    Algorithm {
        /// The store.
        path: PathBuf,
        /// The algorithm's name.
        name: String,
    },
}

/// Why something could not be read from a store.
#[derive(Debug, thiserror::Error)]
pub enum ReadStoreError {
    /// It is not there.
    #[error("the store has no {0}")]
    Missing(Item),
    /// The file could not be read.
    #[error("cannot read {item}")]
    Read {
        /// What was read.
        item: Item,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes have another digest than the name says.
    #[error("{item} is damaged: its content has the digest {found}")]
    Damaged {
        /// What was read.
        item: Item,
        /// The digest of what was found.
        found: String,
    },
    /// The content is larger than the caller can use.
    #[error("{item} has {}, and at most {} are expected here", Size(*.size), Size(*.max))]
    TooLarge {
        /// What was read.
        item: Item,
        /// Its size, in bytes.
        size: u64,
        /// What was allowed, in bytes.
        max: u64,
    },
    /// The file is no image.
    #[error("{item} is not an image that can be read")]
    Image {
        /// What was read.
        item: Item,
        /// What is wrong with it.
        source: erofs::ReadError,
    },
}

impl Store {
    /// Makes a store, or opens the one that is there.
    ///
    /// May run twice at once: `format.json` comes last, and whoever writes it writes the same.
    pub fn create(path: &Path) -> Result<Self, CreateError> {
        match Self::open(path) {
            Err(OpenError::Missing(_)) => {}
            other => return Ok(other?),
        }
        let make = |path: &Path, source| CreateError::Make {
            path: path.to_owned(),
            source,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(path)
            .map_err(|error| make(path, error))?;
        // Only what a crash while creating leaves behind may be there.
        for entry in fs::read_dir(path).map_err(|error| make(path, error))? {
            let name = entry.map_err(|error| make(path, error))?.file_name();
            let ours = parts::is_directory(&name)
                || FILES.iter().any(|ours| name == *ours)
                || name == format!("{FORMAT_FILE}.new").as_str();
            if !ours {
                return Err(CreateError::NotEmpty(path.to_owned()));
            }
        }
        fs::set_permissions(path, fs::Permissions::from_mode(DIRECTORY_MODE))
            .map_err(|error| make(path, error))?;
        for name in parts::directories() {
            let directory = path.join(name);
            let mut builder = fs::DirBuilder::new();
            match builder.mode(DIRECTORY_MODE).create(&directory) {
                // From an earlier try, or by somebody who creates the same store right now.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(make(&directory, error)),
                Ok(()) => {}
            }
        }
        let lock = path.join("lock");
        File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&lock)
            .map_err(|error| make(&lock, error))?;

        let naming = Lock::exclusive(&lock).map_err(|error| make(&lock, error))?;
        File::open(path)
            .and_then(durable::sync_filesystem) // 1. every directory is on the disk …
            .map_err(|error| make(path, error))?;
        let document = FormatDocument {
            header: FormatHeader::new(FORMAT, VERSION),
            algorithm: Algorithm::Sha256.name().to_owned(),
        };
        let mut bytes = serde_json::to_vec_pretty(&document).expect("plain texts are valid JSON");
        bytes.push(b'\n');
        let format = path.join(FORMAT_FILE);
        durable::replace(&format, &bytes, 0o600) // 2. … before this makes it a store.
            .map_err(|error| make(&format, error))?;
        drop(naming);
        Ok(Self::open(path)?)
    }

    /// Opens a store. Writes nothing: a store on a read-only disk opens, too.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let format = path.join(FORMAT_FILE);
        let read = |path: &Path, source| OpenError::Read {
            path: path.to_owned(),
            source,
        };
        let bytes = files::open_root(path)
            .and_then(|root| files::read_file(&root, FORMAT_FILE.as_ref(), FORMAT_FILE_MAX));
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(OpenError::Missing(path.to_owned()));
            }
            Err(error) => return Err(read(&format, error)),
        };
        let document: FormatDocument =
            serde_json::from_slice(&bytes).map_err(|source| OpenError::Damaged {
                path: format.clone(),
                source,
            })?;
        document
            .header
            .check(FORMAT, VERSION, &[])
            .map_err(|source| OpenError::Format {
                path: path.to_owned(),
                source,
            })?;
        let algorithm = [Algorithm::Sha256, Algorithm::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.name() == document.algorithm)
            .ok_or_else(|| OpenError::Algorithm {
                path: path.to_owned(),
                name: document.algorithm.chars().take(40).collect(),
            })?;
        // An absolute path keeps its meaning when the process changes its directory.
        let path = std::path::absolute(path).map_err(|error| read(path, error))?;
        Ok(Self {
            root: files::open_root(&path).map_err(|error| read(&path, error))?,
            objects_path: path.join("objects"),
            path,
            algorithm,
            sealing: OnceLock::new(),
            prepared: OnceLock::new(),
        })
    }

    /// Starts a transaction: the only way to put something into the store.
    pub fn begin(&self) -> Result<Transaction<'_>, BeginError> {
        Transaction::begin(self)
    }

    /// Returns where the store lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory of the objects: the lower layer of a mount.
    pub fn objects_dir(&self) -> &Path {
        &self.objects_path
    }

    /// Returns the algorithm that new objects and images are named by.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns whether what comes in is sealed; found out once, by trying.
    pub fn sealing(&self) -> Sealing {
        *self.sealing.get_or_init(|| {
            if self.can_seal().unwrap_or(false) {
                Sealing::Sealed
            } else {
                Sealing::Unsealed
            }
        })
    }

    /// Returns whether the store has something.
    pub fn has(&self, item: &Item) -> bool {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::statat(&self.root, item.path(), flags).is_ok()
    }

    /// Opens an object without checking it: the name is trusted.
    pub fn open_object(&self, id: &ObjectId) -> Result<File, ReadStoreError> {
        self.open_item(Item::Object(*id))
    }

    /// Opens an image's EROFS file without checking it: the name is trusted.
    pub fn image_file(&self, root: &RootDigest) -> Result<File, ReadStoreError> {
        self.open_item(Item::Image(root.image))
    }

    /// Reads an image, and checks it against its digest.
    pub fn tree(&self, root: &RootDigest) -> Result<Tree, ReadStoreError> {
        self.image_tree(&root.image)
    }

    pub(crate) fn image_tree(&self, id: &ObjectId) -> Result<Tree, ReadStoreError> {
        let item = Item::Image(*id);
        let bytes = self.read_item(item)?;
        let found = crate::verity::digest(id.algorithm(), &bytes);
        if found != *id {
            return Err(ReadStoreError::Damaged {
                item,
                found: found.to_string(),
            });
        }
        erofs::read(&bytes).map_err(|source| ReadStoreError::Image { item, source })
    }

    /// Reads a manifest or config of at most [`BLOB_MAX`] bytes, and checks it against its digest.
    pub fn blob(&self, digest: &Sha256) -> Result<Vec<u8>, ReadStoreError> {
        let item = Item::Blob(*digest);
        let bytes = self.read_item(item)?;
        let found = sha256(&bytes);
        if found != *digest {
            return Err(ReadStoreError::Damaged {
                item,
                found: found.to_string(),
            });
        }
        Ok(bytes)
    }

    /// Reads a layer's table, or returns `None` where the store does not have that layer.
    ///
    /// The table opens with a check of its own, which its decoder tests.
    pub fn layer(&self, diff_id: &Sha256) -> Result<Option<Vec<u8>>, ReadStoreError> {
        match self.read_item(Item::Layer(*diff_id)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ReadStoreError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists everything that has a digest for its name; other files are passed over, and what is no
    /// directory counts as an empty one.
    pub(crate) fn items(&self) -> io::Result<Vec<Item>> {
        let mut items = Vec::new();
        for byte in 0..=255_u8 {
            let directory = self.objects_path.join(format!("{byte:02x}"));
            for entry in list_or_empty(&directory)? {
                let name = format!("object-{byte:02x}{}", entry.name.to_string_lossy());
                items.extend(Item::from_flat_name(name.as_ref()));
            }
        }
        for (directory, kind) in [("images", "image"), ("layers", "layer"), ("blobs", "blob")] {
            for entry in list_or_empty(&self.path.join(directory))? {
                let name = format!("{kind}-{}", entry.name.to_string_lossy());
                items.extend(Item::from_flat_name(name.as_ref()));
            }
        }
        Ok(items)
    }

    /// Holds off gc while names are given: from the check that something is there to the ref.
    pub(crate) fn lock_for_naming(&self) -> io::Result<Lock> {
        self.prepare_parts()?;
        Lock::shared(&self.path.join("lock"))
    }

    /// Holds off everybody who gives names.
    pub(crate) fn lock_for_collecting(&self) -> io::Result<Lock> {
        self.prepare_parts()?;
        Lock::exclusive(&self.path.join("lock"))
    }

    pub(crate) fn is_prepared(&self) -> &OnceLock<()> {
        &self.prepared
    }

    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    pub(crate) fn open_item(&self, item: Item) -> Result<File, ReadStoreError> {
        match files::open_file(&self.root, item.path().as_ref()) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ReadStoreError::Missing(item))
            }
            Err(source) => Err(ReadStoreError::Read { item, source }),
        }
    }

    /// Reads an item whole, unless it is larger than any of its kind: then it is damaged, and its bytes
    /// are not wanted.
    pub(crate) fn read_item(&self, item: Item) -> Result<Vec<u8>, ReadStoreError> {
        let failed = |source| ReadStoreError::Read { item, source };
        let file = self.open_item(item)?;
        let size = file.metadata().map_err(failed)?.len();
        let max = whole_max(item);
        if size > max {
            return Err(ReadStoreError::TooLarge { item, size, max });
        }
        let mut bytes = Vec::with_capacity(size.min(ROOM_MAX) as usize + 1);
        // A file that grows while it is read is cut off, and then it is not what its digest says.
        io::Read::read_to_end(&mut io::Read::take(file, max), &mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    /// Seals a file of one byte that has no name.
    fn can_seal(&self) -> io::Result<bool> {
        let directory = files::open_directory(&self.root, "tmp".as_ref())?;
        let Some(file) = files::create_unnamed(&directory, 0o400)? else {
            return Ok(false);
        };
        io::Write::write_all(&mut &file, b"x")?;
        let reader = files::reopen_read_only(&file)?;
        drop(file); // nobody may hold it open for writing
        Ok(verity::enable(&reader, self.algorithm.kernel_number()).is_ok())
    }
}

/// Returns how many bytes an item may have that is read whole.
pub(crate) fn whole_max(item: Item) -> u64 {
    match item {
        Item::Blob(_) => BLOB_MAX,
        Item::Layer(_) | Item::Image(_) => METADATA_MAX,
        // A file's content is read piece by piece, and checked by who reads it.
        Item::Object(_) => u64::MAX,
    }
}

/// Returns the version of the EROFS layout that the store writes.
pub(crate) const EROFS_VERSION: ErofsVersion = ErofsVersion::V1;

pub(crate) fn sha256(bytes: &[u8]) -> Sha256 {
    use sha2::Digest as _;
    Sha256(sha2::Sha256::digest(bytes).into())
}

/// Lists a directory; what is none is a finding of fsck's, and has nothing in it.
pub(crate) fn list_or_empty(path: &Path) -> io::Result<Vec<files::Entry>> {
    match files::open_root(path) {
        Ok(directory) => files::list(&directory),
        // A directory that nothing was ever put into, or something in its place that can hold nothing.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}
