//! What a virtual machine and whoever runs it say to each other, through a port of a virtio console.
//!
//! ```text
//! kind (1 byte) · length (4 bytes, little-endian) · payload
//!
//! host  → guest  argument* script        a script, and what it is called with
//!                key hostkey shell       a shell for the holder of a key
//!                poweroff
//! guest → host   early · up              how far the boot is
//!                out* err* ended         what the script said, and how it ended
//!                ready                   the shell is there
//!                failed                  what could not be done
//! ```
//!
//! Invariant: nothing listens unless [`FLAG`] stands on the kernel command line, and a frame never makes
//! its reader take more memory than the direction's limit.

use std::io::{self, Read, Write};

/// Stands on the command line of a machine that takes orders from whoever runs it.
pub const FLAG: &str = "bedplate.vm";
/// The value of [`FLAG`] that asks for a console that needs no password.
pub const CONSOLE: &str = "console";
/// The name of the port that frames go through.
pub const CONTROL_PORT: &str = "bedplate.control";
/// The name of the port that an ssh connection goes through, as it is.
pub const SHELL_PORT: &str = "bedplate.shell";

/// The most bytes of a frame to a guest: a script is one frame.
pub const TO_GUEST_MAX: u32 = 16 << 20;
/// The most bytes of a frame from a guest, which nobody vouches for.
pub const FROM_GUEST_MAX: u32 = 1 << 20;

/// What a guest is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToGuest {
    /// One argument of the script that follows.
    Argument(Vec<u8>),
    /// A script, to be run as root.
    Script(Vec<u8>),
    /// The line for `authorized_keys`.
    Key(Vec<u8>),
    /// The private key by which the guest is known.
    HostKey(Vec<u8>),
    /// Serve a shell to the holder of the key.
    Shell,
    /// Switch off in good order.
    PowerOff,
}

/// What a guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromGuest {
    /// Early boot runs, and hears.
    Early,
    /// The system is up.
    Up,
    /// Some of the script's standard output.
    Output(Vec<u8>),
    /// Some of its standard error.
    Error(Vec<u8>),
    /// How the script ended.
    Ended(u8),
    /// The shell is there.
    Ready,
    /// What could not be done, in words.
    Failed(String),
}

impl ToGuest {
    /// Writes a frame.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Argument(bytes) => frame(to, b'a', bytes),
            Self::Script(bytes) => frame(to, b's', bytes),
            Self::Key(bytes) => frame(to, b'k', bytes),
            Self::HostKey(bytes) => frame(to, b'h', bytes),
            Self::Shell => frame(to, b'l', &[]),
            Self::PowerOff => frame(to, b'p', &[]),
        }
    }

    /// Reads a frame; `None` where nobody speaks any more.
    pub fn read(from: &mut dyn Read) -> io::Result<Option<Self>> {
        let Some((kind, bytes)) = read_frame(from, TO_GUEST_MAX)? else {
            return Ok(None);
        };
        Ok(Some(match kind {
            b'a' => Self::Argument(bytes),
            b's' => Self::Script(bytes),
            b'k' => Self::Key(bytes),
            b'h' => Self::HostKey(bytes),
            b'l' => Self::Shell,
            b'p' => Self::PowerOff,
            _ => return Err(unknown(kind)),
        }))
    }
}

