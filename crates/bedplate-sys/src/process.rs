//! Other programs that must not outlive this one, and that get more open files than the usual three.
//!
//! Invariant: what runs between fork and exec is one system call after the other, and allocates nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::io::{Errno, FdFlags};
use rustix::process::{Pid, Signal};

/// Has the program end (`SIGKILL`) when the thread that starts it ends, however that comes.
///
/// So it must be started by a thread that waits for it, best the first one of the process.
pub fn end_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: the closure makes two system calls and compares numbers, which is allowed between fork and
    // exec; it allocates nothing and touches no lock.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // It ended before the line above: nobody will say so any more.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(Errno::SRCH.into())
            }
        });
    }
}

/// Leaves an open file to the program, under the number that it has here; `file` must be open when the program
/// is started.
pub fn leave_open(command: &mut Command, file: impl AsFd) -> i32 {
    let number = file.as_fd().as_raw_fd();
    // SAFETY: the closure makes one system call on a number, which closes nothing; where that is not open
    // any more, the call says EBADF and the program does not start.
    unsafe {
        command.pre_exec(move || {
            let file = BorrowedFd::borrow_raw(number);
            Ok(rustix::io::fcntl_setfd(file, FdFlags::empty())?)
        });
    }
    number
}

/// Asks a program that was started to end in good order.
pub fn ask_to_end(process: u32) -> io::Result<()> {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(Errno::SRCH)?;
    Ok(rustix::process::kill_process(pid, Signal::TERM)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_program_ends_with_the_thread_that_started_it() {
        let mut child = thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("60");
            end_with_parent(&mut command);
            command.spawn().unwrap()
        })
        .join()
        .unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success());
    }

    #[test]
    fn a_program_has_the_file_that_was_left_to_it_and_no_other() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (mut lonely, kept) = UnixStream::pair().unwrap();
        let mut command = Command::new("sh");
        let number = leave_open(&mut command, &theirs);
        command.arg("-c").arg(format!(
            "echo hello >&{number}; echo bye 2>&- >&{}",
            kept.as_raw_fd()
        ));
        command.status().unwrap();
        drop((theirs, kept));
        let mut said = String::new();
        ours.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        ours.read_to_string(&mut said).unwrap();
        assert_eq!(said, "hello\n");
        assert_eq!(lonely.read(&mut [0]).unwrap(), 0);
    }
}
