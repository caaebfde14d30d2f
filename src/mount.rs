//! Mounts: the mount table, checked targets, attach and detach. No other code changes mounts.
//!
//! A volume is a bind of a plain directory, read-only before it is visible anywhere, and for good: no container can
//! clear its flags ([`locked`]). Where a runtime has to clear them, it is a file system that cannot be written
//! (`overlay`). The mount table is the truth about what is mounted: every function here works from it, none needs the
//! store to be open.

pub mod attach;
pub mod detach;
pub mod error;
mod inside;
pub mod locked;
pub mod lookup;
pub mod mountinfo;
mod overlay;
mod statmount;
pub mod target;
pub mod view;
