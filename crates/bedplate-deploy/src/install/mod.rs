//! To be written.
mod dots;
pub mod esp;
pub mod ext4;
pub mod layout;
pub mod table;
