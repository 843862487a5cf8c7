//! Tests of the store's public interface.

mod erofs;
mod layer;
mod store;
