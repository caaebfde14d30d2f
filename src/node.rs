//! The daemon: its configuration, its start, and how it drains and shuts down.

pub mod bad_flag;
mod checks;
pub mod config;
pub mod credential_flags;
pub mod disk_flags;
pub mod flag_values;
pub mod health;
mod metrics;
mod open;
mod propagation;
pub mod pull_flags;
mod registries;
pub mod run;
mod serve;
pub mod shutdown;
pub mod warm_flags;
