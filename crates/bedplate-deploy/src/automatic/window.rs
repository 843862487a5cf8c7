//! When a machine may restart: windows of the week, in local time.
//!
//! ```text
//! Sat,Sun 02:00-06:00     Mon..Fri 22:00-04:00     03:30-05:00 (every day)
//! ```
//!
//! Invariant: a window that ends before it begins ends on the next day, and belongs to the day that it began on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// Minutes of a day, and of a week.
const DAY: u32 = 24 * 60;
const WEEK: u32 = 7 * DAY;

/// The days, as systemd's calendar names them.
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// A time of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime(u32);

impl LocalTime {
    /// Makes it of the days since Monday and the minutes since midnight.
    pub fn new(day: u32, minute: u32) -> Self {
        Self((day * DAY + minute) % WEEK)
    }
}

/// A time of the day, on some days of the week.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    days: [bool; 7],
    /// Minutes since midnight.
    begin: u32,
    /// How many minutes it lasts.
    length: u32,
}

impl Window {
    /// Returns how many minutes it is until the window opens: 0 while it is open.
    pub fn opens_in(&self, now: LocalTime) -> u32 {
        let begins = |day: u32| day * DAY + self.begin;
        let days = (0..7).filter(|day| self.days[*day as usize]);
        let waits = days.map(|day| {
            // Since it opened last.
            let since = (now.0 + WEEK - begins(day) % WEEK) % WEEK;
            if since < self.length { 0 } else { WEEK - since }
        });
        // A window has a day: its parser checks that.
        waits.min().unwrap_or(WEEK)
    }
}

impl FromStr for Window {
    type Err = ParseWindowError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseWindowError(text.chars().take(60).collect());
        let (days, times) = match text.trim().rsplit_once(char::is_whitespace) {
            Some((days, times)) => (parse_days(days).ok_or_else(wrong)?, times),
            None => ([true; 7], text.trim()),
        };
        let (begin, end) = times.split_once('-').ok_or_else(wrong)?;
        let begin = minute(begin)
            .filter(|begin| *begin < DAY)
            .ok_or_else(wrong)?;
        let end = minute(end).ok_or_else(wrong)?;
        let length = if end > begin {
            end - begin
        } else {
            end + DAY - begin
        };
        Ok(Self {
            days,
            begin,
            length,
        })
    }
}

fn parse_days(text: &str) -> Option<[bool; 7]> {
    let index = |name: &str| {
        let same = |day: &&str| day.eq_ignore_ascii_case(name.trim());
        DAYS.iter().position(same)
    };
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = match part.split_once("..") {
            Some((first, last)) => (index(first)?, index(last)?),
            None => (index(part)?, index(part)?),
        };
        let mut day = first;
        loop {
            days[day] = true;
            if day == last {
                break;
            }
            day = (day + 1) % 7;
        }
    }
    Some(days)
}

/// Reads `HH:MM`; 24:00 is the end of a day.
fn minute(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| {
        let two = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        two.then(|| text.parse::<u32>().ok())?
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let all = hours * 60 + minutes;
    (minutes < 60 && all <= DAY).then_some(all)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |minute: u32| format!("{:02}:{:02}", minute / 60, minute % 60);
        if self.days != [true; 7] {
            let days = DAYS.iter().zip(self.days).filter(|(_, on)| *on);
            let days: Vec<&str> = days.map(|(day, _)| *day).collect();
            write!(f, "{} ", days.join(","))?;
        }
        let end = self.begin + self.length;
        let end = if end > DAY { end - DAY } else { end };
        write!(f, "{}-{}", time(self.begin), time(end))
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A text that is no window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no window: days and times, as in `Sat,Sun 02:00-06:00` or `Mon..Fri 22:00-04:00`"
)]
pub struct ParseWindowError(String);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(day: u32, hour: u32, minute: u32) -> LocalTime {
        LocalTime::new(day, hour * 60 + minute)
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_that_it_began_on() {
        let window: Window = "Sat,Sun 22:00-04:00".parse().unwrap();
        assert_eq!(window.opens_in(at(5, 22, 0)), 0);
        assert_eq!(window.opens_in(at(6, 3, 59)), 0);
        assert_eq!(window.opens_in(at(6, 4, 0)), 18 * 60);
        assert_eq!(window.opens_in(at(0, 3, 59)), 0, "Sunday's, on Monday");
        assert_eq!(window.opens_in(at(0, 4, 0)), 5 * 24 * 60 + 18 * 60);
        let always: Window = "00:00-24:00".parse().unwrap();
        assert_eq!(always.opens_in(at(3, 12, 0)), 0);
        let weekend: Window = "fri..mon 01:30-02:00".parse().unwrap();
        assert_eq!(weekend.to_string(), "Mon,Fri,Sat,Sun 01:30-02:00");
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in [
            "",
            "at night",
            "25:00-26:00",
            "02:00",
            "Foo 02:00-03:00",
            "2:00-3:00",
            "02:60-03:00",
            "24:00-01:00",
        ] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_window_is_open_when_it_says_that_it_opens(
            days in prop::collection::vec(0..7_usize, 1..4),
            begin in 0..DAY,
            end in 0..=DAY,
            now in 0..WEEK,
        ) {
            let names: Vec<&str> = days.iter().map(|day| DAYS[*day]).collect();
            let time = |minute: u32| format!("{:02}:{:02}", minute / 60, minute % 60);
            let text = format!("{} {}-{}", names.join(","), time(begin), time(end));
            let window: Window = text.parse().unwrap();
            prop_assert_eq!(window.to_string().parse::<Window>().unwrap(), window.clone());
            let wait = window.opens_in(LocalTime(now));
            prop_assert_eq!(window.opens_in(LocalTime((now + wait) % WEEK)), 0);
            if wait > 0 {
                prop_assert!(window.opens_in(LocalTime((now + wait - 1) % WEEK)) > 0);
            }
        }

        #[test]
        fn no_text_is_too_much(text in "\\PC{0,40}") {
            let _ = text.parse::<Window>();
        }
    }
}
