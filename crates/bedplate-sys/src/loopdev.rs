//! Loop devices: a file as a block device, for kernels that mount EROFS from nothing else.
//!
//! Invariant: a device frees itself when its last user goes, so none is left behind by a crash.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, Setter};

/// How often a free device is looked for: somebody else may take it between finding and using it.
const TRIES: u32 = 64;

const LOOP_CTL_GET_FREE: Opcode = 0x4c82;
const LOOP_CONFIGURE: Opcode = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `LOOP_CTL_GET_FREE`, which returns the number itself.
struct GetFree;

// SAFETY: the call takes no argument and writes no memory; its result is a number.
unsafe impl Ioctl for GetFree {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut core::ffi::c_void {
        core::ptr::null_mut()
    }

    unsafe fn output_from_ptr(
        output: IoctlOutput,
        _: *mut core::ffi::c_void,
    ) -> rustix::io::Result<u32> {
        u32::try_from(output).map_err(|_| Errno::RANGE)
    }
}

/// A loop device in use. When it is dropped and no mount uses the device, the device is free again.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _device: File,
}

impl LoopDevice {
    /// Returns the device node's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes a file a read-only block device.
pub fn attach_read_only(file: &File) -> io::Result<LoopDevice> {
    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    let mut taken = Errno::BUSY;
    for _ in 0..TRIES {
        // SAFETY: see `GetFree`.
        let number = unsafe { ioctl::ioctl(control.as_fd(), GetFree)? };
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::open(&path)?;
        let config = LoopConfig {
            fd: file.as_raw_fd() as u32,
            block_size: 0,
            info: LoopInfo {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                size_limit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: LOOP_CONFIGURE reads a `loop_config`, which `config` is by its layout, and takes a
        // reference of its own to the file whose descriptor stands in it.
        let outcome = unsafe {
            let call = Setter::<LOOP_CONFIGURE, LoopConfig>::new(config);
            ioctl::ioctl(device.as_fd(), call)
        };
        match outcome {
            Ok(()) => {
                return Ok(LoopDevice {
                    path,
                    _device: device,
                });
            }
            Err(error @ Errno::BUSY) => taken = error,
            Err(error) => return Err(error.into()),
        }
    }
    Err(taken.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn layouts_are_those_of_the_kernels_headers() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }

    #[test]
    fn a_file_is_read_back_through_its_device_where_loop_devices_may_be_made() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; 8192]).unwrap();
        let Ok(device) = attach_read_only(&File::open(file.path()).unwrap()) else {
            return; // not root, or no loop devices here
        };
        let mut bytes = Vec::new();
        File::open(device.path())
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        assert_eq!(bytes, vec![7; 8192]);
    }
}
