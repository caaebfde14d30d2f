//! What a tar layer holds, and what layers hold together: pure data.
//!
//! A layer is unpacked alone and leaves an [`index`]: every entry in the order of the archive. The [`merge`] of
//! several indexes is the tree that unpacking the layers one after the other would give, computed in memory.

pub mod checksum;
pub mod entries;
pub mod format;
pub mod index;
pub mod merge;
pub mod name;
mod nodes;
pub mod rename;
pub mod stream;
