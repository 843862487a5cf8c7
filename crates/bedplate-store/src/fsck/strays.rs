//! Files in a store that nothing of ours is called like.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType};

use crate::item::Item;
use crate::store::{Store, list_or_empty};

impl Store {
    /// Lists files in the store's directories that have no name of theirs.
    ///
    /// What stands in `refs/` and `pins/` is read as a ref or pin, and named where it is none.
    pub(super) fn strays(&self) -> io::Result<Vec<PathBuf>> {
        let mut strays = Vec::new();
        for entry in list_or_empty(self.objects_dir())? {
            let path = self.objects_dir().join(&entry.name);
            let Some(prefix) = entry.name.to_str().filter(|name| is_hex(name, 2)) else {
                strays.push(path);
                continue;
            };
            for entry in list_or_empty(&path)? {
                let name = format!("object-{prefix}{}", entry.name.to_string_lossy());
                if Item::from_flat_name(name.as_ref()).is_none() {
                    strays.push(path.join(&entry.name));
                }
            }
        }
        for (directory, kind) in [("images", "image"), ("layers", "layer"), ("blobs", "blob")] {
            let path = self.path().join(directory);
            for entry in list_or_empty(&path)? {
                let name = format!("{kind}-{}", entry.name.to_string_lossy());
                if Item::from_flat_name(name.as_ref()).is_none() {
                    strays.push(path.join(&entry.name));
                }
            }
        }
        let index = self.path().join("index");
        for entry in list_or_empty(&index)? {
            if !is_index(&entry.name) || self.is_no_file(Path::new("index").join(&entry.name)) {
                strays.push(index.join(&entry.name));
            }
        }
        for directory in ["refs", "pins"] {
            let path = self.path().join(directory);
            for entry in list_or_empty(&path)? {
                // What a crash left half-written is nothing but a file.
                if is_unfinished(&entry.name)
                    && self.is_no_file(Path::new(directory).join(&entry.name))
                {
                    strays.push(path.join(&entry.name));
                }
            }
        }
        Ok(strays)
    }

    fn is_no_file(&self, path: PathBuf) -> bool {
        let stat = rustix::fs::statat(self.root(), path, AtFlags::SYMLINK_NOFOLLOW);
        // What went since the directory was read is nobody's business.
        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile)
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

fn is_unfinished(name: &OsStr) -> bool {
    Path::new(name).extension() == Some("new".as_ref())
}

/// Whether a file is called like the index, a stat cache, or either of them half-written.
fn is_index(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let is_cache = |name: &str| {
        let digits = name.strip_prefix("stat-");
        digits.is_some_and(|digits| is_hex(digits, 16))
    };
    match name.strip_suffix(".new") {
        None => name == "sha256" || is_cache(name),
        Some("sha256") => true,
        Some(rest) => is_cache(rest.split_once('.').map_or(rest, |(cache, _)| cache)),
    }
}
