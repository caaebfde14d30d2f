//! What an operator sees: logs, metrics, health.

pub mod exposition;
pub mod health;
pub mod logs;
pub mod process;
pub mod server;
