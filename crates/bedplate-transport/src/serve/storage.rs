//! Where the registry keeps things.
//!
//! ```text
//! lock                                   held by the one server that owns this directory
//! blobs/sha256/ab/<hex>                  content, once, whoever sent it
//! repositories/<name>/_blobs/<hex>       empty: this repository has that blob
//! repositories/<name>/_manifests/<hex>   the media type of that manifest
//! repositories/<name>/_tags/<tag>        the digest that the tag points at
//! repositories/<name>/_referrers/<hex of subject>/<hex>   empty: that manifest refers to the subject
//! uploads/<id>                           what arrived of an upload so far
//! ```
//!
//! The underscore keeps these apart from repositories: no name component begins with one.
//!
//! Invariants: a blob has its name only when all its bytes are on disk and hash to it; a manifest is
//! named only when everything that it points at is. What no repository has is removed at the start.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bedplate_model::Sha256;
use bedplate_sys::durable;

use super::route::Repository;

/// The mode of manifests and tags: what a registry has is for everyone to read.
const MODE: u32 = 0o644;

/// The directory of a registry.
#[derive(Debug)]
pub(super) struct Storage {
    dir: PathBuf,
    /// Held while a manifest or a tag gets its name: `durable::replace` has one temporary file for each.
    naming: Mutex<()>,
    /// Holds the lock for as long as the storage is in use.
    _lock: File,
}

/// A manifest as it is kept.
#[derive(Clone, Debug)]
pub(super) struct StoredManifest {
    pub(super) digest: Sha256,
    pub(super) media_type: String,
    pub(super) size: u64,
}

