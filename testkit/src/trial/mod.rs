//! The real program on real file systems: what is tried, and what must hold whatever goes wrong meanwhile.
//!
//! ```text
//! operations   what is run: one line each, on two small trees, a tar file and a registry
//! program      the program, and the registry it pulls from
//! mount        the file systems it works on
//! check        fsck finds nothing · refs are old or new · images read back · again it succeeds · gc, fsck
//! together     all of it at once, for as long as one likes
//! ```
//!
//! [`crate::powercut`] and [`crate::faults`] say what goes wrong.

pub(crate) mod check;
pub mod mount;
pub(crate) mod operations;
pub(crate) mod program;
mod together;

use std::path::Path;

use anyhow::Result;

use check::Seen;
use mount::Mounted;
use program::{Program, Registry};

pub use operations::{OPERATIONS, Operation};
pub use together::{MOUNT, Round, Rounds, together};

/// A place to try operations in: the trees, a registry, and room for disks; all of it in memory.
#[derive(Debug)]
pub struct Bench {
    pub(crate) program: Program,
    // Before the memory that its files are in.
    _registry: Registry,
    pub(crate) memory: Mounted,
}

impl Bench {
    /// Prepares what the operations work on: `bedplate` is the program, `scratch` a directory to mount on.
    pub fn prepare(bedplate: &Path, scratch: &Path) -> Result<Self> {
        let memory = Mounted::memory(scratch, "4g")?;
        let place = memory.path();
        operations::make_trees(place)?;
        let mut program = Program::new(bedplate, place);
        let registry = Registry::start(&program)?;
        registry.address().clone_into(&mut program.registry);
        operations::prepare(&program)?;
        Ok(Self {
            program,
            _registry: registry,
            memory,
        })
    }
}

/// What became of an operation, so often as it was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often it was tried.
    pub tries: u64,
    /// How often every ref was the old one.
    pub old: u64,
    /// How often every ref was the new one.
    pub new: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, seen: Seen) {
        self.tries += 1;
        match seen {
            Seen::Old => self.old += 1,
            Seen::New => self.new += 1,
        }
    }
}
