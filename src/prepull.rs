//! Content that is on the node before its pods are: an operator writes CachedArtifacts, and each node pulls and keeps those that are for it.
//!
//! Pods go first: what is brought here gets what they leave of every queue ([`crate::tenant::Tenant::is_last`]), and a few artifacts come
//! at a time. No right of a pod comes of it: who mounts what was brought shows its own.
//!
//! The nodes need nobody for that. Where the controller runs ([`coordinator`]), it asks once what a reference is, and sums up how far they
//! are.

pub mod agent;
mod artifact;
mod board;
mod bring;
pub mod coordinator;
mod marker;
pub mod nodes;
mod report;
mod resolved;
mod selector;
mod summary;
