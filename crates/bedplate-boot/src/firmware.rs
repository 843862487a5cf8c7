//! The firmware's boot options: what makes it start the loader again after a kernel that did not load.
//!
//! ```text
//! BootOrder: 0003, 0004, 0005, 0006, 0000              first ours, then what others registered
//!              │     │     │     └─ Boot0006  "Bedplate (4)" ─┐
//!              │     │     └─────── Boot0005  "Bedplate (3)"  ├─→ HD(partition)/File(loader)
//!              │     └───────────── Boot0004  "Bedplate (2)"  │
//!              └─────────────────── Boot0003  "Bedplate"     ─┘
//! options and order found ─┬─ plan ─→ variables to write: options · BootOrder · what is left over
//! partition, loader, count ┘
//! ```
//!
//! Invariant: an option that is not ours is neither changed nor removed, and keeps its place among the
//! others. Options are written before the order that names them: the order is the commit point.
//! `docs/format/boot.md` is normative for which are ours; the bytes are UEFI 2.10, 3.1.3 and 10.3.

mod load_option;
mod plan;

pub use load_option::{DecodeError, EncodeError, HardDrive, LoadOption, Node};
pub use plan::{Observed, Plan, PlanError, Step, Wanted, plan};

/// The variable that has the order in which options are tried.
pub const BOOT_ORDER: &str = "BootOrder";

/// Names the variable of an option: `Boot` and four hexadecimal digits, upper case (UEFI 2.10, 3.3).
pub fn option_name(number: u16) -> String {
    format!("Boot{number:04X}")
}

/// Returns the number of the option that a variable holds, or `None` where it holds none.
pub fn option_number(name: &str) -> Option<u16> {
    let digits = name.strip_prefix("Boot")?;
    let number = u16::from_str_radix(digits, 16).ok()?;
    // `+123` is a number for Rust and `Boot00ab` is no name for the firmware.
    (option_name(number) == name).then_some(number)
}

/// Reads `BootOrder`: numbers of two bytes, little-endian.
pub fn parse_order(bytes: &[u8]) -> Result<Vec<u16>, OrderError> {
    let (numbers, rest) = bytes.as_chunks::<2>();
    if rest.is_empty() {
        Ok(numbers.iter().copied().map(u16::from_le_bytes).collect())
    } else {
        Err(OrderError(bytes.len()))
    }
}

/// Prints `BootOrder`.
pub fn print_order(order: &[u16]) -> Vec<u8> {
    order
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

/// `BootOrder` is no list of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("BootOrder has {0} bytes, and each of its numbers takes two")]
pub struct OrderError(pub usize);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_firmwares_own_spelling_names_an_option() {
        assert_eq!(option_number("Boot00AB"), Some(0xab));
        for name in [
            "Boot00ab",
            "Boot+0AB",
            "Boot0AB",
            "Boot000AB",
            "BootOrder",
            "BootNext",
            "boot0001",
            "",
        ] {
            assert_eq!(option_number(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn an_order_reads_back_as_it_was_printed(order: Vec<u16>, number: u16) {
            let mut bytes = print_order(&order);
            prop_assert_eq!(parse_order(&bytes), Ok(order));
            bytes.push(0);
            prop_assert_eq!(parse_order(&bytes), Err(OrderError(bytes.len())));
            prop_assert_eq!(option_number(&option_name(number)), Some(number));
        }
    }
}
