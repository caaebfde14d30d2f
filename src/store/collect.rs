//! Collection: what is unused goes, the least recently used first, until there is room.
//!
//! A *tree* may go when nothing has it mounted, no pull holds it, no command has a lease of it, the configuration does not pin it,
//! and it was last in use some time ago ([`min_age`](rules::Rules::min_age)): a mount in another mount namespace may outlive the one that this
//! process sees. *Content*, blobs and layers, may go when no tree that is left refers to it and no pull holds it. What refers to
//! what is read from the records of trees each time, and kept nowhere.
//!
//! Whatever goes is first taken out of sight, its record before its files, and deleted then: a process that ends in between
//! leaves nothing half there, and the next one deletes what is left.

pub mod content;
pub mod in_use;
pub mod leftovers;
pub mod past;
pub mod quota;
pub mod references;
pub mod report;
pub mod rules;
pub mod run;
pub mod trees;
pub mod variants;
