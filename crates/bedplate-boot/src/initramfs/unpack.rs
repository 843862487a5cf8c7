//! Kernel modules as distributions pack them.

use std::io::{self, Read};

/// The most bytes that a module unpacks to.
const MODULE_MAX: u64 = 64 << 20;

/// Unpacks a module by the end of its name, and returns its path without that end.
pub(super) fn module(path: &str, packed: Vec<u8>) -> io::Result<(String, Vec<u8>)> {
    let bytes = if let Some(plain) = path.strip_suffix(".gz") {
        return unpacked(plain, flate2::read::GzDecoder::new(&packed[..]));
    } else if let Some(plain) = path.strip_suffix(".xz") {
        return unpacked(plain, lzma_rust2::XzReader::new(&packed[..], false));
    } else if let Some(plain) = path.strip_suffix(".zst") {
        return unpacked(plain, zstd::stream::read::Decoder::new(&packed[..])?);
    } else {
        packed
    };
    Ok((path.to_owned(), bytes))
}

fn unpacked(plain: &str, from: impl Read) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    from.take(MODULE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MODULE_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it unpacks to more than 64 MiB",
        ));
    }
    Ok((plain.to_owned(), bytes))
}
