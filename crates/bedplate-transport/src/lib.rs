//! Where images come from and go to: OCI registries, both sides.
//!
//! ```text
//! pull ──→ download ─→ decompress ─→ pipeline ─→ store      package: a tree becomes an image of ours
//! push ←── compress ←─ pipeline ←─ store
//!   ├─ layers     each different one once, several at once
//!   ├─ layout     a directory instead of a registry, to pull from
//!   └─ registry   the verbs of the distribution specification
//!        └─ client     connections, credentials, registries.conf
//! serve   the embedded registry, for everyone's client
//! ```
//!
//! Invariants: nothing counts before its digest was checked; nothing is held in memory whole; a
//! credential goes to the host that it is for, and to no other.

mod client;
mod compress;
mod decompress;
mod download;
mod event;
mod layers;
mod layout;
mod origin;
mod package;
mod pipeline;
mod pull;
mod push;
mod registry;
pub mod serve;
mod store_error;

pub use client::auth::AuthError;
pub use client::config::{ConfigError, Registries};
pub use client::connect::ConnectError;
pub use client::dns::ResolveError;
pub use client::http::{BodyError, HttpError};
pub use client::{Client, ClientError, ClientOptions, Environment, TlsVerify};
pub use compress::{ParseRecipeError, Recipe};
pub use decompress::decompress_any;
pub use event::{Event, Observer};
pub use layers::LayersError;
pub use layout::LayoutError;
pub use package::{PackageError, PackageOptions, Packaged, package};
pub use pull::{PullError, PullOptions, Pulled, RegistrySource, architecture_here};
pub use push::{PushError, PushOptions, Pushed};
pub use registry::RegistryError;
pub use store_error::StoreError;
