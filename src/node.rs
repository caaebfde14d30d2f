//! The daemon: its configuration, its start, and how it drains and shuts down.

pub mod config;
pub mod run;