impl Storage {
    /// Opens a registry's directory, makes what is missing, and clears what no repository has.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another registry serves this directory",
            ),
            fs::TryLockError::Error(error) => error,
        })?;
        for part in ["blobs/sha256", "repositories", "uploads"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let storage = Self {
            dir: dir.to_owned(),
            naming: Mutex::default(),
            _lock: lock,
        };
        storage.sweep()?;
        Ok(storage)
    }

    /// Removes unfinished uploads and blobs that no repository has.
    fn sweep(&self) -> io::Result<()> {
        for upload in fs::read_dir(self.dir.join("uploads"))? {
            fs::remove_file(upload?.path())?;
        }
        let mut kept = HashSet::new();
        for name in self.repositories()? {
            for kind in ["_blobs", "_manifests"] {
                kept.extend(names_in(&self.part(&name, kind))?);
            }
        }
        for shard in fs::read_dir(self.dir.join("blobs/sha256"))? {
            for blob in fs::read_dir(shard?.path())? {
                let blob = blob?;
                if !kept.contains(&*blob.file_name().to_string_lossy()) {
                    fs::remove_file(blob.path())?;
                }
            }
        }
        Ok(())
    }

    fn blob_path(&self, digest: &Sha256) -> PathBuf {
        let hex = digest.to_hex();
        self.dir.join("blobs/sha256").join(&hex[..2]).join(hex)
    }

    fn part(&self, repository: &Repository, kind: &str) -> PathBuf {
        self.dir
            .join("repositories")
            .join(repository.as_str())
            .join(kind)
    }

    /// Returns the file that an upload is collected in.
    pub(super) fn upload_path(&self, id: &str) -> PathBuf {
        self.dir.join("uploads").join(id)
    }

    /// Opens a blob that the repository has, and returns its size.
    pub(super) fn open_blob(
        &self,
        repository: &Repository,
        digest: &Sha256,
    ) -> io::Result<Option<(File, u64)>> {
        let hex = digest.to_hex();
        // A manifest is a blob too: some clients fetch it by that address.
        let known = self.part(repository, "_blobs").join(&hex).exists()
            || self.part(repository, "_manifests").join(&hex).exists();
        if !known {
            return Ok(None);
        }
        let Some(file) = present(File::open(self.blob_path(digest)))? else {
            return Ok(None);
        };
        let size = file.metadata()?.len();
        Ok(Some((file, size)))
    }

    /// Gives a finished upload another name: its digest. The caller has checked that its bytes hash to
    /// that, and removes its first name.
    pub(super) fn keep_upload(
        &self,
        repository: &Repository,
        upload: &File,
        path: &Path,
        digest: &Sha256,
    ) -> io::Result<()> {
        upload.sync_all()?; // 1. the bytes are on disk …
        let blob = self.blob_path(digest);
        let shard = blob.parent().expect("a blob lies in a shard");
        make_dir_durably(shard)?;
        match fs::hard_link(path, &blob) {
            Ok(()) => durable::sync_directory(shard)?, // 2. … before they have their name …
            // Someone sent the same bytes first: same name, same content.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        self.add_blob(repository, digest) // 3. … and before a repository has them.
    }

    /// Notes that a repository has a blob that is there already.
    pub(super) fn add_blob(&self, repository: &Repository, digest: &Sha256) -> io::Result<()> {
        let dir = self.part(repository, "_blobs");
        make_dir_durably(&dir)?;
        File::create(dir.join(digest.to_hex()))?;
        durable::sync_directory(&dir)
    }

    /// Takes a blob away from a repository; the bytes go when no repository has them.
    pub(super) fn remove_blob(&self, repository: &Repository, digest: &Sha256) -> io::Result<bool> {
        let dir = self.part(repository, "_blobs");
        remove_durably(&dir, &digest.to_hex())
    }

    /// Keeps a manifest, under its digest and, where one is given, a tag.
    pub(super) fn keep_manifest(
        &self,
        repository: &Repository,
        bytes: &[u8],
        manifest: &StoredManifest,
        tag: Option<&str>,
        subject: Option<&Sha256>,
    ) -> io::Result<()> {
        let hex = manifest.digest.to_hex();
        let blob = self.blob_path(&manifest.digest);
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        make_dir_durably(blob.parent().expect("a blob lies in a shard"))?;
        durable::replace(&blob, bytes, MODE)?;
        if let Some(subject) = subject {
            let dir = self.part(repository, "_referrers").join(subject.to_hex());
            make_dir_durably(&dir)?;
            File::create(dir.join(&hex))?;
            durable::sync_directory(&dir)?;
        }
        let dir = self.part(repository, "_manifests");
        make_dir_durably(&dir)?;
        durable::replace(&dir.join(&hex), manifest.media_type.as_bytes(), MODE)?;
        if let Some(tag) = tag {
            let dir = self.part(repository, "_tags");
            make_dir_durably(&dir)?;
            durable::replace(&dir.join(tag), manifest.digest.to_string().as_bytes(), MODE)?;
        }
        Ok(())
    }

    /// Returns the digest that a tag points at.
    pub(super) fn tag(&self, repository: &Repository, tag: &str) -> io::Result<Option<Sha256>> {
        let text = present(fs::read_to_string(self.part(repository, "_tags").join(tag)))?;
        text.map(|text| text.parse().map_err(io::Error::other))
            .transpose()
    }

    /// Returns what is known of a manifest that the repository has.
    pub(super) fn manifest(
        &self,
        repository: &Repository,
        digest: &Sha256,
    ) -> io::Result<Option<StoredManifest>> {
        let link = self.part(repository, "_manifests").join(digest.to_hex());
        let Some(media_type) = present(fs::read_to_string(link))? else {
            return Ok(None);
        };
        Ok(
            present(fs::metadata(self.blob_path(digest)))?.map(|metadata| StoredManifest {
                digest: *digest,
                media_type,
                size: metadata.len(),
            }),
        )
    }

    /// Reads the bytes of a manifest.
    pub(super) fn manifest_bytes(&self, manifest: &StoredManifest) -> io::Result<Vec<u8>> {
        fs::read(self.blob_path(&manifest.digest))
    }

    /// Removes a manifest with its tags; returns whether it was there.
    pub(super) fn remove_manifest(
        &self,
        repository: &Repository,
        digest: &Sha256,
        subject: Option<&Sha256>,
    ) -> io::Result<bool> {
        // 1. No tag points at what is gone.
        for tag in self.tags(repository)?.unwrap_or_default() {
            if self.tag(repository, &tag)? == Some(*digest) {
                self.remove_tag(repository, &tag)?;
            }
        }
        // 2. The manifest, 3. its place among the referrers of another.
        let removed = remove_durably(&self.part(repository, "_manifests"), &digest.to_hex())?;
        if let Some(subject) = subject {
            let dir = self.part(repository, "_referrers").join(subject.to_hex());
            remove_durably(&dir, &digest.to_hex())?;
        }
        Ok(removed)
    }

    /// Removes a tag; returns whether it was there.
    pub(super) fn remove_tag(&self, repository: &Repository, tag: &str) -> io::Result<bool> {
        remove_durably(&self.part(repository, "_tags"), tag)
    }

    /// Returns the tags of a repository in order, or `None` when there is no such repository.
    pub(super) fn tags(&self, repository: &Repository) -> io::Result<Option<Vec<String>>> {
        if !self.part(repository, "_manifests").exists() {
            return Ok(None);
        }
        let mut tags = names_in(&self.part(repository, "_tags"))?;
        tags.sort_unstable();
        Ok(Some(tags))
    }

    /// Returns the manifests that refer to a subject, in the order of their digests.
    pub(super) fn referrers(
        &self,
        repository: &Repository,
        subject: &Sha256,
    ) -> io::Result<Vec<StoredManifest>> {
        let mut names = names_in(&self.part(repository, "_referrers").join(subject.to_hex()))?;
        names.sort_unstable();
        let mut found = Vec::new();
        for hex in names {
            let Ok(digest) = format!("sha256:{hex}").parse() else {
                continue;
            };
            found.extend(self.manifest(repository, &digest)?);
        }
        Ok(found)
    }

    /// Returns every repository that has or had a manifest, in order.
    pub(super) fn repositories(&self) -> io::Result<Vec<Repository>> {
        let root = self.dir.join("repositories");
        let mut found = Vec::new();
        let mut pending = vec![PathBuf::new()];
        while let Some(below) = pending.pop() {
            let mut is_repository = false;
            for name in names_in(&root.join(&below))? {
                match name.as_str() {
                    "_blobs" | "_manifests" => is_repository = true,
                    _ if name.starts_with('_') => {}
                    _ => pending.push(below.join(name)),
                }
            }
            // A directory that someone else put there is no repository of ours.
            if is_repository && let Ok(name) = Repository::parse(&below.to_string_lossy()) {
                found.push(name);
            }
        }
        found.sort_unstable_by(|left, right| left.as_str().cmp(right.as_str()));
        Ok(found)
    }
}

/// Reads up to `len` bytes from a place in a file; fewer only at its end.
pub(super) fn read_at(file: &mut File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    file.seek(SeekFrom::Start(offset))?;
    file.take(len as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Turns "there is no such file" into `None`.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lists a directory; one that is not there has no entries.
fn names_in(dir: &Path) -> io::Result<Vec<String>> {
    let Some(entries) = present(fs::read_dir(dir))? else {
        return Ok(Vec::new());
    };
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        // Temporary names of a replacement that a crash left behind.
        .filter(|name| !name.as_ref().is_ok_and(|name| name.starts_with('.')))
        .collect()
}

/// Makes a directory and its parents, each of them durable in the one above.
fn make_dir_durably(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(dir);
    make_dir_durably(parent)?;
    match fs::create_dir(dir) {
        Ok(()) => durable::sync_directory(parent),
        // A push beside this one was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn remove_durably(dir: &Path, name: &str) -> io::Result<bool> {
    if present(fs::remove_file(dir.join(name)))?.is_none() {
        return Ok(false);
    }
    durable::sync_directory(dir)?;
    Ok(true)
}
