//! All that `/metrics` shows.

use std::sync::Arc;

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::csi;
use crate::host::metric::Looked;
use crate::kube::cluster::Cluster;
use crate::node::checks::Checks;
use crate::node::config::NodeConfig;
use crate::telemetry::process::Process;
use crate::volume::volumes::Volumes;
use crate::volume::warming::WarmMetrics;

/// The commit that this was built from, where the build says so.
const REVISION: &str = match option_env!("OCIVOL_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// All metrics of the plugin. `checks` are what has to be so for volumes to be published.
pub(in crate::node) fn all(
    config: &NodeConfig,
    volumes: &Volumes,
    calls: &csi::metrics::Metrics,
    checks: &Checks,
) -> Registry {
    let mut registry = Registry::default();
    let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("revision", REVISION)]);
    registry.register("ocivol_build", "What is running", build);
    let registered = checks.clone();
    registry.register(
        "ocivol_registered",
        "Whether kubelet knows the driver; 1 as well where it is not to",
        Looked::one(move || f64::from(u8::from(registered.is_registered()))),
    );
    let each = checks.clone();
    registry.register(
        "ocivol_ready",
        "Whether volumes can be published, by what that needs",
        Looked::all(move || each.gauges()),
    );
    calls.register(&mut registry);
    volumes.register(&mut registry);
    Cluster::register(config.credentials.cluster.as_ref(), &mut registry);
    registry.register_collector(Box::new(WarmMetrics(Arc::clone(&volumes.warmer))));
    registry.register_collector(Box::new(Process));
    registry
}
