//! What survives what: records that are written once, facts that may be lost, and the thread that makes entries durable.

pub mod facts;
pub mod flush;
pub mod ledger;
pub mod record;
pub mod recovery;
