//! Times as FAT has them (Microsoft's specification 1.03, "Date and Time Formats").
//!
//! Invariant: month and day are at least 1. An all-zero date, which `fatfs` writes without a clock, is
//! none.

/// When a file was made, changed or read: local time without a zone, in steps of two seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FatTime {
    /// Years since 1980, month and day in 7, 4 and 5 bits.
    pub(super) date: u16,
    /// Hour, minute and half seconds in 5, 6 and 5 bits.
    pub(super) time: u16,
}

impl FatTime {
    /// The first one that there is: 1980-01-01, midnight.
    pub const FIRST: Self = Self {
        date: date(1980, 1, 1),
        time: time(0, 0, 0),
    };

    /// The last one: the end of 2107.
    const LAST: Self = Self {
        date: date(2107, 12, 31),
        time: time(23, 59, 59),
    };

    /// Makes the time of so many seconds since 1970 in UTC; what FAT cannot have becomes the nearest
    /// that it can.
    pub fn from_unix(seconds: i64) -> Self {
        const DAY: i64 = 86_400;
        let (year, month, day) = civil(seconds.div_euclid(DAY));
        let within = seconds.rem_euclid(DAY);
        match year {
            ..1980 => Self::FIRST,
            2108.. => Self::LAST,
            _ => Self {
                date: date(year, month, day),
                time: time(within / 3600, within / 60 % 60, within % 60),
            },
        }
    }
}

/// Packs a day of 1980 to 2107.
const fn date(year: i64, month: i64, day: i64) -> u16 {
    (((year - 1980) << 9) | (month << 5) | day) as u16
}

/// Packs a time of day.
const fn time(hour: i64, minute: i64, second: i64) -> u16 {
    ((hour << 11) | (minute << 5) | (second / 2)) as u16
}

/// Turns days since 1970-01-01 into year, month and day of the Gregorian calendar: years begin in March
/// here, so that the leap day is the last one, and 400 of them always have 146,097 days.
fn civil(days: i64) -> (i64, i64, i64) {
    const MARCH_0000: i64 = 719_468;
    const ERA: i64 = 146_097;
    let days = days + MARCH_0000;
    let of_era = days.rem_euclid(ERA);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + 400 * days.div_euclid(ERA) + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_month_and_a_day_and_stay_in_range() {
        for (seconds, day, of_day) in [
            (i64::MIN, (1980, 1, 1), (0, 0, 0)),
            (0, (1980, 1, 1), (0, 0, 0)),
            (315_532_800, (1980, 1, 1), (0, 0, 0)),
            (951_782_400, (2000, 2, 29), (0, 0, 0)),
            (1_700_000_001, (2023, 11, 14), (22, 13, 21)),
            (4_354_819_199, (2107, 12, 31), (23, 59, 59)),
            (i64::MAX, (2107, 12, 31), (23, 59, 59)),
        ] {
            let found = FatTime::from_unix(seconds);
            assert_eq!(found.date, date(day.0, day.1, day.2), "{seconds}");
            assert_eq!(found.time, time(of_day.0, of_day.1, of_day.2), "{seconds}");
        }
        // As a directory entry has it: 1980-01-01 is 0x0021.
        assert_eq!((FatTime::FIRST.date, FatTime::FIRST.time), (0x0021, 0));
    }
}
