//! The space of the store's file system: how much of it may be taken, and who has been promised what.

pub mod amount;
pub mod budget;
pub mod quota;
pub mod room;
