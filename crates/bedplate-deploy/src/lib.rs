//! To be written.
pub mod bootable;
pub mod install;
