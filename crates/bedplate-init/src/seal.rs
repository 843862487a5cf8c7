//! fs-verity on the objects and images of the store.
//!
//! ```text
//! seal_once    each file: enable → measure → compare with its name; then the marker
//! check_all    each object: measure → compare with its name
//! ```
//!
//! Invariant: the marker is there only after every file was sealed as what its name says.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use bedplate_model::{ObjectId, layout};

use crate::console::{self, Failure};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Seals everything that lies in the store, where that was not done yet.
///
/// An installer may have written the store where nothing can be sealed. A power cut in between costs
/// nothing but the time: what is sealed is measured, and passed over.
pub(crate) fn seal_once(physical: &Path) -> Result<(), Failure> {
    let marker = physical.join(layout::SEALED);
    if marker.exists() {
        return Ok(());
    }
    let store = physical.join(layout::STORE);
    let begun = Instant::now();
    let mut told = begun;
    let mut count = 0u64;
    console::error("sealing the store: this happens at the first boot only");
    each_file(&store, Kind::ObjectsAndImages, &mut |file, id, path| {
        let algorithm = id.algorithm().kernel_number();
        bedplate_sys::verity::enable(file, algorithm)
            .map_err(|why| Failure::new(format!("seal {}", path.display()), why))?;
        check(file, id, path)?;
        count += 1;
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            console::error(&format!("sealed {count} files"));
        }
        Ok(())
    })?;
    let failed = |why| Failure::new("write down that the store is sealed", why);
    let directory = File::open(&store).map_err(failed)?;
    bedplate_sys::durable::sync_filesystem(&directory).map_err(failed)?;
    bedplate_sys::durable::replace(&marker, b"", 0o600).map_err(failed)?;
    console::error(&format!(
        "sealed {count} files in {} ms",
        begun.elapsed().as_millis()
    ));
    Ok(())
}

/// Finds every object sealed as what its name says, for kernels whose overlayfs does not look.
pub(crate) fn check_all(physical: &Path) -> Result<(), Failure> {
    each_file(&physical.join(layout::STORE), Kind::Objects, &mut check)
}

/// Finds a file sealed as what its name says.
pub(crate) fn check(file: &File, id: &ObjectId, path: &Path) -> Result<(), Failure> {
    let what = || format!("trust {}", path.display());
    let measured = bedplate_sys::verity::measure(file).map_err(|why| Failure::new(what(), why))?;
    match measured {
        None => Err(Failure::new(what(), "it is not sealed with fs-verity")),
        Some((algorithm, digest))
            if algorithm == id.algorithm().kernel_number() && digest == id.as_bytes() =>
        {
            Ok(())
        }
        Some((_, digest)) => Err(Failure::new(
            what(),
            format!(
                "its content has the digest {}",
                bedplate_model::digest::hex(&digest)
            ),
        )),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Objects,
    ObjectsAndImages,
}

type Visit<'a> = dyn FnMut(&File, &ObjectId, &Path) -> Result<(), Failure> + 'a;

/// Visits each file that is named by its digest; others are nothing that an image could name.
fn each_file(store: &Path, kind: Kind, visit: &mut Visit<'_>) -> Result<(), Failure> {
    let objects = store.join("objects");
    for prefix in names(&objects)? {
        let directory = objects.join(&prefix);
        for name in names(&directory)? {
            let hex = [prefix.as_encoded_bytes(), name.as_encoded_bytes()].concat();
            visit_named(&directory.join(&name), &hex, visit)?;
        }
    }
    if kind == Kind::ObjectsAndImages {
        let images = store.join("images");
        for name in names(&images)? {
            visit_named(&images.join(&name), name.as_encoded_bytes(), visit)?;
        }
    }
    Ok(())
}

fn visit_named(path: &Path, hex: &[u8], visit: &mut Visit<'_>) -> Result<(), Failure> {
    let Some(id) = std::str::from_utf8(hex)
        .ok()
        .and_then(|hex| hex.parse::<ObjectId>().ok())
    else {
        return Ok(());
    };
    let file =
        File::open(path).map_err(|why| Failure::new(format!("open {}", path.display()), why))?;
    visit(&file, &id, path)
}

fn names(directory: &Path) -> Result<Vec<std::ffi::OsString>, Failure> {
    let failed = |why| Failure::new(format!("list {}", directory.display()), why);
    let opened = bedplate_sys::files::open_root(directory).map_err(failed)?;
    let mut names: Vec<_> = bedplate_sys::files::list(&opened)
        .map_err(failed)?
        .into_iter()
        .map(|entry| entry.name)
        .collect();
    names.sort_unstable_by(|one, other| OsStr::cmp(one, other));
    Ok(names)
}
