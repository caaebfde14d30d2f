//! How far a transfer is.

use std::sync::atomic::AtomicU64;

/// How far one transfer is.
#[derive(Debug, Default)]
pub struct Counter {
    /// Bytes of the blob that are here, also from an earlier attempt.
    pub here: AtomicU64,
    /// Bytes that came over the network.
    pub fetched: AtomicU64,
}
