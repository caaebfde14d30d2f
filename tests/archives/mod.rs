//! Archives: how they are read, and what they must not do.

mod debian;
mod differential;
mod differential_crates;
mod hostile;
mod hostile_formats;
mod merge;
mod odd_archives;
mod pulls;
pub mod unpacking;
