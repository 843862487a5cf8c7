//! Which variables to write so that the firmware has our options: a pure function.
//!
//! ```text
//! ours, right      kept                          1. options that are missing or wrong
//! ours, not right  written anew, in its place    2. BootOrder, where it lacks them     ← commit point
//! missing          a free number                 3. ours that are left over go
//! ```
//!
//! Invariant: planning again after the plan was executed gives an empty plan, and so does the rest of
//! one that was cut: nothing piles up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{
    DecodeError, EncodeError, HardDrive, LoadOption, OrderError, option_name, parse_order,
};

/// What our options are called; from the second on with a number, as `Bedplate (2)`.
const DESCRIPTION: &str = "Bedplate";

/// What the firmware has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The values of the `Boot####` variables.
    pub options: BTreeMap<u16, Vec<u8>>,
    /// The value of `BootOrder`; empty where there is none.
    pub order: Vec<u8>,
}

/// What it should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The partition that the loader is on.
    pub partition: HardDrive,
    /// The loader's path, as `\EFI\systemd\systemd-bootx64.efi`.
    pub loader: String,
    /// How many options start it.
    pub count: u16,
}

/// What to do, step after step. It prints as lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The writes.
    pub steps: Vec<Step>,
    /// Options that cannot be read. They are others', and stay.
    pub unreadable: Vec<(u16, DecodeError)>,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write an option.
    Option {
        /// Its number.
        number: u16,
        /// What it becomes.
        option: LoadOption,
    },
    /// Write `BootOrder`.
    Order(Vec<u16>),
    /// Remove an option that nothing names any more.
    Remove(u16),
}

/// Plans which variables to write.
pub fn plan(observed: &Observed, wanted: &Wanted) -> Result<Plan, PlanError> {
    let order = parse_order(&observed.order)?;
    let mut plan = Plan::default();
    let mut ours = BTreeMap::new();
    for (&number, bytes) in &observed.options {
        match LoadOption::decode(bytes) {
            Ok(option) if is_ours(&option.description) => {
                ours.insert(number, option);
            }
            Ok(_) => {}
            Err(error) => plan.unreadable.push((number, error)),
        }
    }

    // Those that are right keep their numbers; the others of ours are there to be written anew.
    let descriptions: Vec<String> = (1..=wanted.count).map(description).collect();
    let mut numbers: Vec<Option<u16>> = Vec::new();
    for description in &descriptions {
        let found = ours
            .iter()
            .find(|(_, option)| option.description == *description && is_right(option, wanted))
            .map(|(number, _)| *number);
        if let Some(number) = found {
            ours.remove(&number);
        }
        numbers.push(found);
    }
    let taken: BTreeSet<u16> = observed.options.keys().chain(&order).copied().collect();
    let mut free = (0..=u16::MAX).filter(|number| !taken.contains(number));
    let mut block = Vec::new();
    for (description, number) in descriptions.into_iter().zip(numbers) {
        let number = if let Some(number) = number {
            number
        } else {
            let spare = ours.pop_first().map(|(number, _)| number);
            let number = spare.or_else(|| free.next()).ok_or(PlanError::Full)?;
            let option = LoadOption::new(description, wanted.partition, wanted.loader.clone());
            option.encode()?; // what cannot be printed is refused before anything is written
            plan.steps.push(Step::Option { number, option });
            number
        };
        block.push(number);
    }

    let left_over: BTreeSet<u16> = ours.into_keys().collect();
    if !is_in_order(&order, &block, &left_over) {
        let others = order
            .iter()
            .filter(|number| !block.contains(number) && !left_over.contains(number));
        let order = block.iter().chain(others).copied().collect();
        plan.steps.push(Step::Order(order));
    }
    plan.steps.extend(left_over.into_iter().map(Step::Remove));
    Ok(plan)
}

/// Names the option that is tried as the `which`th, from 1.
fn description(which: u16) -> String {
    match which {
        0 | 1 => DESCRIPTION.to_owned(),
        _ => format!("{DESCRIPTION} ({which})"),
    }
}

fn is_ours(text: &str) -> bool {
    let number = text
        .strip_prefix(DESCRIPTION)
        .and_then(|rest| rest.strip_prefix(" ("))
        .and_then(|rest| rest.strip_suffix(')'))
        .and_then(|digits| digits.parse().ok());
    text == description(1) || number.is_some_and(|number| text == description(number))
}

fn is_right(option: &LoadOption, wanted: &Wanted) -> bool {
    option.is_active() && option.starts(&wanted.partition, &wanted.loader)
}

/// Returns whether the order has the block, once, unbroken, and nothing that goes.
///
/// Where the block stands is the administrator's: whoever put another system before it wants that one.
fn is_in_order(order: &[u16], block: &[u16], left_over: &BTreeSet<u16>) -> bool {
    let members = order.iter().filter(|number| block.contains(number)).count();
    let unbroken = block.is_empty() || order.windows(block.len()).any(|window| window == block);
    let leaves = order.iter().any(|number| left_over.contains(number));
    unbroken && members == block.len() && !leaves
}

impl Plan {
    /// Returns whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in &self.unreadable {
            writeln!(f, "leave {}: {error}", option_name(*number))?;
        }
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option { number, option } => {
                write!(f, "write {}: {}", option_name(*number), option.description)
            }
            Self::Order(order) => {
                write!(f, "write BootOrder:")?;
                order
                    .iter()
                    .try_for_each(|number| write!(f, " {number:04X}"))
            }
            Self::Remove(number) => write!(f, "remove {}", option_name(*number)),
        }
    }
}

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// `BootOrder` cannot be read, and to write it anew could lose others' options.
    #[error("cannot read the firmware's boot order")]
    Order(#[from] OrderError),
    /// All numbers are taken.
    #[error("the firmware has no free number for a boot option")]
    Full,
    /// The wanted option cannot be printed.
    #[error("cannot print a boot option")]
    Encode(#[from] EncodeError),
}

#[cfg(test)]
mod tests;
