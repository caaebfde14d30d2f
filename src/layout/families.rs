//! One file for each artifact family, each a pure function from a manifest and a config to a plan.

pub mod attachment;
pub mod blobs;
pub mod cog;
pub mod docker_model;
pub mod flux;
pub mod helm;
pub mod image;
pub mod kernel_cache;
pub mod kitops;
pub mod modelpack;
pub mod oci_layout;
pub mod ollama;
pub mod oras;
pub mod skill;
pub mod wasm;
