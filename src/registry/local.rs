//! Image layouts on this node: directories and archives that are asked as registries are.
//!
//! Whoever asks a registry gets an answer of the same shape from a layout, so that all that is behind (digests, ranges, resuming,
//! rights, progress) is the same. Source: image-spec v1.1 image-layout.md. Nothing in a layout is believed: paths are confined to
//! directories that the operator names, and content is checked against its digest by whoever reads it, as a registry's is.

pub mod archive;
mod body;
pub mod layout;
pub mod layouts;
pub mod places;
pub mod tags;
