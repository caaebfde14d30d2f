//! Volumes: published trees. Joins pulls and mounts, and owns the order of things per target.
//!
//! The mount table is the truth about what is mounted; the store's records only say which volume it was. So
//! unpublish, stats and repeated publishes work while the store is lost, full, newer, or held by another process.

pub mod announce;
pub mod attributes;
pub mod census;
pub mod collect;
pub mod collector;
mod count;
pub mod credentials;
pub mod damages;
pub mod error;
pub mod fsck;
pub mod interests;
pub mod list;
pub mod metrics;
pub mod order;
pub mod permits;
pub mod pins;
pub mod publish;
pub mod remove;
pub mod slots;
pub mod stats;
pub mod status;
pub mod store_mounts;
mod store_watch;
pub mod unpublish;
pub mod volumes;
pub mod warmed;
pub mod warming;
