//! The OCI data model: references, digests, descriptors, manifests, platforms.
//!
//! Pure data. No I/O, no clock, no runtime: everything here is a function of its input, which may come from
//! an attacker, so every parser bounds what it accepts.

pub mod annotation;
pub mod attachment;
pub mod descriptor;
pub mod digest;
pub mod manifest;
pub mod media_type;
pub mod platform;
pub mod reference;
pub mod repository;
