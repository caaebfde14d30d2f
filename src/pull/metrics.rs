//! Counters of pulls, and which of them run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::host::metric::{Counts, Labels, Looked, Pairs};
use crate::pull::error::Error;
use crate::pull::outcome::Outcome;
use crate::pull::progress::Progress;
use crate::pull::request::PullRequest;
use crate::registry::error::Error as RegistryError;
use crate::tenant::Tenant;
use crate::transfer;
use crate::transfer::metrics::Wrong;

/// Counters of all pulls of this process. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    pulls: Counts<Outcome>,
    seconds: Histogram,
    bytes: Histogram,
    running: Arc<Mutex<Running>>,
    /// How references were resolved.
    pub(in crate::pull) resolves: Counts<Resolve>,
    /// Who had shown a right to what is here.
    pub(in crate::pull) grants: Counts<Grant>,
    /// Blobs that were needed.
    content: Counts<Content>,
    content_bytes: Counts<Content>,
    /// Counters of transfers.
    pub(in crate::pull) transfers: transfer::metrics::Metrics,
}

/// How a reference was resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pull) enum Resolve {
    /// It was known here.
    Hit,
    /// A registry was asked.
    Remote,
    Error,
}

/// The right of who asks to a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pull) enum Grant {
    /// It was shown before, for a tree that is here.
    Held,
    /// It was shown now.
    Given,
    /// It was not shown.
    Refused,
}

/// Whether a blob that is needed was here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pull) enum Content {
    Present,
    Fetched,
}

impl Labels for Resolve {
    const ALL: &'static [(Self, Pairs)] = &[
        (Self::Hit, &[("result", "hit")]),
        (Self::Remote, &[("result", "remote")]),
        (Self::Error, &[("result", "error")]),
    ];
}

impl Labels for Grant {
    const ALL: &'static [(Self, Pairs)] = &[
        (Self::Held, &[("result", "held")]),
        (Self::Given, &[("result", "given")]),
        (Self::Refused, &[("result", "refused")]),
    ];
}

impl Labels for Content {
    const ALL: &'static [(Self, Pairs)] =
        &[(Self::Present, &[("result", "present")]), (Self::Fetched, &[("result", "fetched")])];
}

/// Upper bounds, in seconds, of how long pulls take.
const SECONDS: [f64; 9] = [0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];
/// Upper bounds, in bytes, of how much they bring: 1 MiB, and eight times as much each time, up to 256 GiB.
const BYTES: [f64; 7] =
    [1048576.0, 8388608.0, 67108864.0, 536870912.0, 4294967296.0, 34359738368.0, 274877906944.0];

/// Pulls that run, the oldest first.
#[derive(Debug, Default)]
struct Running {
    began: u64,
    pulls: BTreeMap<u64, RunningPull>,
}

/// A pull that runs.
#[derive(Debug, Clone)]
pub struct RunningPull {
    /// On whose behalf.
    pub tenant: Tenant,
    /// What is pulled.
    pub reference: String,
    /// How far it is.
    pub progress: Arc<Progress>,
}

/// Counts as running until dropped. A pull that is dropped before its end is cancelled.
pub(in crate::pull) struct InFlight {
    metrics: Metrics,
    number: u64,
    outcome: Outcome,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let ended = self.metrics.running().pulls.remove(&self.number);
        self.metrics.pulls.inc(self.outcome);
        // What was here already says nothing of how long it takes to bring it.
        let end = ended.filter(|_| self.outcome == Outcome::Done).map(|pull| pull.progress.snapshot());
        if let Some(end) = end.filter(|end| end.fetched > 0) {
            self.metrics.seconds.observe(end.elapsed_ms as f64 / 1000.0);
            self.metrics.bytes.observe(end.fetched as f64);
        }
    }
}

impl InFlight {
    /// It has ended so.
    pub(in crate::pull) fn ended<T>(mut self, result: &Result<T, Error>) {
        self.outcome = result.as_ref().map_or_else(Outcome::of, |_| Outcome::Done);
        if self.outcome == Outcome::Denied {
            self.metrics.grants.inc(Grant::Refused);
        }
        if let Err(error) = result {
            self.metrics.failed(error);
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            pulls: Counts::default(),
            seconds: Histogram::new(SECONDS),
            bytes: Histogram::new(BYTES),
            running: Arc::default(),
            resolves: Counts::default(),
            grants: Counts::default(),
            content: Counts::default(),
            content_bytes: Counts::default(),
            transfers: transfer::metrics::Metrics::default(),
        }
    }
}

impl Metrics {
    pub(in crate::pull) fn in_flight(&self, request: &PullRequest, progress: &Arc<Progress>) -> InFlight {
        let pull = RunningPull {
            tenant: request.tenant.clone(),
            reference: request.reference.to_string(),
            progress: Arc::clone(progress),
        };
        let mut running = self.running();
        running.began += 1;
        let number = running.began;
        running.pulls.insert(number, pull);
        drop(running);
        InFlight { metrics: self.clone(), number, outcome: Outcome::Cancelled }
    }

    /// The pulls that run, the oldest first.
    pub fn pulls_in_flight(&self) -> Vec<RunningPull> {
        self.running().pulls.values().cloned().collect()
    }

    /// A blob of `size` bytes that was needed is here.
    pub(in crate::pull) fn has_come(&self, content: Content, size: u64) {
        self.content.inc(content);
        self.content_bytes.counter(content).inc_by(size);
    }

    fn failed(&self, error: &Error) {
        match error {
            // Of a manifest, or of another size; blobs are counted where they come.
            Error::Registry(RegistryError::WrongContent { .. }) => self.transfers.wrong.inc(Wrong::Digest),
            Error::Transfer(error) if error.breaks_promise() => self.transfers.wrong.inc(Wrong::DiffId),
            _ => {}
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes them part of what is served.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("ocivol_pulls", "Pulls that ended, by result and reason", self.pulls.clone());
        let running = Arc::clone(&self.running);
        let of_running = move |look: fn(&Running) -> f64| {
            let running = Arc::clone(&running);
            Looked::one(move || look(&running.lock().unwrap_or_else(PoisonError::into_inner)))
        };
        let count = of_running(|running| running.pulls.len() as f64);
        registry.register("ocivol_pulls_in_flight", "Pulls that run", count);
        let oldest = of_running(|running| {
            let oldest = running.pulls.values().map(|pull| pull.progress.elapsed()).max();
            oldest.unwrap_or(Duration::ZERO).as_secs_f64()
        });
        registry.register(
            "ocivol_pull_oldest_seconds",
            "Age of the oldest pull that runs, 0 for none",
            oldest,
        );
        registry.register(
            "ocivol_pull_duration_seconds",
            "Time of pulls that ended well and fetched something",
            self.seconds.clone(),
        );
        registry.register("ocivol_pull_size_bytes", "Bytes that such pulls fetched", self.bytes.clone());
        registry.register(
            "ocivol_resolves",
            "References that were resolved, by whether a registry was asked",
            self.resolves.clone(),
        );
        registry.register(
            "ocivol_grants",
            "Rights to content: held since an earlier pull, given by the registry now, or refused",
            self.grants.clone(),
        );
        registry.register(
            "ocivol_content",
            "Blobs that pulls needed, by whether they were here",
            self.content.clone(),
        );
        registry.register("ocivol_content_bytes", "Bytes of such blobs", self.content_bytes.clone());
        self.transfers.register(registry);
    }
}
