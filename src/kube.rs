//! What is read from the Kubernetes API, the pull secrets of a pod and facts on its service account, and what is written: events of pods.
//!
//! Objects are asked for one at a time and by name, with GET: nothing is listed, nothing is watched. Their JSON is read here and not
//! by the crate `kube`, which writes what it cannot read to the log.

pub mod accounts;
mod budget;
pub mod cluster;
mod connection;
pub mod error;
pub mod events;
pub mod object;
pub mod pull_secrets;
