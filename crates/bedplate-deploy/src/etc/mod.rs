//! /etc is state with a history: each deployment has its own, merged three ways when it is finalized.
//!
//! ```text
//! pristine /etc of the running image ─┐
//! /etc as it is on this machine ──────┼─ merge (pure) ─→ Merged ─ apply ─→ deployments/<id>/etc.new ─→ etc
//! pristine /etc of the new image ─────┘        └─ Conflict: shown in the plan, kept for status
//! ```
//!
//! Invariant: what was changed on this machine wins. A change of the image that lost to it is never
//! silent: it is a [`Conflict`], seen before the reboot.

pub mod accounts;
pub mod apply;
pub mod conflict;
pub mod layer;
pub mod merge;

pub use conflict::{Conflict, Kind};
pub use layer::layer;
pub use merge::{Merged, Side, merge};
