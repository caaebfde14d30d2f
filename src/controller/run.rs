//! The life of the controller: it serves one socket, keeps nothing, and needs neither store nor privilege.

use prometheus_client::registry::Registry as Metrics;
use tokio::sync::watch;
use tonic::transport::Server;

use crate::controller::config::ControllerConfig;
use crate::csi::call::Calls;
use crate::csi::controller::ControllerService;
use crate::csi::identity::{IdentityService, Works};
use crate::csi::v1::controller_server::ControllerServer;
use crate::csi::v1::identity_server::IdentityServer;
use crate::csi::{metrics, transport};
use crate::failure::Failure;
use crate::host::socket;
use crate::kube::cluster::Cluster;
use crate::node::health::probe;
use crate::node::shutdown::{DRAIN, wait_for};
use crate::prepull::coordinator::Coordinator;
use crate::provision::provisioner::Provisioner;
use crate::registry::client::Registry;
use crate::telemetry::health;
use crate::telemetry::process::Process;

/// Calls at a time of one connection. The provisioner has one, and makes up to 100 for claims and 100 for volumes that go.
const CALLS: usize = 256;

/// Serves until `stop` is true, and the calls that run to their end.
///
/// # Errors
/// When a socket or a port cannot be bound.
pub async fn run(config: ControllerConfig, stop: watch::Receiver<bool>) -> Result<(), Failure> {
    let cannot = |what: String| {
        move |error: std::io::Error| Failure::internal(&format!("cannot bind {what}: {error}"))
    };
    let registry = Registry::new(config.registry).map_err(|error| Failure::internal(&error.to_string()))?;
    let counted = metrics::Metrics::of_controller(&config.driver_name);
    let calls = Calls::new(counted.clone());
    let listener = socket::bind(&config.socket).map_err(cannot(config.socket.display().to_string()))?;
    let own_socket = socket::identity(&config.socket);
    let health = config
        .health
        .map(|address| health::bind(address).map_err(cannot(format!("{address} (--health-addr)"))));
    let listeners = health::Listeners { health: health.transpose()?, metrics: None };
    let mut all = Metrics::default();
    counted.register(&mut all);
    registry.register(&mut all);
    all.register_collector(Box::new(Process));
    Cluster::register(config.cached_artifacts.as_ref(), &mut all);
    let coordinating = config.cached_artifacts.clone().map(|cluster| {
        let coordinator = Coordinator::new(cluster, registry.clone(), config.anonymous, config.marks.clone());
        tokio::spawn(coordinator.run(stop.clone()))
    });
    let identity = IdentityService {
        driver_name: config.driver_name.clone(),
        with_controller: true,
        works: Works::Asks,
        calls: calls.clone(),
    };
    let controller = ControllerService {
        provisioner: Provisioner::new(registry, config.permits, config.anonymous),
        calls,
    };
    let server = Server::builder()
        .concurrency_limit_per_connection(CALLS)
        .add_service(IdentityServer::new(identity))
        .add_service(ControllerServer::new(controller));
    let (path, ready_path) = (config.socket.clone(), config.socket.clone());
    let checks = health::Checks {
        live: Box::new(move || Box::pin(probe(path.clone()))),
        ready: Box::new(move || Box::pin(probe(ready_path.clone()))),
        metrics: all,
    };
    let telling = tokio::spawn(health::serve(listeners, checks, stop.clone()));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        driver = config.driver_name,
        socket = %config.socket.display(),
        "serving claims"
    );
    let serving =
        server.serve_with_incoming_shutdown(transport::private_grpc(listener), wait_for(stop.clone()));
    let drained = async {
        wait_for(stop).await;
        tokio::time::sleep(DRAIN).await;
    };
    let result = tokio::select! {
        served = serving => served.map_err(|error| Failure::internal(&format!("the CSI socket failed: {error}"))),
        () = drained => {
            tracing::warn!("calls did not end in time");
            Ok(())
        }
    };
    telling.abort();
    if let Some(coordinating) = coordinating {
        coordinating.abort();
    }
    // Another instance may have taken the place meanwhile.
    if socket::identity(&config.socket) == own_socket {
        let _ = std::fs::remove_file(&config.socket);
    }
    result
}
