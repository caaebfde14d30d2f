//! The thread that warms, and what is served of it.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::host::blocking::{self, Lane};
use crate::volume::volumes::Volumes;
use crate::warm::warmer::{Sums, Warmer};

/// Between two looks at how much of what is warmed is in memory.
const LOOK_EVERY: Duration = Duration::from_secs(60);

impl Volumes {
    /// Starts the thread that warms.
    pub(in crate::volume) fn run_warmer(&self) {
        let warmer = Arc::clone(&self.warmer);
        tokio::spawn(async move {
            let working = Arc::clone(&warmer);
            if let Err(error) = blocking::on_own_thread("warm", move || working.work()).await {
                tracing::warn!(%error, "cannot warm: no thread");
                warmer.has_no_thread();
            }
        });
    }

    /// Looks again and again how much of what is warmed is in memory, for the metrics, until the process ends.
    pub async fn watch_residency(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stopping() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let warmer = Arc::clone(&self.warmer);
            blocking::run(Lane::Store, move || warmer.look()).await;
        }
    }
}

/// What is served of a [`Warmer`].
#[derive(Debug)]
pub struct WarmMetrics(pub Arc<Warmer>);

impl Collector for WarmMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Sums { filled, locked, resident } = self.0.sums();
        let filled = ConstCounter::new(filled);
        let help = "Bytes of cached models that were read into memory before their pods read them";
        filled.encode(encoder.encode_descriptor(
            "ocivol_warmed_bytes",
            help,
            None,
            filled.metric_type(),
        )?)?;
        let locked = ConstGauge::new(i64::try_from(locked).unwrap_or(i64::MAX));
        let help = "Bytes of volumes that are locked in memory";
        locked.encode(encoder.encode_descriptor(
            "ocivol_pinned_bytes",
            help,
            None,
            locked.metric_type(),
        )?)?;
        let resident = ConstGauge::new(resident.unwrap_or(f64::NAN));
        let help = "Part of the models of published volumes that is in memory, of a sample each minute; NaN without models";
        resident.encode(encoder.encode_descriptor(
            "ocivol_resident_ratio",
            help,
            None,
            resident.metric_type(),
        )?)
    }
}
