//! The content-addressed store.

pub mod erofs;
pub mod layer;
pub mod verity;
