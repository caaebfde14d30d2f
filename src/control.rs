//! Operations of the command line, run here or by the node plugin that holds the store.
//!
//! One process writes to a store. When that is a node plugin, the command line asks it over
//! `<root>/control.sock`, which is root's alone: one JSON object per line, a request and then replies. The same
//! [`execute`](execute::execute) runs on both sides.

pub mod client;
mod content;
pub mod execute;
mod load;
pub mod request;
mod save;
pub mod server;
pub mod status;
pub mod wait;
