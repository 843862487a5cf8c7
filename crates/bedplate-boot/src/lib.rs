//! To be written.

pub mod kargs;
