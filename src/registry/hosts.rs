//! Registries' hosts as the operator describes them: containerd's directory of `hosts.toml` files.
//!
//! Source: containerd's `docs/hosts.md`, and what its `core/remotes/docker/config` does where that says nothing.

pub mod directory;
pub mod endpoint;
pub mod file;
pub mod tls;
