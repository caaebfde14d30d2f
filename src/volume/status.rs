//! What goes on: for `ocivol status`.

use serde::{Deserialize, Serialize};

use crate::pull::metrics::RunningPull;
use crate::volume::volumes::Volumes;

/// A pull that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullStatus {
    /// What is pulled.
    pub reference: String,
    /// On whose behalf.
    pub namespace: String,
    /// The pods that wait for it, as `namespace/name`.
    pub pods: Vec<String>,
    /// Bytes of all blobs; 0 until the manifest is read.
    pub total: u64,
    /// Bytes that are here.
    pub done: u64,
    /// The same in hundredths of all.
    pub percent: u64,
    /// Bytes that came over the network.
    pub fetched: u64,
    /// Bytes per second over the network, on average.
    pub bytes_per_second: u64,
    /// Since it began.
    pub seconds: u64,
}

impl Volumes {
    /// The pulls that run, the oldest first.
    pub fn pulls_in_flight(&self) -> Vec<PullStatus> {
        let describe = |RunningPull { tenant, reference, progress }: RunningPull| {
            let snapshot = progress.snapshot();
            PullStatus {
                reference,
                namespace: tenant.to_string(),
                pods: self.interests.pods_of(&progress),
                total: snapshot.total,
                done: snapshot.done,
                percent: snapshot.done.saturating_mul(100) / snapshot.total.max(1),
                fetched: snapshot.fetched,
                bytes_per_second: snapshot.rate(),
                seconds: snapshot.elapsed_ms / 1000,
            }
        };
        self.metrics.pulls_in_flight().into_iter().map(describe).collect()
    }
}
