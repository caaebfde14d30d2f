//! What the health port says of the plugin.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::csi::metrics::Metrics;
use crate::csi::registration::State;
use crate::csi::transport;
use crate::csi::v1::ProbeRequest;
use crate::csi::v1::identity_client::IdentityClient;
use crate::node::config::NodeConfig;
use crate::pull;
use crate::telemetry::health::Checks;
use crate::volume::volumes::Volumes;
use crate::volume::warming::WarmMetrics;

/// Live while the CSI socket answers; ready while kubelet knows the plugin and the store can be used.
pub(in crate::node) fn checks(
    config: &NodeConfig,
    volumes: &Arc<Volumes>,
    metrics: &Metrics,
    pull_metrics: &pull::metrics::Metrics,
    state: Arc<watch::Sender<State>>,
    must_register: bool,
) -> Checks {
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    pull_metrics.register(&mut registry);
    volumes.store_metrics.register(&mut registry);
    registry.register_collector(Box::new(WarmMetrics(Arc::clone(&volumes.warmer))));
    if let Some(events) = volumes.announcements.events() {
        events.register(&mut registry);
    }
    let version = prometheus_client::metrics::info::Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("ocivol_build", "What is running", version);
    let (socket, volumes) = (config.socket.clone(), Arc::clone(volumes));
    Checks {
        live: Box::new(move || Box::pin(probe(socket.clone()))),
        ready: Box::new(move || {
            let (volumes, state) = (Arc::clone(&volumes), state.borrow().clone());
            Box::pin(async move {
                match state {
                    State::Waiting if must_register => {
                        return Err("kubelet has not registered the plugin".into());
                    }
                    State::Refused(reason) => {
                        return Err(format!("kubelet refused the registration: {reason}"));
                    }
                    State::Waiting | State::Registered => {}
                }
                volumes.puller().await.map(drop).map_err(|error| error.to_string())
            })
        }),
        metrics: registry,
    }
}

/// Calls Probe over the real socket: that also tells whether connections are still accepted.
async fn probe(path: PathBuf) -> Result<(), String> {
    let channel = transport::connect(&path).await.map_err(|error| crate::failure::chain(&error))?;
    let answer = IdentityClient::new(channel).probe(ProbeRequest {}).await;
    match answer.map_err(|status| status.message().to_owned())?.into_inner().ready {
        Some(false) => Err("the plugin is not ready".to_owned()),
        _ => Ok(()),
    }
}
