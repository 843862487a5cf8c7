//! Layers as they come: compressed bytes in, tar out, and never more memory than a window.
//!
//! gzip may have several members, and zeros behind them (tapes and disks are written in whole blocks);
//! Zstandard several frames and skippable ones between them.

use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use bedplate_model::oci::Compression;
use flate2::bufread::GzDecoder;

/// The largest window of a Zstandard frame that is accepted, as a power of two: 128 MiB, what the
/// strongest level of the `zstd` program uses. Levels below 20 use 8 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Returns what a compressed stream holds.
pub(crate) fn reader<'a>(
    compression: Compression,
    source: impl BufRead + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(source),
        Compression::Gzip => Box::new(GzipMembers {
            member: Some(GzDecoder::new(source)),
        }),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
    })
}

/// Returns what a file or stream holds, whatever it is compressed with: its first bytes tell.
///
/// An empty one is refused: it is what is left of a command that failed.
pub fn decompress_any<'a>(
    mut source: impl BufRead + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let unsupported = |name| {
        let text =
            format!("it is compressed with {name}, which is not supported (gzip and zstd are)");
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    };
    let compression = match source.fill_buf()? {
        [] => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is empty")),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => return unsupported("xz"),
        [b'B', b'Z', b'h', ..] => return unsupported("bzip2"),
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    };
    reader(compression, source)
}

/// The members of a gzip stream, one behind the other.
struct GzipMembers<R> {
    /// The one that is read; none only while it is exchanged for the next.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let count = member.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            if !skip_zeros(member.get_mut())? {
                return Ok(0);
            }
            let source = self.member.take().map(GzDecoder::into_inner);
            self.member = source.map(GzDecoder::new);
        }
        Ok(0)
    }
}

/// Takes all zeros, and returns whether something stands behind them.
fn skip_zeros(source: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = source.fill_buf()?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let others = zeros < bytes.len();
        source.consume(zeros);
        if others {
            return Ok(true);
        }
    }
}

/// How much one transfer may unpack, over all its layers.
#[derive(Debug)]
pub(crate) struct Budget {
    left: AtomicU64,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            left: AtomicU64::new(bytes),
        }
    }

    /// Takes from the budget; returns false when it does not have that much.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(compression: Compression, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut unpacked = Vec::new();
        reader(compression, bytes)?.read_to_end(&mut unpacked)?;
        Ok(unpacked)
    }

    #[test]
    fn several_gzip_members_are_one_stream() {
        let bytes = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
        assert_eq!(unpack(Compression::Gzip, &bytes).unwrap(), b"one two");
    }

    #[test]
    fn zeros_behind_gzip_members_are_padding() {
        let bytes = [&gzip(b"one ")[..], &[0; 9], &gzip(b"two"), &[0; 20_000]].concat();
        assert_eq!(unpack(Compression::Gzip, &bytes).unwrap(), b"one two");
        let mut small = Vec::new();
        let source = io::BufReader::with_capacity(7, &bytes[..]);
        let mut read = reader(Compression::Gzip, source).unwrap();
        read.read_to_end(&mut small).unwrap();
        assert_eq!(small, b"one two");
        assert_eq!(read.read(&mut [0; 10]).unwrap(), 0, "the end stays the end");
        let garbage = [&gzip(b"one")[..], &[0; 9], b"garbage"].concat();
        assert!(unpack(Compression::Gzip, &garbage).is_err());
    }

    #[test]
    fn several_zstd_frames_and_skippable_ones_are_one_stream() {
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
        let skippable = [
            &0x184D_2A50_u32.to_le_bytes()[..],
            &3_u32.to_le_bytes(),
            b"xyz",
        ]
        .concat();
        let bytes = [
            skippable.clone(),
            frame(b"one "),
            skippable.clone(),
            frame(b"two"),
            skippable,
        ]
        .concat();
        assert_eq!(unpack(Compression::Zstd, &bytes).unwrap(), b"one two");
    }

    #[test]
    fn damage_is_an_error_and_not_an_early_end() {
        for (compression, bytes) in [
            (Compression::Gzip, gzip(&[7; 1000])),
            (
                Compression::Zstd,
                zstd::encode_all(&[7; 1000][..], 3).unwrap(),
            ),
        ] {
            for cut in 1..bytes.len() {
                assert!(
                    unpack(compression, &bytes[..cut]).is_err(),
                    "{compression:?} {cut}"
                );
            }
            let trailing = [&bytes[..], b"garbage"].concat();
            assert!(unpack(compression, &trailing).is_err(), "{compression:?}");
        }
    }

    #[test]
    fn a_budget_is_never_overdrawn() {
        let budget = Budget::new(10);
        assert!(budget.take(10) && !budget.take(1) && budget.take(0));
    }
}
