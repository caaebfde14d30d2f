//! The command line.

mod archives;
mod commands;
mod contents;
mod credentials;
mod exports;
mod inspection;
mod looked_at_before;
mod names;
mod reference;
mod status;
mod stores;
mod users;
