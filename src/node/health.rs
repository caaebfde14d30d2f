//! What the health port says of the plugin.

use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::csi::transport;
use crate::csi::v1::ProbeRequest;
use crate::csi::v1::identity_client::IdentityClient;
use crate::node::checks;
use crate::node::config::NodeConfig;
use crate::telemetry::health::Checks;
use crate::volume::volumes::Volumes;

/// Live while the CSI socket answers; ready while kubelet knows the plugin and the store can be used.
pub(in crate::node) fn checks(
    config: &NodeConfig,
    volumes: &Arc<Volumes>,
    metrics: Registry,
    node: checks::Checks,
) -> Checks {
    let (socket, volumes) = (config.socket.clone(), Arc::clone(volumes));
    Checks {
        live: Box::new(move || Box::pin(probe(socket.clone()))),
        ready: Box::new(move || {
            let (volumes, registration) = (Arc::clone(&volumes), node.registration());
            Box::pin(async move {
                registration?;
                volumes.puller().await.map(drop).map_err(|error| error.to_string())
            })
        }),
        metrics,
    }
}

/// Calls Probe over the real socket: that also tells whether connections are still accepted.
///
/// # Errors
/// What the plugin says, or that nobody answers.
pub(crate) async fn probe(path: PathBuf) -> Result<(), String> {
    let channel = transport::connect(&path).await.map_err(|error| crate::failure::chain(&error))?;
    let answer = IdentityClient::new(channel).probe(ProbeRequest {}).await;
    match answer.map_err(|status| status.message().to_owned())?.into_inner().ready {
        Some(false) => Err("the plugin is not ready".to_owned()),
        _ => Ok(()),
    }
}
