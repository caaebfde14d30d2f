//! What the store holds: each kind of entry, and the struct that owns its directory.

pub mod blobs;
pub mod build;
pub mod file_list;
pub mod holes;
pub mod ingest;
pub mod layer;
pub mod layers;
pub mod link;
pub mod links;
pub mod partial;
pub mod ranges;
pub mod soundness;
pub mod tree_index;
pub mod trees;
