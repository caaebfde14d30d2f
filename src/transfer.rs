//! One blob, from any of the sources that its askers have, into the store.
//!
//! [`run::Transfers`] is where it begins: whoever needs a blob joins the transfer of it, and brings a place to fetch it from. A
//! transfer waits for its tenant's turn in the [`queue`], reads over the connections of a [`fetch`], of which a slow one gets [`help`], and writes through a
//! [`sink`]. What its [`sources`] deliver is compared: a slow one is raced by another.

pub mod archive;
pub mod counter;
pub mod error;
pub mod fetch;
pub mod flight;
pub mod follower;
pub mod help;
pub mod metrics;
pub mod needed;
pub mod parts;
pub mod queue;
pub mod race;
pub mod rate;
pub mod run;
pub mod sink;
pub mod sources;
pub mod verdicts;
