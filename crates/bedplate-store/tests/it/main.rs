//! Tests of the store's public interface.

mod erofs;
mod erofs_kernel;
mod ingest;
mod layer;
mod look;
mod misfits;
mod packages;
mod parts;
mod refs;
mod repair;
mod shared_blocks;
mod stat_cache;
mod store;
