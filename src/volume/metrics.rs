//! Counters of what happens to the store, for the metrics endpoint.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::store::collect::report::Report;

/// Counters of this process. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct StoreMetrics {
    collections: Family<Reason, Counter>,
    collected: Counter,
    scrubbed: Counter,
    damaged: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: For,
}

/// What a collection was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(in crate::volume) enum For {
    /// The watermark.
    Watermark,
    /// A pull that found too little room, or a quota.
    Pull,
    /// Somebody who asked for it.
    Command,
}

impl StoreMetrics {
    pub(in crate::volume) fn collected(&self, reason: For, report: &Report) {
        if report.gone > 0 {
            self.collections.get_or_create(&Reason { reason }).inc();
            self.collected.inc_by(report.freed.bytes);
        }
    }

    pub(in crate::volume) fn scrubbed(&self, bytes: u64) {
        self.scrubbed.inc_by(bytes);
    }

    pub(in crate::volume) fn damaged(&self) {
        self.damaged.inc();
    }

    /// Makes them part of what is served.
    pub fn register(&self, registry: &mut Registry) {
        let collections = self.collections.clone();
        registry.register("ocivol_collections", "Collections that took something away", collections);
        registry.register("ocivol_collected_bytes", "Bytes that collections freed", self.collected.clone());
        registry.register(
            "ocivol_scrubbed_bytes",
            "Bytes of the store that were looked at again",
            self.scrubbed.clone(),
        );
        registry.register(
            "ocivol_store_damaged",
            "Entries of the store that were found damaged",
            self.damaged.clone(),
        );
    }
}
