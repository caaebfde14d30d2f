//! What is in use: pins of this process, leases of commands, volumes that are published.

pub mod leases;
pub mod pins;
pub mod volumes;
