//! The loader's own update: two copies of systemd-boot, and never both at once.
//!
//! ```text
//! EFI/systemd/systemd-bootx64.efi   what our boot options start           first
//! EFI/BOOT/BOOTX64.EFI              what firmware starts without options  once the first has started a machine
//! ```
//!
//! Invariant: while one copy is replaced, the other is whole, and one that has started this machine is not
//! replaced before another has. No copy becomes older, and what is not systemd-boot is not ours.

use std::cmp::Ordering;
use std::fmt;

/// The copy that our boot options name, on the boot partition.
pub const PRIMARY: &str = "EFI/systemd/systemd-bootx64.efi";
/// The copy that firmware starts where no option names another, on the boot partition.
pub const REMOVABLE: &str = "EFI/BOOT/BOOTX64.EFI";

/// What stands before and after the name and version in systemd-boot, in a section for those who look.
const MAGIC: (&[u8], &[u8]) = (b"#### LoaderInfo: ", b" ####");
/// The name.
const NAME: &str = "systemd-boot ";
/// The longest version that is read.
const VERSION_MAX: usize = 128;

/// A version of systemd-boot: compared as the UAPI Version Format Specification says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(String);

impl Version {
    /// Finds it in the bytes of a loader, or `None` where that is not systemd-boot.
    pub fn of(loader: &[u8]) -> Option<Self> {
        let (before, after) = MAGIC;
        let start = loader
            .windows(before.len())
            .position(|window| window == before)?
            + before.len();
        let text = &loader[start..];
        let text = &text[..text.len().min(VERSION_MAX)];
        let end = text
            .windows(after.len())
            .position(|window| window == after)?;
        Self::told(std::str::from_utf8(&text[..end]).ok()?)
    }

    /// Reads what a loader says of itself: its name and its version.
    pub fn told(text: &str) -> Option<Self> {
        let version = text.strip_prefix(NAME)?.trim();
        (!version.is_empty()).then(|| Self(version.to_owned()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.0.as_bytes(), other.0.as_bytes())
    }
}

/// Compares two versions, step by step as the specification counts them.
fn compare(mut one: &[u8], mut other: &[u8]) -> Ordering {
    fn counts(byte: &u8) -> bool {
        byte.is_ascii_alphanumeric() || b"~-^.".contains(byte)
    }
    let run =
        |text: &[u8], kind: fn(&u8) -> bool| text.iter().take_while(|byte| kind(byte)).count();
    'next: loop {
        one = &one[run(one, |byte| !counts(byte))..];
        other = &other[run(other, |byte| !counts(byte))..];
        let first = |text: &[u8]| text.first().copied();
        // `~` is less than the end; then the end; then `-`, `^`, `.`.
        for mark in [Some(b'~'), None, Some(b'-'), Some(b'^'), Some(b'.')] {
            match (first(one) == mark, first(other) == mark) {
                (true, true) if mark.is_none() => return Ordering::Equal,
                (true, true) => {
                    (one, other) = (&one[1..], &other[1..]);
                    continue 'next;
                }
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                (false, false) => {}
            }
        }
        let digits: fn(&u8) -> bool = u8::is_ascii_digit;
        let letters: fn(&u8) -> bool = u8::is_ascii_alphabetic;
        let number = digits(&one[0]) || digits(&other[0]);
        let kind = if number { digits } else { letters };
        let (a, b) = (run(one, kind), run(other, kind));
        let (head, tail) = (&one[..a], &other[..b]);
        let order = if number {
            let plain = |text: &[u8]| {
                let zeros = text.iter().take_while(|byte| **byte == b'0').count();
                text[zeros..].to_vec()
            };
            let (head, tail) = (plain(head), plain(tail));
            head.len().cmp(&tail.len()).then_with(|| head.cmp(&tail))
        } else {
            head.cmp(tail)
        };
        if order != Ordering::Equal {
            return order;
        }
        (one, other) = (&one[a..], &other[b..]);
    }
}

/// One copy on the boot partition, beside what the image has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copy {
    /// It is not there.
    Missing,
    /// It is not systemd-boot.
    Foreign,
    /// It is the image's, to the byte.
    Same,
    /// It is another one.
    Other(Version),
}

impl Copy {
    /// Looks at a copy.
    pub fn look(copy: Option<&[u8]>, image: &[u8]) -> Self {
        match copy {
            None => Self::Missing,
            Some(bytes) if bytes == image => Self::Same,
            Some(bytes) => Version::of(bytes).map_or(Self::Foreign, Self::Other),
        }
    }

    fn is_behind(&self, image: &Version) -> bool {
        matches!(self, Self::Other(version) if version <= image)
    }
}

/// How this boot was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The loader's file, as the firmware names it (`LoaderImageIdentifier`).
    pub path: String,
    /// Its version (`LoaderInfo`).
    pub version: Version,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: both copies are the image's, or newer, or not ours.
    Nothing,
    /// This copy is written.
    Write(&'static str),
    /// The second copy follows when the first has started the machine.
    Waits,
}

