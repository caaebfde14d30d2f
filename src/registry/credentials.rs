//! Credentials: what proves to a registry who is asking, where it is kept, and the programs that have it.

pub mod answers;
pub mod command;
pub mod docker_config;
pub mod helpers;
pub mod keyring;
pub mod pattern;
pub mod secret;
