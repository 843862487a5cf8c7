//! Makes bootable images from root directories.

pub mod edit;
pub mod files;
pub mod identity;
pub mod kernel;
pub mod lint;
pub mod livable;
#[cfg(test)]
mod sample;