/// Decides, for a proven image that brings a loader.
pub fn next(image: &Version, primary: &Copy, removable: &Copy, started: Option<&Started>) -> Step {
    match (primary, removable) {
        // Ours by its name, and whatever it is now, no firmware starts it as a loader of ours.
        (Copy::Missing | Copy::Foreign, _) => Step::Write(PRIMARY),
        (_, Copy::Missing) => Step::Write(REMOVABLE),
        // Without a second copy of ours there is nothing to fall back to.
        (_, Copy::Foreign) => Step::Nothing,
        (primary, _) if primary.is_behind(image) => Step::Write(PRIMARY),
        (Copy::Same, removable) if removable.is_behind(image) => {
            let by_primary = started.is_some_and(|started| {
                let path = started.path.replace('\\', "/");
                path.trim_start_matches('/').eq_ignore_ascii_case(PRIMARY)
                    && started.version == *image
            });
            if by_primary {
                Step::Write(REMOVABLE)
            } else {
                Step::Waits
            }
        }
        _ => Step::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn loader(version: &str, more: &str) -> Vec<u8> {
        format!("MZ\0\0{more}#### LoaderInfo: systemd-boot {version} ####\0").into_bytes()
    }

    fn version(text: &str) -> Version {
        Version(text.to_owned())
    }

    #[test]
    fn versions_are_ordered_as_the_specification_orders_them() {
        let rising = [
            "~rc1",
            "",
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
            "252.12-1~deb12u1",
            "252.12-1",
            "254.16-1~bpo12+1",
            "257.3-1",
        ];
        for (index, one) in rising.iter().enumerate() {
            for (place, other) in rising.iter().enumerate() {
                assert_eq!(
                    version(one).cmp(&version(other)),
                    index.cmp(&place),
                    "{one} and {other}"
                );
            }
        }
        assert_eq!(version("1.007").cmp(&version("1.7")), Ordering::Equal);
    }

    #[test]
    fn a_version_is_found_in_a_loader_and_not_elsewhere() {
        assert_eq!(
            Version::of(&loader("252.12-1", "x")),
            Some(version("252.12-1"))
        );
        for other in [
            &b"MZ"[..],
            b"",
            b"#### LoaderInfo: GRUB 2 ####",
            b"#### LoaderInfo: systemd-boot 252",
        ] {
            assert_eq!(Version::of(other), None);
        }
    }

    #[test]
    fn the_second_copy_follows_when_the_first_has_started_the_machine() {
        let (old, new) = (loader("252", ""), loader("254", ""));
        let image = version("254");
        let look = |bytes: &[u8]| Copy::look(Some(bytes), &new);
        let started = |path: &str, told: &str| {
            Some(Started {
                path: path.into(),
                version: version(told),
            })
        };
        let primary_path = r"\EFI\SYSTEMD\SYSTEMD-BOOTX64.EFI";
        let decide = |primary: &Copy, removable: &Copy, started: Option<Started>| {
            next(&image, primary, removable, started.as_ref())
        };
        let (behind, same) = (look(&old), look(&new));
        assert_eq!(
            decide(&behind, &behind, started(primary_path, "252")),
            Step::Write(PRIMARY)
        );
        assert_eq!(
            decide(&same, &behind, started(primary_path, "252")),
            Step::Waits
        );
        assert_eq!(
            decide(&same, &behind, started(r"\EFI\BOOT\BOOTX64.EFI", "254")),
            Step::Waits
        );
        assert_eq!(decide(&same, &behind, None), Step::Waits);
        assert_eq!(
            decide(&same, &behind, started(primary_path, "254")),
            Step::Write(REMOVABLE)
        );
        assert_eq!(decide(&same, &same, None), Step::Nothing);
        // Lost ones come back, from the one that is there.
        assert_eq!(decide(&Copy::Missing, &behind, None), Step::Write(PRIMARY));
        assert_eq!(
            decide(&behind, &Copy::Missing, None),
            Step::Write(REMOVABLE)
        );
        // Newer ones stay, and so does what somebody else put there.
        let newer = look(&loader("257", ""));
        assert_eq!(decide(&newer, &newer, None), Step::Nothing);
        assert_eq!(decide(&same, &look(b"MZ shim"), None), Step::Nothing);
        // Built again under the same version.
        assert_eq!(
            decide(&look(&loader("254", "again")), &same, None),
            Step::Write(PRIMARY)
        );
    }

    proptest! {
        #[test]
        fn an_order_is_one(one in "[0-9a-c~^.+-]{0,8}", other in "[0-9a-c~^.+-]{0,8}", third in "[0-9a-c~^.+-]{0,8}") {
            let [one, other, third] = [one, other, third].map(Version);
            prop_assert_eq!(one.cmp(&other), other.cmp(&one).reverse());
            if one <= other && other <= third {
                prop_assert!(one <= third);
            }
        }

        #[test]
        fn no_file_is_too_much(bytes: Vec<u8>) {
            let _ = Version::of(&bytes);
        }

        /// Whatever is there: what is replaced is never the only one that is whole.
        #[test]
        fn one_copy_always_stays(states in prop::array::uniform2(0..4_u8), by in prop::option::of(any::<bool>())) {
            let copy = |state: u8| match state {
                0 => Copy::Missing,
                1 => Copy::Foreign,
                2 => Copy::Same,
                _ => Copy::Other(version("250")),
            };
            let [primary, removable] = states.map(copy);
            let started = by.map(|primary| Started {
                path: if primary { PRIMARY } else { REMOVABLE }.to_owned(),
                version: version("254"),
            });
            let whole = |copy: &Copy| matches!(copy, Copy::Same | Copy::Other(_));
            match next(&version("254"), &primary, &removable, started.as_ref()) {
                Step::Write(PRIMARY) => prop_assert!(whole(&removable) || !whole(&primary)),
                Step::Write(_) => prop_assert!(whole(&primary)),
                Step::Nothing | Step::Waits => {}
            }
        }
    }
}
