//! Where things lie in the repository.

use std::path::{Path, PathBuf};

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies one level below the root of the repository")
}

/// A path below `target/`, where everything lies that can be made again.
pub(crate) fn target(below: &str) -> PathBuf {
    root().join("target").join(below)
}
