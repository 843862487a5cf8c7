//! Why a registry did not do what it was asked for.

use bedplate_model::format::Shown;
use bedplate_model::{ImageName, Sha256};
use hyper::StatusCode;

use super::ask::is_transient;
use crate::client::auth::AuthError;
use crate::client::http::{BodyError, HttpError};

/// Why a registry did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name is for this store only.
    #[error("{0} is a local name: no registry has it")]
    Local(ImageName),
    /// The configuration forbids the registry.
    #[error("{0} is blocked by registries.conf")]
    Blocked(ImageName),
    /// There was no answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Credentials or a token could not be had.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The registry does not let us.
    #[error("{host} does not allow access to {what}")]
    Denied {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The registry does not have it.
    #[error("{host} does not have {what}")]
    NotFound {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The registry answered with an error.
    #[error("{host} refused {what} (status {status}): {said}")]
    Refused {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The status of its answer.
        status: u16,
        /// Its own words.
        said: Shown,
    },
    /// The answer ended early, or never.
    #[error("{what} did not come whole")]
    Body {
        /// What was asked for.
        what: String,
        /// What went wrong.
        source: BodyError,
    },
    /// What came is something else.
    #[error("{what} is not what its digest says: wanted {wanted}, got {got}")]
    WrongDigest {
        /// What was asked for.
        what: String,
        /// The digest it should have.
        wanted: Sha256,
        /// The digest it has.
        got: Sha256,
    },
    /// What came has another length.
    #[error("{what} should have {wanted} bytes and has {got}")]
    WrongLength {
        /// What was asked for.
        what: String,
        /// The length it should have, in bytes.
        wanted: u64,
        /// How many bytes came, at least.
        got: u64,
    },
    /// The answer makes no sense.
    #[error("{host} does not speak the registry's protocol: {problem}")]
    Nonsense {
        /// The registry.
        host: String,
        /// What is wrong.
        problem: &'static str,
    },
}

impl RegistryError {
    /// Returns whether the same may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Http(error) => error.is_transient(),
            Self::Body { source, .. } => source.is_transient(),
            Self::Refused { status, .. } => StatusCode::from_u16(*status).is_ok_and(is_transient),
            Self::Local(_)
            | Self::Blocked(_)
            | Self::Auth(_)
            | Self::Denied { .. }
            | Self::NotFound { .. }
            | Self::WrongDigest { .. }
            | Self::WrongLength { .. }
            | Self::Nonsense { .. } => false,
        }
    }
}
