//! From what a claim asks of its StorageClass to what a volume of it mounts.
//!
//! The parameters of a class are the attributes of its volumes, read by the same code ([`class`]); the claim's name may be part of
//! the reference ([`claim_name`]). The registry is asked once what the reference is, and the volume names that digest: all nodes mount the same,
//! also when the tag has moved ([`provisioner`]).

pub mod claim_name;
pub mod class;
pub mod error;
pub mod provisioner;
pub mod volume_id;
