//! Counters of what happens to the store and to volumes.

use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::host::metric::{Counts, Labels, Pairs};
use crate::store::collect::report::Report;
use crate::volume::census::Counted;

/// Counters of this process. Clones count together.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    collections: Counts<For>,
    collected: Counter,
    collecting: Histogram,
    scrubbed: Counter,
    damaged: Counter,
    mounting: Histogram,
    /// What was counted last.
    pub(in crate::volume) counted: Counted,
}

/// What a collection was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::volume) enum For {
    /// The watermark.
    Watermark,
    /// A pull that found too little room.
    Room,
    /// The bound of a namespace.
    Quota,
    /// Somebody who asked for it.
    Command,
}

impl Labels for For {
    const ALL: &'static [(Self, Pairs)] = &[
        (Self::Watermark, &[("reason", "watermark")]),
        (Self::Room, &[("reason", "room")]),
        (Self::Quota, &[("reason", "quota")]),
        (Self::Command, &[("reason", "command")]),
    ];
}

/// Upper bounds, in seconds, of how long collections take, and mounts.
const COLLECTIONS: [f64; 3] = [1.0, 10.0, 60.0];
const MOUNTS: [f64; 3] = [0.1, 1.0, 10.0];

impl Default for StoreMetrics {
    fn default() -> Self {
        Self {
            collections: Counts::default(),
            collected: Counter::default(),
            collecting: Histogram::new(COLLECTIONS),
            scrubbed: Counter::default(),
            damaged: Counter::default(),
            mounting: Histogram::new(MOUNTS),
            counted: Counted::default(),
        }
    }
}

impl StoreMetrics {
    pub(in crate::volume) fn collected(&self, reason: For, took: Duration, report: &Report) {
        if report.gone > 0 {
            self.collections.inc(reason);
            self.collected.inc_by(report.freed.bytes);
            self.collecting.observe(took.as_secs_f64());
        }
    }

    pub(in crate::volume) fn scrubbed(&self, bytes: u64) {
        self.scrubbed.inc_by(bytes);
    }

    pub(in crate::volume) fn damaged(&self) {
        self.damaged.inc();
    }

    pub(in crate::volume) fn mounted(&self, began: Instant) {
        self.mounting.observe(began.elapsed().as_secs_f64());
    }

    /// Makes them part of what is served.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "ocivol_collections",
            "Collections that took something away, by what they were for",
            self.collections.clone(),
        );
        registry.register("ocivol_collected_bytes", "Bytes that collections freed", self.collected.clone());
        registry.register("ocivol_collection_seconds", "Time of such collections", self.collecting.clone());
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
        registry.register("ocivol_mount_duration_seconds", "Time of mounts", self.mounting.clone());
        self.counted.register(registry);
    }
}
