//! What a person writes for a deployment of a machine: its place in the list, or its id.
//!
//! ```text
//! 0  1  12             one or two decimal digits: the place in `status`; 0 is the newest
//! 6c3  a6d22225        three to eight hexadecimal digits: what one id alone begins with
//! ```
//!
//! Invariant: no text is both.

use std::fmt;
use std::str::FromStr;

use crate::record::{Deployment, DeploymentId, Record};

/// The fewest digits that stand for an id: fewer are a place.
const DIGITS_MIN: usize = 3;
/// The digits of a whole id.
const DIGITS_MAX: usize = 8;

/// A deployment, as a person names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeploymentSelector {
    /// The deployment at this place of the record.
    Index(usize),
    /// The one deployment whose id begins with these digits.
    Prefix(String),
}

impl DeploymentSelector {
    /// Finds the deployment in a record.
    pub fn find<'r>(&self, record: &'r Record) -> Result<&'r Deployment, FindDeploymentError> {
        let digits = match self {
            Self::Index(index) => {
                return record
                    .deployments
                    .get(*index)
                    .ok_or_else(|| FindDeploymentError::None {
                        wanted: self.clone(),
                        there: There::of(record),
                    });
            }
            Self::Prefix(digits) => digits,
        };
        let mut fitting = record
            .deployments
            .iter()
            .filter(|deployment| deployment.id.to_string().starts_with(digits));
        match (fitting.next(), fitting.next()) {
            (Some(found), None) => Ok(found),
            (None, _) => Err(FindDeploymentError::None {
                wanted: self.clone(),
                there: There::of(record),
            }),
            (Some(_), Some(_)) => Err(FindDeploymentError::Ambiguous {
                wanted: self.clone(),
                there: There::of(record),
            }),
        }
    }
}

impl From<DeploymentId> for DeploymentSelector {
    fn from(id: DeploymentId) -> Self {
        Self::Prefix(id.to_string())
    }
}

impl FromStr for DeploymentSelector {
    type Err = ParseDeploymentSelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            let shown = crate::name::shown(text.as_bytes());
            ParseDeploymentSelectorError(shown.chars().take(40).collect())
        };
        if (1..DIGITS_MIN).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self::Index).map_err(|_| wrong());
        }
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if (DIGITS_MIN..=DIGITS_MAX).contains(&text.len()) && text.bytes().all(digit) {
            return Ok(Self::Prefix(text.to_owned()));
        }
        Err(wrong())
    }
}

impl fmt::Display for DeploymentSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => index.fmt(f),
            Self::Prefix(digits) => f.write_str(digits),
        }
    }
}

/// A text that names no deployment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is neither a place in `bedplate status` (0 is the newest) nor three to eight digits of an id"
)]
pub struct ParseDeploymentSelectorError(String);

/// The deployments that there are, in the order of their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct There(pub Vec<DeploymentId>);

impl There {
    fn of(record: &Record) -> Self {
        Self(record.deployments.iter().map(|d| d.id).collect())
    }
}

impl fmt::Display for There {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, id) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{index} ({id})")?;
        }
        Ok(())
    }
}

/// Why no deployment is meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindDeploymentError {
    /// None has this place or such an id.
    #[error("this machine has no deployment {wanted}; it has {there}")]
    None {
        /// What was asked for.
        wanted: DeploymentSelector,
        /// What there is.
        there: There,
    },
    /// Several ids begin so.
    #[error("{wanted} fits more than one deployment; this machine has {there}")]
    Ambiguous {
        /// What was asked for.
        wanted: DeploymentSelector,
        /// What there is.
        there: There,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::deployment;
    use crate::record::{Record, State};
    use proptest::prelude::*;

    #[test]
    fn a_place_an_id_and_the_beginning_of_one_are_found() {
        let mut record = Record::new("uuid".into(), deployment(0x11, State::Proven));
        let mut second = deployment(0x22, State::Proven);
        second.id = DeploymentId([0x11, 0x1f, 0, 0]);
        record.deployments.insert(0, second);
        let find = |text: &str| {
            let selector: DeploymentSelector = text.parse().unwrap();
            selector.find(&record).map(|found| found.id.to_string())
        };
        for (text, id) in [
            ("0", "111f0000"),
            ("1", "11111111"),
            ("01", "11111111"),
            ("1111", "11111111"),
            ("111f", "111f0000"),
            ("111f0000", "111f0000"),
        ] {
            assert_eq!(find(text).as_deref(), Ok(id), "{text}");
        }
        let error = find("111").unwrap_err();
        assert!(matches!(error, FindDeploymentError::Ambiguous { .. }));
        assert_eq!(
            find("2").unwrap_err().to_string(),
            "this machine has no deployment 2; it has 0 (111f0000), 1 (11111111)"
        );
        assert!(find("222").is_err());
    }

    #[test]
    fn what_could_be_anything_names_no_deployment() {
        for text in [
            "",
            "a",
            "ab",
            "-1",
            "1f",
            "AAAA",
            "111111111",
            "12 ",
            "0x1",
            "é1",
        ] {
            assert!(text.parse::<DeploymentSelector>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_id_stands_for_itself(bytes: [u8; 4], text in "\\PC{0,12}") {
            let id = DeploymentId(bytes);
            let selector: DeploymentSelector = id.to_string().parse().unwrap();
            prop_assert_eq!(&selector, &id.into());
            prop_assert_eq!(selector.to_string(), id.to_string());
            let _ = text.parse::<DeploymentSelector>();
        }
    }
}
