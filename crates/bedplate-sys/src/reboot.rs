//! Restarting the machine without anyone's help: for early boot, when it cannot go on.
//!
//! Invariant: everything that was written is on the disks before.

use std::io;

use rustix::system::RebootCommand;

/// Flushes every file system and restarts the machine at once.
pub fn now() -> io::Result<()> {
    rustix::fs::sync();
    Ok(rustix::system::reboot(RebootCommand::Restart)?)
}
