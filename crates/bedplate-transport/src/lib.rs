//! Where images come from and go to: OCI registries, both sides.
//!
//! ```text
//! client    connections, credentials, registries.conf
//! registry  the verbs of the distribution specification
//! serve     the embedded registry
//! ```

mod client;
mod registry;
pub mod serve;

pub use client::auth::AuthError;
pub use client::config::{ConfigError, Registries};
pub use client::connect::ConnectError;
pub use client::http::{BodyError, HttpError};
pub use client::{Client, ClientError, ClientOptions, Environment, TlsVerify};
pub use registry::RegistryError;
