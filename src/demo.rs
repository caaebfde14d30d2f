//! What `ocivol demo` and the tests are made of: a small registry in memory, and a client that pushes to it.

pub mod kubelet;
pub mod push;
pub mod registry;
pub mod tarball;
