//! What is served of the warmer.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::host::blocking::{self, Lane};
use crate::volume::volumes::Volumes;
use crate::volume::warmed;
use crate::warm::warmer::{Sums, Warmer};

/// Between two looks at how much of what is warmed is in memory.
const LOOK_EVERY: Duration = Duration::from_secs(60);

impl Volumes {
    /// Looks again and again how much of what is warmed is in memory, for the metrics, until the process ends.
    pub async fn watch_residency(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stopping() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let warmer = Arc::clone(&self.warmer);
            if blocking::run(Lane::Store, move || warmer.look()).await {
                warmed::run(&self.warmer);
            }
        }
    }
}

/// What is served of a [`Warmer`].
#[derive(Debug)]
pub struct WarmMetrics(pub Arc<Warmer>);

impl Collector for WarmMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Sums { filled, locked, resident } = self.0.sums();
        let mut one = |name: &str, help: &str, value: &dyn EncodeMetric| {
            value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
        };
        let help =
            "Bytes of cached models that were not in memory, and were read into it while their pods started";
        one("ocivol_warmed_bytes", help, &ConstCounter::new(filled))?;
        let help = "Bytes of files that are locked in memory";
        one("ocivol_pinned_bytes", help, &ConstGauge::new(i64::try_from(locked).unwrap_or(i64::MAX)))?;
        let help = "Part of the models of published volumes that is in memory, of a sample each minute; NaN without models";
        one("ocivol_resident_ratio", help, &ConstGauge::new(resident.unwrap_or(f64::NAN)))
    }
}
