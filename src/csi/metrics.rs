//! Time and outcome of the calls that are about volumes, as `csi_plugin_operations_seconds`.

use std::fmt;
use std::sync::Arc;

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

/// A volume is made of a claim.
pub const CREATE: &str = "/csi.v1.Controller/CreateVolume";
/// The claim is gone.
pub const DELETE: &str = "/csi.v1.Controller/DeleteVolume";

/// The histograms. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    driver_name: Arc<str>,
    all: Arc<[Ended]>,
}

/// Calls of one method that ended with one code, or with any that has no line of its own, which is [`OTHER`].
#[derive(Debug)]
struct Ended {
    method: &'static str,
    code: Code,
    seconds: Histogram,
}

/// Codes that publishes end with.
const PUBLISHED: &[Code] = &[
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
/// Codes of the other calls. All series are there from the start, and a node has few: so their failures are told apart only where one
/// of them is no fault, as of statistics of a volume that was just unpublished.
const UNPUBLISHED: &[Code] = &[Code::Ok, OTHER];
const MEASURED: &[Code] = &[Code::Ok, Code::NotFound, OTHER];
/// Codes that creations end with.
const CREATED: &[Code] = &[
    Code::Ok,
    Code::InvalidArgument,
    Code::NotFound,
    Code::OutOfRange,
    Code::Unauthenticated,
    Code::PermissionDenied,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Internal,
    OTHER,
];
/// As which a failure is counted whose code is not among those of its method. No call ends with it.
const OTHER: Code = Code::Unknown;
/// Upper bounds, in seconds, for publishes that end well; of those of csi-lib-utils what a call that is held for 110 seconds needs. How
/// long others take is known by their sum and their count: a node has few series.
const BUCKETS: [f64; 8] = [0.1, 0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 120.0];

impl Metrics {
    /// Of a node's calls, with nothing counted yet.
    pub fn new(driver_name: &str) -> Self {
        Self::of(driver_name, &[(PUBLISH, PUBLISHED), (UNPUBLISH, UNPUBLISHED), (STATS, MEASURED)])
    }

    /// Of the controller's calls.
    pub fn of_controller(driver_name: &str) -> Self {
        Self::of(driver_name, &[(CREATE, CREATED), (DELETE, UNPUBLISHED)])
    }

    fn of(driver_name: &str, methods: &[(&'static str, &[Code])]) -> Self {
        let ended = |method: &'static str, code: Code| Ended {
            method,
            code,
            seconds: match (method, code) {
                (PUBLISH | CREATE, Code::Ok) => Histogram::new(BUCKETS),
                _ => Histogram::new([]),
            },
        };
        let all = methods.iter();
        let all =
            all.flat_map(|(method, codes)| codes.iter().map(move |code| ended(method, *code))).collect();
        Self { driver_name: driver_name.into(), all }
    }

    /// A call has ended. Only those that are about volumes are counted.
    pub(in crate::csi) fn ended(&self, method: &str, code: Code, seconds: f64) {
        let find = |code| self.all.iter().find(|known| known.method == method && known.code == code);
        if let Some(ended) = find(code).or_else(|| find(OTHER)) {
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
        for ended in self.all.iter() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_without_a_series_of_its_own_is_counted_as_unknown() {
        let (metrics, mut registry) = (Metrics::new("d"), Registry::default());
        metrics.register(&mut registry);
        let written = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).expect("memory");
            text
        };
        let series = |text: &str| {
            text.lines().map(|line| line.rsplit(' ').nth(1).map(str::to_owned)).collect::<Vec<_>>()
        };
        let before = series(&written());
        for (method, code) in [
            (UNPUBLISH, Code::Internal),
            (UNPUBLISH, Code::Unavailable),
            (STATS, Code::NotFound),
            (STATS, Code::InvalidArgument),
            (PUBLISH, Code::Internal),
            ("/csi.v1.Identity/Probe", Code::Internal),
        ] {
            metrics.ended(method, code, 1.0);
        }
        let after = written();
        assert_eq!(series(&after), before, "all are there from the start");
        for (method, code, count) in [
            (UNPUBLISH, "Unknown", 2),
            (STATS, "NotFound", 1),
            (STATS, "Unknown", 1),
            (PUBLISH, "Internal", 1),
            (PUBLISH, "NotFound", 0),
        ] {
            let line = format!(
                "csi_plugin_operations_seconds_count{{driver_name=\"d\",method_name=\"{method}\",grpc_status_code=\"{code}\"}} {count}\n"
            );
            assert!(after.contains(&line), "{line} in {after}");
        }
        assert!(!after.contains("Probe"), "{after}");
    }
}
