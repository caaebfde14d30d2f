//! What is in use: holds of this process, leases of commands, volumes that are published, and what is kept for CachedArtifacts.

pub mod holds;
pub mod leases;
pub mod pins;
pub mod volumes;
