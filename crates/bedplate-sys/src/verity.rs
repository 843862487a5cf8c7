//! fs-verity: the kernel keeps a file's digest, and refuses to return bytes that do not fit it.
//!
//! ```text
//! write → close every writer → enable (the file is read-only for ever) → measure → compare
//! ```
//!
//! Invariant: blocks are 4096 bytes and there is no salt, so that a digest is a function of content.

use std::fs::File;
use std::io;

use rustix::io::Errno;
use rustix::ioctl::{Setter, Updater, opcode};

/// The block size that every digest of ours is computed over.
const BLOCK_SIZE: u32 = 4096;
/// The longest digest the kernel has: SHA-512.
const DIGEST_MAX: usize = 64;

/// `struct fsverity_enable_arg`.
#[repr(C)]
struct EnableArgument {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved_1: u32,
    signature: u64,
    reserved_2: [u64; 11],
}

/// `struct fsverity_digest`: the fixed part, which gives the ioctl its number.
#[repr(C)]
struct DigestHead {
    algorithm: u16,
    size: u16,
}

/// The same with room for the longest digest.
#[repr(C)]
struct DigestArgument {
    algorithm: u16,
    size: u16,
    digest: [u8; DIGEST_MAX],
}

const FS_IOC_ENABLE_VERITY: rustix::ioctl::Opcode = opcode::write::<EnableArgument>(b'f', 133);
const FS_IOC_MEASURE_VERITY: rustix::ioctl::Opcode = opcode::read_write::<DigestHead>(b'f', 134);

/// Seals a file: from now on it is read-only, and the kernel checks every block that is read.
///
/// `file` must be open for reading alone, and nobody may have it open for writing. `algorithm` is the
/// kernel's number (1 is SHA-256, 2 is SHA-512). A file that is sealed already counts as success: what
/// it is sealed as is for [`measure`] to say.
pub fn enable(file: &File, algorithm: u8) -> io::Result<()> {
    let argument = EnableArgument {
        version: 1,
        hash_algorithm: u32::from(algorithm),
        block_size: BLOCK_SIZE,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        reserved_1: 0,
        signature: 0,
        reserved_2: [0; 11],
    };
    // SAFETY: the opcode is that of FS_IOC_ENABLE_VERITY, whose argument is exactly this structure; its
    // two pointers are null with length 0, so the kernel reads nothing else.
    let outcome = unsafe {
        let request = Setter::<FS_IOC_ENABLE_VERITY, _>::new(argument);
        rustix::ioctl::ioctl(file, request)
    };
    match outcome {
        // Sealed by somebody else, or before a crash: the digest tells whether it is the right one.
        Err(Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}

/// Returns the algorithm's number and the digest of a sealed file, or `None` where it is not sealed.
pub fn measure(file: &File) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut argument = DigestArgument {
        algorithm: 0,
        size: DIGEST_MAX as u16,
        digest: [0; DIGEST_MAX],
    };
    // SAFETY: FS_IOC_MEASURE_VERITY writes the head and at most `size` bytes behind it, and the
    // structure has room for exactly that many.
    let outcome = unsafe {
        let request = Updater::<FS_IOC_MEASURE_VERITY, _>::new(&mut argument);
        rustix::ioctl::ioctl(file, request)
    };
    match outcome {
        Ok(()) => {
            let digest = argument
                .digest
                .get(..usize::from(argument.size))
                .ok_or(Errno::OVERFLOW)?;
            Ok(Some((argument.algorithm as u8, digest.to_vec())))
        }
        // The file is not sealed, or the file system or kernel has no fs-verity at all.
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOTTY) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether an error of [`enable`] means that this file system or kernel cannot seal files.
pub fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctl_numbers_are_those_of_the_kernel() {
        assert_eq!(FS_IOC_ENABLE_VERITY, 0x4080_6685);
        assert_eq!(FS_IOC_MEASURE_VERITY, 0xc004_6686);
    }

    #[test]
    fn an_unsealed_file_has_no_measurement() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(measure(&file).unwrap(), None);
    }

    #[test]
    fn sealing_works_or_says_that_it_is_not_supported() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sealed");
        std::fs::write(&path, b"bytes").unwrap();
        let file = File::open(&path).unwrap();
        match enable(&file, 1) {
            Ok(()) => {
                let (algorithm, digest) = measure(&file).unwrap().expect("it was just sealed");
                assert_eq!((algorithm, digest.len()), (1, 32));
            }
            Err(error) => assert!(is_unsupported(&error), "{error}"),
        }
    }
}
