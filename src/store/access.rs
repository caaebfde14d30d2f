//! Who may have what: what references resolved to, and who has shown a right to what.

pub mod grants;
pub mod keyed;
pub mod origin;
mod shelf;
pub mod tags;
