//! The daemon: its configuration, its start, and how it drains and shuts down.

pub mod config;
mod health;
mod open;
mod propagation;
pub mod run;
mod serve;
pub mod shutdown;
