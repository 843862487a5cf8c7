//! Who asks logind not to restart the machine now.

use std::fmt;
use std::io;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// Somebody who wants the machine to stay up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inhibitor {
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
}

impl fmt::Display for Inhibitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.who, self.why)
    }
}

/// Knows who wants the machine to stay up.
pub trait Inhibitors {
    /// Lists them.
    fn list(&self) -> io::Result<Vec<Inhibitor>>;
}

/// Asks logind, by busctl: systemd's own client, and so there where logind is.
#[derive(Clone, Copy, Debug)]
pub struct Logind;

impl Inhibitors for Logind {
    fn list(&self) -> io::Result<Vec<Inhibitor>> {
        let asked = Command::new("busctl")
            .args(["--json=short", "call", "org.freedesktop.login1"])
            .args(["/org/freedesktop/login1", "org.freedesktop.login1.Manager"])
            .arg("ListInhibitors")
            .stdin(Stdio::null())
            .output()?;
        if !asked.status.success() {
            let said = String::from_utf8_lossy(&asked.stderr);
            return Err(io::Error::other(said.trim().to_owned()));
        }
        parse(&asked.stdout).map_err(io::Error::other)
    }
}

/// The answer of `ListInhibitors`: `a(ssssuu)`, what, who, why, mode, user and process (org.freedesktop.login1(5)).
#[derive(Deserialize)]
struct Answer {
    data: (Vec<Row>,),
}

type Row = (String, String, String, String, u32, u32);

/// Returns those who block a shutdown, from what busctl printed.
fn parse(text: &[u8]) -> Result<Vec<Inhibitor>, serde_json::Error> {
    let Answer { data: (all,) } = serde_json::from_slice(text)?;
    let blocks =
        |what: &str, mode: &str| mode == "block" && what.split(':').any(|one| one == "shutdown");
    let blocking = all
        .into_iter()
        .filter(|(what, _, _, mode, ..)| blocks(what, mode));
    Ok(blocking
        .map(|(_, who, why, ..)| Inhibitor { who, why })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_blocks_a_shutdown_counts() {
        let text = br#"{"type":"a(ssssuu)","data":[[
            ["sleep","NetworkManager","must turn off","delay",0,501],
            ["shutdown:sleep","backup","the backup runs","block",0,77],
            ["shutdown","delayer","a moment","delay",0,78],
            ["handle-lid-switch","anna","no","block",1500,79]]]}"#;
        let all = parse(text).unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].to_string(), "backup (the backup runs)");
        assert!(
            parse(br#"{"type":"a(ssssuu)","data":[[]]}"#)
                .unwrap()
                .is_empty()
        );
        for wrong in [&b""[..], b"[]", b"{\"data\":[[[1]]]}", b"nothing"] {
            assert!(parse(wrong).is_err());
        }
    }
}
