//! What the documents say: commands and what they print, threats, versions, and numbers.

mod commands;
mod dashboard;
mod security;
mod sessions;
mod speed;
mod versions;
