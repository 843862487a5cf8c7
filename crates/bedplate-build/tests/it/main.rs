//! Directories that become images.

mod build;
