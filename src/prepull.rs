//! Content that is on the node before its pods are: an operator writes CachedArtifacts, and each node pulls and keeps those that are for it.
//!
//! Pods go first: what is brought here gets what they leave of every queue ([`crate::tenant::Tenant::is_last`]), and a few artifacts come
//! at a time. No right of a pod comes of it: who mounts what was brought shows its own.

pub mod agent;
mod artifact;
mod board;
mod bring;
mod report;
mod selector;
