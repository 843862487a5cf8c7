//! Signals that would end the process where an error can say more, or where something must be put away first.

use std::ffi::c_int;
use std::sync::atomic::{AtomicI32, Ordering};

/// `SIGXFSZ` of Linux, the same number on every architecture but MIPS and PA-RISC.
const SIGXFSZ: c_int = 25;
/// `SIG_DFL` of the C library.
const DEFAULT: usize = 0;
/// `SIG_IGN` of the C library.
const IGNORE: usize = 1;
/// `SIGHUP`, `SIGINT` and `SIGTERM`: a terminal that went, a person, and everybody else.
const ENDINGS: [c_int; 3] = [1, 2, 15];

unsafe extern "C" {
    fn signal(number: c_int, handler: usize) -> usize;
    fn raise(number: c_int) -> c_int;
}

/// The last of [`ENDINGS`] that came; 0 where none did.
static CAUGHT: AtomicI32 = AtomicI32::new(0);

/// Makes a write past the limit of `ulimit -f` an error of that write (`EFBIG`) instead of the end of the
/// process.
pub fn ignore_file_size_limit() {
    // SAFETY: signal(3) with SIG_IGN installs no handler of ours, so nothing of the program ever runs in
    // a signal's context; it touches no memory of the caller.
    unsafe {
        signal(SIGXFSZ, IGNORE);
    }
}

extern "C" fn caught(number: c_int) {
    CAUGHT.store(number, Ordering::Relaxed);
}

/// Has the signals that end a program only be written down from now on: who asks [`ending`] often can put
/// away what it made.
///
/// A signal that was ignored stays ignored, as `nohup` wants it.
pub fn catch_endings() {
    for number in ENDINGS {
        // SAFETY: the handler stores into an atomic and does nothing else, which is allowed in a signal's
        // context; it has the ABI that signal(3) wants, and lives as long as the program.
        unsafe {
            if signal(number, caught as *const () as usize) == IGNORE {
                signal(number, IGNORE);
            }
        }
    }
}

/// Returns the signal that asked the program to end, where one did.
pub fn ending() -> Option<i32> {
    match CAUGHT.load(Ordering::Relaxed) {
        0 => None,
        number => Some(number),
    }
}

/// Ends the process by a signal that was caught, so that whoever waits for it learns what happened.
pub fn end_by(number: i32) {
    if !ENDINGS.contains(&number) {
        return;
    }
    // SAFETY: signal(3) with SIG_DFL installs no handler, and raise(3) takes a number of ours; the process
    // ends in it, which loses nothing that its caller has not put away.
    unsafe {
        signal(number, DEFAULT);
        raise(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_ends_programs_is_written_down_instead() {
        catch_endings();
        // SAFETY: as in `end_by`; the handler is installed.
        unsafe {
            raise(ENDINGS[2]);
        }
        assert_eq!(ending(), Some(15));
        end_by(9);
        // Other tests of this process end as usual.
        CAUGHT.store(0, Ordering::Relaxed);
    }
}
