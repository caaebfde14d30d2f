//! Whether the disk still has what the store has recorded: every blob against its digest, every layer and tree against its index.
//!
//! Nothing of this needs the store's lock. What another process takes away meanwhile is not reported: a finding is only one if the
//! record is still the same afterwards.

pub mod blob;
pub mod cursor;
pub mod layer;
pub mod names;
pub mod read;
pub mod repair;
pub mod report;
pub mod run;
pub mod tree;
