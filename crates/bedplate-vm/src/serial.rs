//! A machine's serial log: what a person should see of it, and how a boot that failed is known by it.
//!
//! Invariant: the log is a stranger's bytes; nothing of it reaches a terminal as an escape sequence.

/// What of a boot's log says that it will not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The kernel panicked; its line.
    Panic(String),
    /// Early boot said that it cannot go on; its line.
    EarlyBoot(String),
    /// The firmware found nothing to boot; its line.
    Firmware(String),
}

/// Makes a failure of its line.
type Kind = fn(String) -> Failure;

/// What a failed boot says, and what it is then.
const SIGNS: [(&str, Kind); 4] = [
    ("Kernel panic - not syncing", Failure::Panic),
    ("bedplate-init: cannot ", Failure::EarlyBoot),
    ("No bootable option or device was found", Failure::Firmware),
    (
        "Press any key to enter the Boot Manager Menu",
        Failure::Firmware,
    ),
];

impl Failure {
    /// Looks for a failure in what a machine said.
    pub fn find(log: &[u8]) -> Option<Self> {
        let text = printable(log);
        text.lines().find_map(|line| {
            let (sign, failure) = SIGNS.iter().find(|(sign, _)| line.contains(sign))?;
            let from = line.find(sign)?;
            Some(failure(line[from..].trim_end().to_owned()))
        })
    }
}

/// Returns the last lines of a log, as a terminal would show them.
pub fn tail(log: &[u8], lines: usize) -> String {
    let text = printable(log);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Returns what a terminal would show: firmware and loader draw with escape sequences.
pub fn printable(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let mut shown = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                // ESC [ parameters letter
                if characters.next_if_eq(&'[').is_some() {
                    for parameter in characters.by_ref() {
                        if parameter.is_ascii_alphabetic() {
                            break;
                        }
                    }
                }
            }
            '\n' => shown.push('\n'),
            character if character.is_control() => {}
            character => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_the_reader() {
        assert_eq!(
            printable(b"\x1b[2J\x1b[01;01HBdsDxe: starting\r\nLinux\x07 6.1\x1b[0m\n"),
            "BdsDxe: starting\nLinux 6.1\n"
        );
        assert_eq!(tail(b"one\r\ntwo\r\nthree", 2), "two\nthree");
    }

    #[test]
    fn a_boot_that_failed_is_known_by_its_log() {
        assert_eq!(Failure::find(b"[    0.1] Linux version 6.1\r\n"), None);
        assert_eq!(
            Failure::find(b"ok\r\n[  1.5] Kernel panic - not syncing: VFS: Unable to mount\r\n[  1.6] CPU: 0\r\n"),
            Some(Failure::Panic(
                "Kernel panic - not syncing: VFS: Unable to mount".into()
            ))
        );
        assert_eq!(
            Failure::find(b"[ 2.0] bedplate-init: cannot find the root, UUID=0: it did not\n"),
            Some(Failure::EarlyBoot(
                "bedplate-init: cannot find the root, UUID=0: it did not".into()
            ))
        );
        assert!(matches!(
            Failure::find(b"BdsDxe: No bootable option or device was found.\r\n"),
            Some(Failure::Firmware(_))
        ));
    }
}
