//! Signals that would end the process where an error can say more.

use std::ffi::c_int;

/// `SIGXFSZ` of Linux, the same number on every architecture but MIPS and PA-RISC.
const SIGXFSZ: c_int = 25;
/// `SIG_IGN` of the C library.
const IGNORE: usize = 1;

unsafe extern "C" {
    fn signal(number: c_int, handler: usize) -> usize;
}

/// Makes a write past the limit of `ulimit -f` an error of that write (`EFBIG`) instead of the end of the
/// process.
pub fn ignore_file_size_limit() {
    // SAFETY: signal(3) with SIG_IGN installs no handler of ours, so nothing of the program ever runs in
    // a signal's context; it touches no memory of the caller.
    unsafe {
        signal(SIGXFSZ, IGNORE);
    }
}
