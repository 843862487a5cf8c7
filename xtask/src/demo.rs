//! `cargo xtask demo`: the whole way, before the reader's eyes.

use anyhow::{Result, bail};

use crate::story::{self, Voice};
use crate::wants_help;

const HELP: &str = "\
Usage: cargo xtask demo

Makes two Debian systems, builds both into images, pushes them to a registry of our own, makes a disk image
without privileges, boots it in QEMU, has the machine upgrade itself, reboots, rolls back, reboots.
The first run makes the two systems (a minute or two); they are kept in target/demo.
";

/// `cargo xtask demo`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    if wants_help(arguments, HELP) {
        return Ok(());
    }
    if let [unknown, ..] = arguments {
        bail!("`demo` takes no `{unknown}`; see `cargo xtask demo --help`");
    }
    story::require_packages()?;
    story::tell(Voice::Full, true, story::Firmware::Uefi)
}
