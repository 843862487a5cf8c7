//! Sizes as people read them: what was counted in powers of 1000, limits in the powers of 2 they are.

use std::fmt;

/// Prints a length with a unit that keeps it short: `12.3 MB`, as podman does (powers of 1000).
pub fn bytes(length: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if length < 1000 {
        return format!("{length} B");
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "one digit after the point is shown"
    )]
    let mut value = length as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A size in bytes, shown for people in the units that limits are given in: `4 MiB`, `1.5 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let Some(unit) = (self.0.max(1).ilog2() / 10).checked_sub(1) else {
            return write!(f, "{} bytes", self.0);
        };
        let shift = 10 * (unit + 1);
        let (whole, rest) = (self.0 >> shift, self.0 & ((1 << shift) - 1));
        // Ten times what is left stays below 2^64: it is less than 2^60.
        match (rest * 10) >> shift {
            0 => write!(f, "{whole} {}", UNITS[unit as usize]),
            tenths => write!(f, "{whole}.{tenths} {}", UNITS[unit as usize]),
        }
    }
}

/// Parses a length of time, a number with `s`, `m`, `h`, `d` or `w` behind it, into seconds.
pub fn seconds(text: &str) -> Option<u64> {
    let units = [
        ("s", 1),
        ("m", 60),
        ("h", 3600),
        ("d", 86400),
        ("w", 7 * 86400),
    ];
    let (digits, unit) = units
        .into_iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = is_number.then(|| digits.parse().ok())??;
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_short_and_never_round_up_to_a_thousand() {
        for (length, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (1_145_800_000, "1.1 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(length), text);
        }
    }

    #[test]
    fn sizes_are_shown_in_the_units_of_limits() {
        for (size, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (4 << 20, "4 MiB"),
            (3 << 29, "1.5 GiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
            (64 << 30, "64 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(Size(size).to_string(), text);
        }
    }

    #[test]
    fn lengths_of_time_have_one_unit() {
        assert_eq!(seconds("30s"), Some(30));
        assert_eq!(seconds("12h"), Some(43200));
        assert_eq!(seconds("2w"), Some(1_209_600));
        for text in ["", "d", "5", "-1d", "+1d", "1dd", "99999999999999999w"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
