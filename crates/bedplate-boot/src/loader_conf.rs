//! The loader's configuration: one sector, and with it the commit point of every change of what boots.
//!
//! ```text
//! timeout 0
//! default bedplate-<B>*       matches bedplate-<B>.conf and each trial whose base is B
//! #…                          padding, to exactly 512 bytes
//! ```
//!
//! Invariant: it is exactly [`SECTOR`] bytes long and only ever overwritten in place: a disk writes a
//! sector whole or not at all, and nothing is allocated.

use bedplate_model::record::DeploymentId;

/// The length of the file: what every disk writes in one piece.
pub const SECTOR: usize = 512;

/// What the loader is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderConf {
    /// How long the menu shows, in seconds; 0 means that a key must be held to see it.
    pub timeout: u32,
    /// The deployment whose entry boots, unless a trial based on it has tries left.
    pub default: DeploymentId,
}

impl LoaderConf {
    /// Prints it, padded to its sector.
    pub fn to_sector(&self) -> [u8; SECTOR] {
        let text = format!(
            "# Made by bedplate, exactly one sector, and only overwritten in place.\n\
             timeout {}\ndefault bedplate-{}*\n",
            self.timeout, self.default
        );
        let mut sector = [b'#'; SECTOR];
        // The text is at most 140 bytes long: two fixed keys, ten digits and eight.
        sector[..text.len()].copy_from_slice(text.as_bytes());
        sector[SECTOR - 1] = b'\n';
        sector
    }

    /// Parses it, or returns `None` where the default is not one of ours.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes.get(..SECTOR.min(bytes.len()))?).ok()?;
        let mut timeout = 0;
        let mut default = None;
        for line in text.lines() {
            match line.trim().split_once(char::is_whitespace) {
                Some(("timeout", value)) => timeout = value.trim().parse().ok()?,
                Some(("default", value)) => {
                    let pattern = value.trim().strip_prefix("bedplate-")?;
                    default = Some(pattern.strip_suffix('*')?.parse().ok()?);
                }
                _ => {}
            }
        }
        Some(Self {
            timeout,
            default: default?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_prints_as_it_parses_and_fills_its_sector() {
        for timeout in [0, u32::MAX] {
            let conf = LoaderConf {
                timeout,
                default: DeploymentId([0xff; 4]),
            };
            let sector = conf.to_sector();
            assert_eq!(LoaderConf::parse(&sector), Some(conf));
            assert!(sector.is_ascii() && sector.ends_with(b"\n"));
        }
    }

    #[test]
    fn a_default_of_others_is_not_ours() {
        for text in [
            "",
            "default debian*",
            "default bedplate-01020304",
            "timeout x",
            "\u{0}",
        ] {
            assert_eq!(LoaderConf::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(LoaderConf::parse(&[0xff; 512]), None);
    }
}
