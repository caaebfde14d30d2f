//! The command line.

mod archives;
mod commands;
