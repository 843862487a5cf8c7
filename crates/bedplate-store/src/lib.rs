//! The content-addressed store: objects, images and refs on a disk.
//!
//! ```text
//! <store>/
//!   format.json        what a reader must understand; a directory without it is no store
//!   journal            a change of several refs, until each is in its place
//!   lock               flock: shared while a commit gives names, exclusive while gc takes them
//!   objects/ab/cdef…   contents of files, each named by its fs-verity digest
//!   images/<hex>       EROFS images, each named by its fs-verity digest
//!   layers/<hex>       layer tables, named by the layer's diff_id
//!   blobs/<hex>        manifests and configs as received, named by their SHA-256
//!   refs/<name>        image names that point at images        pins/<name>   other holders of images
//!   index/sha256       contents' SHA-256 → objects        index/stat-…    files that were read before: caches
//!   damaged/<name>     files of refs that could not be read, set aside
//!   tmp/<txn>/         what is not committed yet, held by a flock     trash/  of earlier versions
//! ```
//!
//! ```text
//! who             locks                                   for how long
//! readers         nothing                                 –
//! a transaction   tmp/<txn> (exclusive)                   from its first byte to its end
//!   its commit    lock (shared), then refs/ (exclusive)   while names are given: no bytes are written
//! gc              lock (exclusive)                        while it marks and removes: no content is read
//! fsck --repair   lock (shared)                           while replacements get their names
//! index           index/ (exclusive)                      while the table is replaced
//! ```
//!
//! ```text
//! scan ─→ Transaction::put_* ─→ commit: bytes durable → names → names durable → refs
//!                                             gc: unreachable → gone
//! Store::tree ─→ checkout · diff              fsck: everything against its name
//! ```
//!
//! Invariants: an object's name is its digest from the moment that it has a name; a ref points at an
//! image whose objects are all present, after a power cut too; an image below `images/` has all its
//! objects; gc takes nothing that a live transaction holds; a reader needs no lock.
//!
//! `docs/format/store.md` is normative for what lies on the disk.

mod buffers;
pub mod checkout;
pub mod diff;
pub mod erofs;
mod extents;
mod find;
pub mod fsck;
pub mod gc;
pub mod index;
mod item;
mod large;
pub mod layer;
pub mod look;
mod object;
mod parts;
mod place;
pub mod refs;
pub mod scan;
pub mod stat_cache;
mod store;
pub mod transaction;
mod usage;
pub mod verity;
mod work;

pub use checkout::{CheckedOut, CheckoutError, CheckoutOptions, Differing, checkout};
pub use diff::diff;
pub use find::{FindError, Found};
pub use fsck::{Finding, RepairReport, StoreSource};
pub use gc::{GcPolicy, GcReport};
pub use index::{Index, IndexError, Located, RebuiltIndex};
pub use item::Item;
pub use look::{Look, Scope, Unsteady, look};
pub use object::{ReadContentError, objects_of, sized_objects_of};
pub use parts::PartError;
pub use place::Misfit;
pub use refs::{
    DocumentError, MountHold, MountState, Pin, Ref, RefTarget, RefsError, SeenMounts, SetAside,
};
pub use scan::{ContentSink, DigestOnly, ScanError, ScanObserver, scan};
pub use stat_cache::Remembering;
pub use store::{BLOB_MAX, CreateError, OpenError, ReadStoreError, Sealing, Store};
pub use transaction::{BeginError, CommitError, PutError, Transaction};
pub use usage::{ImageUsage, Usage, UsageError};
