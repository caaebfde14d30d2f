//! The CSI socket.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::transport::Server;

use crate::csi::call::Calls;
use crate::csi::identity::{IdentityService, Works};
use crate::csi::metrics::Metrics;
use crate::csi::node::NodeService;
use crate::csi::transport;
use crate::csi::v1::identity_server::IdentityServer;
use crate::csi::v1::node_server::NodeServer;
use crate::node::config::NodeConfig;
use crate::node::shutdown::wait_for;
use crate::volume::volumes::Volumes;

/// Calls of one connection at a time. kubelet dials a new one for every call.
const CALLS_PER_CONNECTION: usize = 256;

/// Serves kubelet until `stop` is true, and the calls that run to their end.
pub(in crate::node) fn serve(
    listener: tokio::net::UnixListener,
    config: &NodeConfig,
    volumes: &Arc<Volumes>,
    metrics: &Metrics,
    stop: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send + 'static {
    let calls = Calls::new(metrics.clone());
    let identity = IdentityService {
        driver_name: config.driver_name.clone(),
        with_controller: config.with_controller,
        works: Works::Mounts,
        calls: calls.clone(),
    };
    let node = NodeService {
        volumes: Arc::clone(volumes),
        node_id: config.node_id.clone(),
        allow_writers: config.allow_writers,
        calls,
    };
    let server = Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .add_service(IdentityServer::new(identity))
        .add_service(NodeServer::new(node));
    async move {
        let served = server.serve_with_incoming_shutdown(transport::private_grpc(listener), wait_for(stop));
        if let Err(error) = served.await {
            tracing::error!(%error, "the CSI socket failed");
        }
    }
}
