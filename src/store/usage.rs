//! What is in use: holds of this process, leases of commands, volumes that are published.

pub mod holds;
pub mod leases;
pub mod volumes;
