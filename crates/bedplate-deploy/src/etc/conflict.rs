//! What the image changed and this machine changed too: which of both is in the merged /etc, and why.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A change of the image that gave way to a local one, or that has consequences outside /etc.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The path below /etc, printable.
    pub path: String,
    /// What happened.
    #[serde(flatten)]
    pub kind: Kind,
}

/// How a change of the image and a local one met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Kind {
    /// Content or metadata changed on both sides.
    BothChanged {
        /// What: `content`, `target`, `mode`, `owner`, `group`, `attributes` or `device`.
        what: String,
    },
    /// Both sides made something under this name.
    BothAdded,
    /// Changed here, removed by the image: kept.
    RemovedByImage,
    /// Removed here, changed by the image: stays removed.
    RemovedHere,
    /// The types differ: `here` is kept.
    Types {
        /// What it is here.
        here: String,
        /// What the image has.
        image: String,
    },
    /// A field of a user or group changed on both sides.
    Account {
        /// The user or group.
        name: String,
    },
    /// The image gives a user or group, which nobody changed here, another id.
    IdMoved {
        /// The user or group.
        name: String,
        /// The id that it had.
        from: u32,
        /// The id that it has now.
        to: u32,
    },
    /// The image's user or group has an id that a local one has; it keeps its old id, or is left out.
    IdClash {
        /// The image's user or group.
        name: String,
        /// The id, or the first id of a range.
        id: u32,
        /// Who has it here.
        holder: String,
    },
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/etc/{}: ", self.path)?;
        match &self.kind {
            Kind::BothChanged { what } => {
                write!(
                    f,
                    "{what} changed here and in the image; the local one is kept"
                )
            }
            Kind::BothAdded => f.write_str("new here and in the image; the local one is kept"),
            Kind::RemovedByImage => f.write_str("changed here, removed by the image; kept"),
            Kind::RemovedHere => f.write_str("removed here, changed by the image; stays removed"),
            Kind::Types { here, image } => {
                write!(
                    f,
                    "a {here} here, a {image} in the image; the {here} is kept"
                )
            }
            Kind::Account { name } => {
                write!(
                    f,
                    "`{name}` changed here and in the image; the local one is kept"
                )
            }
            Kind::IdMoved { name, from, to } => write!(
                f,
                "the image moves `{name}` from id {from} to {to}; files in /var keep the old number"
            ),
            Kind::IdClash { name, id, holder } => write!(
                f,
                "the image's `{name}` has id {id}, which `{holder}` has here; it gives way"
            ),
        }
    }
}
