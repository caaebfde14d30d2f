//! Time and outcome of every RPC, as `csi_plugin_operations_seconds`.

use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::{Code, Response, Status};

use crate::csi::status;

/// The histogram, and the driver name that labels it. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    driver_name: String,
    seconds: Family<Labels, Histogram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    driver_name: String,
    method_name: &'static str,
    grpc_status_code: &'static str,
}

/// Upper bounds in seconds, as csi-lib-utils has them: dashboards are made for these.
const BUCKETS: [f64; 13] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];

impl Metrics {
    /// Nothing counted yet.
    pub fn new(driver_name: String) -> Self {
        Self { driver_name, seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)) }
    }

    /// Makes it part of what is served.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("csi_plugin_operations_seconds", "Time of CSI calls", self.seconds.clone());
    }

    /// Runs a call, logs how it ended, and counts it.
    pub async fn observe<T>(
        &self,
        method_name: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let began = Instant::now();
        let result = call.await;
        let seconds = began.elapsed().as_secs_f64();
        let code = result.as_ref().err().map_or(Code::Ok, Status::code);
        let grpc_status_code = status::name(code);
        match &result {
            Ok(_) => tracing::debug!(method = method_name, seconds, code = grpc_status_code, "call"),
            Err(error) => tracing::warn!(
                method = method_name,
                seconds,
                code = grpc_status_code,
                error = error.message(),
                "call failed"
            ),
        }
        let labels = Labels { driver_name: self.driver_name.clone(), method_name, grpc_status_code };
        self.seconds.get_or_create(&labels).observe(seconds);
        result.map(Response::new)
    }
}
