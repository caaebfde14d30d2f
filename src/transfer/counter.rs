//! How far a transfer is, and what all of them have fetched.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter as Total;

/// How far one transfer is.
#[derive(Debug, Default)]
pub struct Counter {
    /// Bytes of the blob that are here, also from an earlier attempt.
    pub here: AtomicU64,
    /// Bytes that came over the network.
    pub fetched: AtomicU64,
}

/// Bytes that all transfers of this process have fetched. Clones count together.
pub type Fetched = Total;
