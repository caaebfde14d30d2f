//! The command line: syntax and output. What commands do is elsewhere.

mod archive;
pub mod args;
pub mod context;
pub mod demo;
pub mod fsck;
pub mod gc;
pub mod inspect;
pub mod list;
pub mod load;
pub mod mount;
pub mod namespace;
pub mod output;
pub mod process;
pub mod pull;
pub mod run;
pub mod save;
