//! Integration tests: the real binary, real sockets, real mounts, real and scripted registries.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::print_stdout)]

mod support;

#[path = "archives/mod.rs"]
mod archives;
#[path = "cli/mod.rs"]
mod cli;
#[path = "crash/mod.rs"]
mod crash;
#[path = "documents/mod.rs"]
mod documents;
#[path = "formats/mod.rs"]
mod formats;
#[path = "packaging/mod.rs"]
mod packaging;
#[path = "publish/mod.rs"]
mod publish;
#[path = "registry/mod.rs"]
mod registry;
#[path = "store/mod.rs"]
mod store;
