//! Credentials: what proves to a registry who is asking, and where it is kept.

pub mod docker_config;
pub mod keyring;
pub mod pattern;
pub mod secret;
