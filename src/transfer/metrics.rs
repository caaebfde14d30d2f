//! Counters of transfers.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::host::metric::{Counts, Labels, Pairs};

/// Counters of all transfers of this process. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Bytes that came.
    pub fetched: Counts<Origin>,
    /// Content that was not what it should have been.
    pub wrong: Counts<Wrong>,
    waiting: Gauge,
}

/// Where bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The registry, or storage that it redirects to.
    Registry,
    /// A mirror that the operator has named.
    Mirror,
    /// An image layout on the node.
    Local,
}

/// What is wrong with content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// Other bytes than those of the digest, or another number of them.
    Digest,
    /// An uncompressed layer is not what the image's config promises.
    DiffId,
}

impl Labels for Origin {
    const ALL: &'static [(Self, Pairs)] = &[
        (Self::Registry, &[("source", "registry")]),
        (Self::Mirror, &[("source", "mirror")]),
        (Self::Local, &[("source", "local")]),
    ];
}

impl Labels for Wrong {
    const ALL: &'static [(Self, Pairs)] =
        &[(Self::Digest, &[("kind", "digest")]), (Self::DiffId, &[("kind", "diff_id")])];
}

/// Counts as waiting until dropped.
pub(in crate::transfer) struct Waits(Gauge);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(in crate::transfer) fn waits(&self) -> Waits {
        self.waiting.inc();
        Waits(self.waiting.clone())
    }

    /// Makes them part of what is served.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "ocivol_pull_bytes",
            "Bytes of blobs that were fetched, by source",
            self.fetched.clone(),
        );
        registry.register(
            "ocivol_verification_failures",
            "Content that was not what its digest says, and was not used, by kind",
            self.wrong.clone(),
        );
        registry.register(
            "ocivol_downloads_waiting",
            "Downloads of blobs that wait for their turn",
            self.waiting.clone(),
        );
    }
}
