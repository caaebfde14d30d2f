//! ocivol mounts what an OCI registry holds into Kubernetes pods as read-only volumes.

pub mod cli;
pub mod config;
pub mod control;
pub mod csi;
pub mod demo;
pub mod failure;
pub mod layout;
pub mod mount;
pub mod oci;
pub mod pull;
pub mod registry;
pub mod store;
pub mod sys;
pub mod telemetry;
pub mod volume;
