//! Kernel modules.
//!
//! Invariant: loading a module that is there already is success.

use std::fs::File;
use std::io;

use rustix::io::Errno;

/// Loads a module from its file, which must be plain: not every kernel unpacks modules itself.
pub fn load(file: &File) -> io::Result<()> {
    match rustix::system::finit_module(file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_module_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "no module").unwrap();
        assert!(load(&File::open(file.path()).unwrap()).is_err());
    }
}
