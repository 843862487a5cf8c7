//! The words that every part of Bedplate speaks: digests, names, trees, image names, OCI documents
//! and the machine's record.
//!
//! ```text
//! digest  ObjectId · Sha256 · RootDigest      what things are called by their content
//! name    Name · TreePath                     what things are called by people
//! tree    Tree ─ Node ─ Content               a whole root file system as data
//! image   ImageName                           [HOST/]REPOSITORY[:TAG][@DIGEST]
//! selector ImageSelector                      what a person writes for one that a store has
//! oci     Manifest · Index · Descriptor       what registries speak
//! os_release OsRelease                         what a system says about itself
//! record  Record ─ Deployment                 what a machine has, and what state each is in
//! format  FormatHeader                        what a reader must understand
//! human                                       sizes as people read them
//! layout                                      where things lie on a machine
//! ```
//!
//! Invariant: this crate parses and prints. It does no input or output, reads no clock, and every
//! type that can be built holds what its name says; there is no second check further in.

pub mod deployment_selector;
pub mod digest;
pub mod format;
pub mod human;
pub mod image;
pub mod layout;
pub mod metadata;
pub mod name;
pub mod oci;
pub mod os_release;
pub mod record;
pub mod selector;
pub mod tree;

pub use deployment_selector::DeploymentSelector;
pub use digest::{Algorithm, ErofsVersion, ObjectId, RootDigest, RuleSet, Sha256};
pub use image::ImageName;
pub use metadata::{Metadata, Timestamp, Xattrs};
pub use name::{Name, TreePath};
pub use selector::ImageSelector;
pub use tree::{Content, FileContent, Node, NodeId, Rdev, Tree};
