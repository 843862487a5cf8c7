//! What the process was started with: whether standard output was open.
//!
//! Rust's runtime opens `/dev/null` in the place of a standard descriptor that is closed, before `main`:
//! afterwards, `program >&-` looks like `program >/dev/null`. So the question is asked before the
//! runtime starts.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Runs before the runtime, on the one thread that there is.
extern "C" fn look() {
    // SAFETY: the descriptor is used for one call that does not outlive this line, closes nothing, and
    // answers EBADF where it is not open.
    let stdout = unsafe { BorrowedFd::borrow_raw(1) };
    if rustix::io::fcntl_getfd(stdout).is_err() {
        STDOUT_WAS_CLOSED.store(true, Ordering::Relaxed);
    }
}

// SAFETY: the C library calls what stands in `.init_array` once, before `main`; `look` has that ABI,
// needs nothing of the runtime, allocates nothing and does not unwind.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

/// Returns whether the process was started with its standard output closed.
pub fn stdout_was_closed() -> bool {
    STDOUT_WAS_CLOSED.load(Ordering::Relaxed)
}
