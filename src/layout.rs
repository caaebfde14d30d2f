//! From a manifest to a [`Plan`](plan::Plan): which blob becomes which file of the volume. `docs/layouts.md` is this for users.
//!
//! One file per artifact family, each a pure function of manifest and config, and one row in the table of
//! [`decide`], which decides whose rule applies. `blobs`, `oci_layout` and `ollama` of [`families`] also lay out what any
//! family's artifact is made of, for volumes that ask for that.

pub mod artifact;
pub mod decide;
pub mod error;
pub mod families;
pub mod naming;
pub mod options;
pub mod plan;
pub mod select;
pub mod tree_path;