impl FromGuest {
    /// Writes a frame.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Early => frame(to, b'B', &[]),
            Self::Up => frame(to, b'U', &[]),
            Self::Output(bytes) => frame(to, b'O', bytes),
            Self::Error(bytes) => frame(to, b'E', bytes),
            Self::Ended(code) => frame(to, b'X', &[*code]),
            Self::Ready => frame(to, b'R', &[]),
            Self::Failed(text) => frame(to, b'F', text.as_bytes()),
        }
    }

    /// Reads a frame; `None` where nobody speaks any more.
    pub fn read(from: &mut dyn Read) -> io::Result<Option<Self>> {
        let Some((kind, bytes)) = read_frame(from, FROM_GUEST_MAX)? else {
            return Ok(None);
        };
        Ok(Some(match kind {
            b'B' => Self::Early,
            b'U' => Self::Up,
            b'O' => Self::Output(bytes),
            b'E' => Self::Error(bytes),
            b'X' => match bytes[..] {
                [code] => Self::Ended(code),
                _ => return Err(unknown(kind)),
            },
            b'R' => Self::Ready,
            b'F' => Self::Failed(String::from_utf8_lossy(&bytes).into_owned()),
            _ => return Err(unknown(kind)),
        }))
    }
}

/// Writes head and payload at once, so that frames of several threads do not mix where each holds a lock.
fn frame(to: &mut dyn Write, kind: u8, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|length| *length <= TO_GUEST_MAX)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a frame has 16 MiB at most"))?;
    let mut bytes = Vec::with_capacity(5 + payload.len());
    bytes.push(kind);
    bytes.extend(length.to_le_bytes());
    bytes.extend(payload);
    to.write_all(&bytes)?;
    to.flush()
}

fn read_frame(from: &mut dyn Read, max: u32) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut kind = [0];
    loop {
        match from.read(&mut kind) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > max {
        let problem = format!("a frame of {length} bytes is longer than {max}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    // What is announced is not there yet: memory grows with what comes.
    let mut bytes = Vec::new();
    from.take(length.into()).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != u64::from(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((kind[0], bytes)))
}

fn unknown(kind: u8) -> io::Error {
    let problem = format!("no frame is of the kind {kind}");
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_frame_is_read_as_it_was_written() {
        let mut bytes = Vec::new();
        let told = [
            ToGuest::Argument(b"--all".to_vec()),
            ToGuest::Script(b"#!/bin/sh\nexit 7\n".to_vec()),
            ToGuest::Key(b"ssh-ed25519 AAAA".to_vec()),
            ToGuest::HostKey(Vec::new()),
            ToGuest::Shell,
            ToGuest::PowerOff,
        ];
        for frame in &told {
            frame.write(&mut bytes).unwrap();
        }
        let mut from = &bytes[..];
        for frame in told {
            assert_eq!(ToGuest::read(&mut from).unwrap(), Some(frame));
        }
        assert_eq!(ToGuest::read(&mut from).unwrap(), None);

        let mut bytes = Vec::new();
        let said = [
            FromGuest::Early,
            FromGuest::Up,
            FromGuest::Output(vec![0, 255]),
            FromGuest::Error(b"no".to_vec()),
            FromGuest::Ended(7),
            FromGuest::Ready,
            FromGuest::Failed("cannot mount the root".into()),
        ];
        for frame in &said {
            frame.write(&mut bytes).unwrap();
        }
        let mut from = &bytes[..];
        for frame in said {
            assert_eq!(FromGuest::read(&mut from).unwrap(), Some(frame));
        }
    }

    #[test]
    fn a_guest_that_announces_too_much_or_ends_in_the_middle_is_an_error() {
        let mut long = vec![b'O'];
        long.extend((FROM_GUEST_MAX + 1).to_le_bytes());
        assert!(FromGuest::read(&mut &long[..]).is_err());
        assert!(FromGuest::read(&mut &b"O\x05\0\0\0ab"[..]).is_err());
        assert!(FromGuest::read(&mut &b"O\x05"[..]).is_err());
        assert!(FromGuest::read(&mut &b"X\x02\0\0\0ab"[..]).is_err());
        assert!(FromGuest::read(&mut &b"?\0\0\0\0"[..]).is_err());
    }

    proptest! {
        #[test]
        fn what_a_guest_sends_ends_in_a_frame_or_an_error(bytes: Vec<u8>) {
            let mut from = &bytes[..];
            while let Ok(Some(_)) = FromGuest::read(&mut from) {}
        }
    }
}
