//! What is read from the Kubernetes API, the pull secrets of a pod and facts on its service account, and what is written: events of pods.
//!
//! Objects are asked for one at a time and by name, with GET. Only what an operator wants to be on nodes before their pods is listed and
//! watched ([`watch`]). Their JSON is read here and not by the crate `kube`, which writes what it cannot read to the log.

pub mod accounts;
mod budget;
pub mod cluster;
pub(crate) mod connection;
pub mod error;
pub mod events;
pub mod object;
pub mod pull_secrets;
pub mod watch;
