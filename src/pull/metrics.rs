//! Counters of pulls, for the metrics endpoint.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Counters of all pulls of this process. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(super) pulls: Family<Outcome, Counter>,
    pub(super) seconds: Histogram,
    pub(super) fetched: Counter,
    running: Gauge,
}

/// How a pull ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Outcome {
    pub result: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Ending {
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
            fetched: Counter::default(),
            running: Gauge::default(),
        }
    }
}

/// Counts as running until dropped, also when its pull is abandoned.
pub(super) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(super) fn in_flight(&self) -> InFlight {
        self.running.inc();
        InFlight(self.running.clone())
    }

    /// Makes them part of what is served.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("ocivol_pulls", "Pulls that ended", self.pulls.clone());
        registry.register("ocivol_pull_duration_seconds", "Time of a pull", self.seconds.clone());
        registry.register("ocivol_pull_bytes", "Bytes fetched from registries", self.fetched.clone());
        registry.register("ocivol_inflight_pulls", "Pulls that are running", self.running.clone());
    }
}
