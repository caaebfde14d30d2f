//! Time and outcome of the calls that are about volumes, as `csi_plugin_operations_seconds`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::Code;

use crate::csi::status;

/// Publish, the call that waits for pulls.
pub const PUBLISH: &str = "/csi.v1.Node/NodePublishVolume";
/// Unpublish.
pub const UNPUBLISH: &str = "/csi.v1.Node/NodeUnpublishVolume";
/// How much a volume holds.
pub const STATS: &str = "/csi.v1.Node/NodeGetVolumeStats";

/// The histograms. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    driver_name: Arc<str>,
    all: Arc<[Ended]>,
}

/// Calls of one method that ended with one code.
#[derive(Debug)]
struct Ended {
    method: &'static str,
    code: Code,
    /// Whether it is served: from the start what is to be expected, else from the first call on.
    is_shown: AtomicBool,
    seconds: Histogram,
}

/// Codes that calls end with.
const CODES: [Code; 12] = [
    Code::Ok,
    Code::InvalidArgument,
    Code::NotFound,
    Code::AlreadyExists,
    Code::Unauthenticated,
    Code::PermissionDenied,
    Code::ResourceExhausted,
    Code::Unavailable,
    Code::DeadlineExceeded,
    Code::Aborted,
    Code::FailedPrecondition,
    Code::Internal,
];
/// Upper bounds, in seconds, for publishes that end well; of those of csi-lib-utils what a call that is held for 110 seconds needs. How
/// long others take is known by their sum and their count: a node has few series.
const BUCKETS: [f64; 8] = [0.1, 0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 120.0];

impl Metrics {
    /// Nothing counted yet.
    pub fn new(driver_name: &str) -> Self {
        let ended = |method: &'static str, code: Code| Ended {
            method,
            code,
            is_shown: AtomicBool::new(method == PUBLISH || code == Code::Ok),
            seconds: match (method, code) {
                (PUBLISH, Code::Ok) => Histogram::new(BUCKETS),
                _ => Histogram::new([]),
            },
        };
        let all = [PUBLISH, UNPUBLISH, STATS].into_iter();
        let all = all.flat_map(|method| CODES.map(|code| ended(method, code))).collect();
        Self { driver_name: driver_name.into(), all }
    }

    /// A call has ended. Only those that are about volumes are counted.
    pub(in crate::csi) fn ended(&self, method: &str, code: Code, seconds: f64) {
        if let Some(ended) = self.all.iter().find(|known| known.method == method && known.code == code) {
            ended.is_shown.store(true, Ordering::Relaxed);
            ended.seconds.observe(seconds);
        }
    }

    /// Makes it part of what is served.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "csi_plugin_operations_seconds",
            "Time of CSI calls that are about volumes, by method and code; in buckets for publishes that ended well",
            self.clone(),
        );
    }
}

impl EncodeMetric for Metrics {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for ended in self.all.iter().filter(|ended| ended.is_shown.load(Ordering::Relaxed)) {
            let labels = [
                ("driver_name", &*self.driver_name),
                ("method_name", ended.method),
                ("grpc_status_code", status::name(ended.code)),
            ];
            ended.seconds.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}
