//! Credentials: what proves to a registry who is asking, where it is kept, and the programs that have it.

pub mod account;
pub mod account_tokens;
pub mod answers;
pub mod command;
pub mod docker_config;
pub mod go_duration;
pub mod helpers;
pub mod keyring;
pub mod pattern;
pub mod provider;
pub mod provider_config;
pub mod provider_files;
pub mod provider_protocol;
pub mod providers;
pub mod secret;
