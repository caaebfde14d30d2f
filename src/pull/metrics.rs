//! Counters of pulls, for the metrics endpoint.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::pull::progress::Snapshot;
use crate::transfer::counter::Fetched;

/// Counters of all pulls of this process. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(in crate::pull) pulls: Family<Outcome, Counter>,
    pub(in crate::pull) seconds: Histogram,
    pub(in crate::pull) fetched: Fetched,
    running: Gauge,
}

/// How a pull ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(in crate::pull) struct Outcome {
    pub result: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(in crate::pull) enum Ending {
    Ok,
    Error,
}

/// Upper bounds, in seconds, of the duration histogram.
const BUCKETS: [f64; 13] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

impl Default for Metrics {
    fn default() -> Self {
        Self {
            pulls: Family::default(),
            seconds: Histogram::new(BUCKETS),
            fetched: Fetched::default(),
            running: Gauge::default(),
        }
    }
}

/// Counts as running until dropped, also when its pull is abandoned.
pub(in crate::pull) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(in crate::pull) fn in_flight(&self) -> InFlight {
        self.running.inc();
        InFlight(self.running.clone())
    }

    /// A pull has ended, with these counters.
    pub(in crate::pull) fn ended(&self, end: &Snapshot, succeeded: bool) {
        let result = if succeeded { Ending::Ok } else { Ending::Error };
        self.pulls.get_or_create(&Outcome { result }).inc();
        self.seconds.observe(end.elapsed_ms as f64 / 1000.0);
    }

    /// Makes them part of what is served.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("ocivol_pulls", "Pulls that ended", self.pulls.clone());
        registry.register("ocivol_pull_duration_seconds", "Time of a pull", self.seconds.clone());
        registry.register("ocivol_pull_bytes", "Bytes fetched from registries", self.fetched.clone());
        registry.register("ocivol_inflight_pulls", "Pulls that are running", self.running.clone());
    }
}
