//! What an operator sees: logs, metrics, health.

pub mod health;
pub mod logs;
pub mod server;
