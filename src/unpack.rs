//! A layer's bytes become files below a directory, in one pass and in memory that has a fixed bound.
//!
//! Compressed bytes are [pushed](pipeline::Unpack::push) in as they come from the network, and inflated by the thread that
//! pushes. A second thread reads the [`tar`] archive and [`extract`]s it. Between them goes a small ring of
//! buffers. What is written is not trusted, and has no name in the store, until whoever pushes has checked the
//! digest of all that was pushed.

pub mod decompress;
pub mod directory_memory;
pub mod error;
pub mod extract;
mod field;
mod pax;
pub mod pipeline;
pub mod ring;
pub mod space;
pub mod sparse;
pub mod tar;
