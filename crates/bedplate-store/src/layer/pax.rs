//! PAX records and the numbers of tar headers: the small grammars, each printed and parsed here.
//!
//! ```text
//! 30 mtime=1350244992.023960108\n        length of the whole record, space, key, '=', value, newline
//! ```
//!
//! Invariant: what is malformed is refused, never skipped; two tools that skip differently see two
//! different archives.

use bedplate_model::Timestamp;

/// Splits a PAX header's data into keys and values, or returns `None` when it is malformed.
pub(super) fn records(mut data: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    // Some writers count the NULs of the padding into the size.
    while data.iter().any(|byte| *byte != 0) {
        let space = data.iter().take(20).position(|byte| *byte == b' ')?;
        let length = usize::try_from(decimal(&data[..space])?).ok()?;
        let (record, rest) = data.split_at_checked(length)?;
        let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        if equals == 0 {
            return None;
        }
        records.push((&pair[..equals], &pair[equals + 1..]));
        data = rest;
    }
    Some(records)
}

/// Appends one record.
pub(super) fn push_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    // The length counts its own digits; one more digit may make one more digit.
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Parses digits, and nothing but digits.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Parses a PAX time: an optional minus, seconds, an optional fraction. Digits after the ninth are dropped.
pub(super) fn parse_time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..9).fold(0_u32, |sum, position| {
        sum * 10 + u32::from(fraction.get(position).map_or(0, |digit| digit - b'0'))
    });
    let seconds = i128::from(decimal(whole)?);
    let (seconds, nanoseconds) = match (negative, nanoseconds) {
        (false, nanoseconds) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        // -0.25 is a second before the epoch and 0.75 after that.
        (true, nanoseconds) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    };
    Some(Timestamp {
        seconds: i64::try_from(seconds).ok()?,
        nanoseconds,
    })
}

/// Prints a time as [`parse_time`] reads it.
pub(super) fn print_time(time: Timestamp) -> String {
    let negative = time.seconds < 0;
    let (seconds, nanoseconds) = match (negative, time.nanoseconds) {
        (true, 0) | (false, _) => (i128::from(time.seconds).abs(), time.nanoseconds),
        (true, nanoseconds) => (
            -(i128::from(time.seconds) + 1),
            1_000_000_000_u32.saturating_sub(nanoseconds),
        ),
    };
    let sign = if negative { "-" } else { "" };
    let text = format!("{sign}{seconds}.{nanoseconds:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Parses a number of a header: octal digits between spaces and NULs, or GNU's base 256 with sign.
pub(super) fn header_number(field: &[u8]) -> Option<i128> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Bit 6 is the sign; 12 bytes are 95 bits and fit.
        let start = if first & 0x40 != 0 {
            i128::from(first) - 256
        } else {
            i128::from(first & 0x3f)
        };
        return field[1..].iter().try_fold(start, |sum, byte| {
            sum.checked_mul(256)?.checked_add(i128::from(*byte))
        });
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field
        .iter()
        .position(|byte| !blank(byte))
        .unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    digits[..end]
        .iter()
        .try_fold(0, |sum: i128, digit| match digit {
            b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i128::from(digit - b'0')),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn malformed_records_are_refused_not_skipped() {
        assert_eq!(records(b"6 a=b\n").unwrap(), [(&b"a"[..], &b"b"[..])]);
        assert_eq!(records(b"6 a=b\n\0\0").unwrap().len(), 1);
        for bad in [
            &b"7 a=b\n"[..],
            b"5 a=b\n",
            b"0 a=b\n",
            b"-6 a=b\n",
            b" a=b\n",
            b"6 a b\n",
            b"5 =b\n",
            b"99999999999999999999 a=b\n",
            b"18446744073709551615 a=b\n",
            b"6 a=b\n6 a",
            b"2 \n",
        ] {
            assert_eq!(records(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn header_numbers_have_two_forms() {
        for (field, wanted) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"0000648\0", None),
            (b"-000644\0", None),
            (b"\x80\0\0\0\x01\0\0\0\0\0\0\0", Some(1 << 56)),
            (&[0xff; 12], Some(-1)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\x05", Some((1 << 64) + 5)),
        ] {
            assert_eq!(header_number(field), wanted, "{field:?}");
        }
    }

    proptest! {
        #[test]
        fn a_time_prints_as_it_parses(seconds: i64, nanoseconds in 0_u32..1_000_000_000) {
            let time = Timestamp { seconds, nanoseconds };
            prop_assert_eq!(parse_time(print_time(time).as_bytes()), Some(time));
        }

        #[test]
        fn a_record_parses_as_it_was_printed(key in "[a-z.]{1,12}", value in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut out = Vec::new();
            push_record(&mut out, key.as_bytes(), &value);
            prop_assert_eq!(records(&out), Some(vec![(key.as_bytes(), value.as_slice())]));
        }
    }
}
