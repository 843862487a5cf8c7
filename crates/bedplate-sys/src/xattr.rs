//! Extended attributes of open files, and of names in an open directory that cannot be opened
//! themselves (links, devices).
//!
//! Invariant: a symbolic link is never followed.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Extended attributes by their full name.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// The longest list of names that Linux returns (`XATTR_LIST_MAX`), and the longest value.
const LONGEST: usize = 64 * 1024;
/// Nearly every list and value fits in here, so that one call is enough.
const USUAL: usize = 512;

/// Reads every extended attribute of an open file or directory.
pub fn of_file(file: impl AsFd) -> io::Result<Xattrs> {
    let file = file.as_fd();
    read_all(
        |buffer| rustix::fs::flistxattr(file, buffer),
        |name, buffer| rustix::fs::fgetxattr(file, name, buffer),
    )
}

/// Reads every extended attribute of the entry `name`, without following it.
pub fn of_entry(directory: impl AsFd, name: &OsStr) -> io::Result<Xattrs> {
    let path = entry_path(directory, name);
    read_all(
        |buffer| rustix::fs::llistxattr(&*path, buffer),
        |attribute, buffer| rustix::fs::lgetxattr(&*path, attribute, buffer),
    )
}

/// Sets one extended attribute of an open file or directory.
pub fn set_on_file(file: impl AsFd, name: &[u8], value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(
        file,
        OsStr::from_bytes(name),
        value,
        XattrFlags::empty(),
    )?)
}

/// Sets one extended attribute of the entry `name` of a directory, without following it.
pub fn set_on_entry(
    directory: impl AsFd,
    name: &OsStr,
    attribute: &[u8],
    value: &[u8],
) -> io::Result<()> {
    Ok(rustix::fs::lsetxattr(
        entry_path(directory, name),
        OsStr::from_bytes(attribute),
        value,
        XattrFlags::empty(),
    )?)
}

/// Removes one extended attribute of an open file or directory; one that is not there is fine.
pub fn remove_from_file(file: impl AsFd, name: &[u8]) -> io::Result<()> {
    match rustix::fs::fremovexattr(file, OsStr::from_bytes(name)) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns a path to an entry that starts at the open directory, whatever its path is by now.
fn entry_path(directory: impl AsFd, name: &OsStr) -> OsString {
    let mut path = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    OsString::from_vec(path)
}

fn read_all(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&CStr, &mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Xattrs> {
    let mut xattrs = Xattrs::new();
    let names = match filled(&list) {
        Ok(names) => names,
        // A file system without extended attributes has none.
        Err(Errno::OPNOTSUPP) => return Ok(xattrs),
        Err(error) => return Err(error.into()),
    };
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let text = CString::new(name).map_err(|_| Errno::INVAL)?;
        match filled(&|buffer: &mut [u8]| get(&text, buffer)) {
            Ok(value) => {
                xattrs.insert(name.into(), value.into());
            }
            // Removed since it was listed.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(xattrs)
}

/// Calls with a small buffer, and with the largest possible one where that was too small.
fn filled(call: &dyn Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut usual = [0; USUAL];
    match call(&mut usual) {
        Ok(length) => Ok(usual.get(..length).ok_or(Errno::RANGE)?.to_vec()),
        Err(Errno::RANGE) => {
            let mut bytes = vec![0; LONGEST];
            let length = call(&mut bytes)?;
            bytes.truncate(length);
            Ok(bytes)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn attributes_are_read_as_they_were_set() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let file = File::create(&path).unwrap();
        let long = vec![b'x'; 2000];
        for (name, value) in [(&b"user.one"[..], &b"1"[..]), (b"user.long", &long)] {
            match set_on_file(&file, name, value) {
                // Some file systems of build machines have no user attributes.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return,
                other => other.unwrap(),
            }
        }
        let xattrs = of_file(&file).unwrap();
        assert_eq!(xattrs[&b"user.one"[..]][..], b"1"[..]);
        assert_eq!(xattrs[&b"user.long"[..]][..], long[..]);
        let opened = File::open(directory.path()).unwrap();
        assert_eq!(of_entry(&opened, OsStr::new("file")).unwrap(), xattrs);
        remove_from_file(&file, b"user.one").unwrap();
        remove_from_file(&file, b"user.one").unwrap();
        assert!(!of_file(&file).unwrap().contains_key(&b"user.one"[..]));
    }
}
