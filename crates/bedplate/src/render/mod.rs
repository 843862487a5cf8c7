//! Drawing: tables for people, JSON for programs, progress for terminals.

pub(crate) mod progress;
pub(crate) mod table;

use std::io::{self, Write};

pub(crate) use bedplate_model::human::bytes;

use serde::Serialize;

/// Writes a document for programs: indented JSON and a newline.
pub(crate) fn json(out: &mut dyn Write, document: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, document)?;
    writeln!(out)
}

/// Says on standard error what is worth knowing, and no failure.
pub(crate) fn note(text: &str) {
    // Where nobody listens there, the result still counts.
    let _ = writeln!(io::stderr(), "note: {text}");
}

/// Prints how many there are of something: `1 item`, `2 items`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Prints how long ago something was: `3 minutes ago`.
pub(crate) fn ago(then: i64, now: i64) -> String {
    let seconds = now.saturating_sub(then);
    let (count, unit) = match seconds {
        ..0 => return moment(then),
        0..5 => return "just now".to_owned(),
        5..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86400 => (seconds / 3600, "hour"),
        _ => (seconds / 86400, "day"),
    };
    format!("{} ago", counted(count as u64, unit))
}

/// Prints a point in time in RFC 3339 (UTC).
pub(crate) fn moment(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(
        |_| format!("{seconds} s since 1970"),
        |time| time.to_string(),
    )
}

/// Shortens a digest to the 12 digits that people compare.
pub(crate) fn short(digest: &str) -> &str {
    let hex = digest.rsplit(':').next().unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_as_people_tell_them() {
        for (then, text) in [
            (1000, "just now"),
            (990, "10 seconds ago"),
            (940, "1 minute ago"),
            (0, "16 minutes ago"),
        ] {
            assert_eq!(ago(then, 1000), text);
        }
        assert_eq!(ago(2000, 1000), "1970-01-01T00:33:20Z");
    }
}
