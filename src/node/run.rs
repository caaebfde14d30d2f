//! `ocivol node`: the life of the plugin, from the first socket to the last call.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic::transport::Server;

use crate::csi::identity::IdentityService;
use crate::csi::metrics::Metrics;
use crate::csi::node::NodeService;
use crate::csi::registration;
use crate::csi::registration::State;
use crate::csi::transport;
use crate::csi::v1::ProbeRequest;
use crate::csi::v1::identity_client::IdentityClient;
use crate::csi::v1::identity_server::IdentityServer;
use crate::csi::v1::node_server::NodeServer;
use crate::failure::Failure;
use crate::host::socket;
use crate::mount::mountinfo::Table;
use crate::node::config::NodeConfig;
use crate::registry::client::Registry;
use crate::telemetry::health;
use crate::telemetry::health::Checks;
use crate::volume::volumes::Volumes;
use crate::{control, pull};

/// Time for calls to end after SIGTERM. Kubernetes kills after 30 s, and all these times together are less.
const DRAIN: Duration = Duration::from_secs(15);
/// How long the command line's operations may then take.
const CONTROL: Duration = Duration::from_secs(2);
/// How long the disk may take for what is not durable yet.
const FLUSH: Duration = Duration::from_secs(5);
/// How long what blocks may take: what is left behind then is cleared at the next start.
pub const GRACE: Duration = Duration::from_secs(3);
/// How often a store that cannot be used is tried again.
const STORE_RETRY: Duration = Duration::from_secs(5);
/// Calls of one connection at a time. kubelet dials a new one for every call.
const CALLS_PER_CONNECTION: usize = 256;

/// Becomes true when the process is told to end.
pub async fn stop_on_signal(stop: watch::Sender<bool>) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return tracing::error!("cannot handle signals");
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.send_replace(true);
}

/// Serves until `stop` is true; then takes the registration away, lets running calls end, and returns.
///
/// The CSI socket serves before the registration socket exists, because kubelet calls it at once.
///
/// # Errors
/// When a socket cannot be bound, and when kubelet can no longer be registered with. A store that cannot be used is no reason: unpublish works without it.
pub async fn run(config: NodeConfig, stop: watch::Receiver<bool>) -> Result<(), Failure> {
    let registry =
        Registry::new(config.registry.clone()).map_err(|error| Failure::internal(&error.to_string()))?;
    let pull_metrics = pull::metrics::Metrics::default();
    let volumes = Volumes::new(
        config.root.clone(),
        registry,
        config.pulls.clone(),
        pull_metrics.clone(),
        config.policy.clone(),
        config.lock,
    );
    let metrics = Metrics::new(config.driver_name.clone());
    let bind = |path: &PathBuf| {
        socket::bind(path)
            .map_err(|error| Failure::internal(&format!("cannot bind {}: {error}", path.display())))
    };
    let listener = bind(&config.socket)?;
    let own_socket = socket::identity(&config.socket);
    let health_listener = match config.health {
        Some(address) => Some(health::bind(address).map_err(|error| {
            Failure::internal(&format!("cannot bind {address} (--health-addr): {error}"))
        })?),
        None => None,
    };
    let (ended, calls_may_end) = watch::channel(false);
    let serving = tokio::spawn(serve(listener, &config, &volumes, &metrics, calls_may_end.clone()));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        driver = config.driver_name,
        node = config.node_id,
        socket = %config.socket.display(),
        root = %config.root.display(),
        "serving"
    );
    check_propagation(&config)?;
    let control =
        tokio::spawn(control(config.root.join(control::request::SOCKET), Arc::clone(&volumes), stop.clone()));
    let state = Arc::new(watch::Sender::new(State::Waiting));
    let mut registering = config
        .registration
        .clone()
        .map(|settings| tokio::spawn(registration::run(settings, Arc::clone(&state), stop.clone())));
    let health = health_listener.map(|listener| {
        let must_register = config.registration.is_some();
        let checks = checks(&config, &volumes, &metrics, &pull_metrics, state, must_register);
        tokio::spawn(health::serve(listener, checks, calls_may_end))
    });
    let lost = match &mut registering {
        // It ends when it is told to, after removing its socket: kubelet sends nothing new.
        Some(task) => match task.await {
            Ok(ended) => ended.err().map(|gone| gone.to_string()),
            Err(panic) => Some(format!("registration with kubelet failed: {panic}")),
        },
        None => {
            wait_for(stop).await;
            None
        }
    };
    tracing::info!("stopping");
    volumes.stop();
    ended.send_replace(true);
    if tokio::time::timeout(DRAIN, serving).await.is_err() {
        tracing::warn!("calls did not end in time");
    }
    // Where registration was lost nobody has told it to end; and it may be opening the store.
    let ending = control.abort_handle();
    if lost.is_some() || tokio::time::timeout(CONTROL, control).await.is_err() {
        ending.abort();
    }
    if tokio::time::timeout(FLUSH, volumes.flush()).await.is_err() {
        tracing::warn!("the disk is slow; what is not durable is checked at the next start");
    }
    if let Some(task) = health {
        task.abort();
    }
    // Another instance may have taken the place meanwhile; a stale socket is replaced at the next start.
    if socket::identity(&config.socket) == own_socket {
        let _ = std::fs::remove_file(&config.socket);
    }
    lost.map_or(Ok(()), |lost| Err(Failure::internal(&lost)))
}

async fn wait_for(mut stop: watch::Receiver<bool>) {
    // A dropped sender means the same: nobody is left who could want this to go on.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn serve(
    listener: tokio::net::UnixListener,
    config: &NodeConfig,
    volumes: &Arc<Volumes>,
    metrics: &Metrics,
    stop: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send + 'static {
    let identity = IdentityService { driver_name: config.driver_name.clone(), metrics: metrics.clone() };
    let node = NodeService {
        volumes: Arc::clone(volumes),
        node_id: config.node_id.clone(),
        allow_writers: config.allow_writers,
        metrics: metrics.clone(),
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

/// Opens the store, reads what is published, and serves the command line; tries again while the store cannot be
/// used.
async fn control(path: PathBuf, volumes: Arc<Volumes>, mut stop: watch::Receiver<bool>) {
    loop {
        let recovered = volumes.recover().await;
        let usable = volumes.puller().await.map(drop);
        match (&recovered, &usable) {
            (Ok(published), Ok(())) => tracing::info!(published, "store is open"),
            (Err(error), _) => tracing::warn!(%error, "cannot read what is published"),
            (_, Err(error)) => tracing::warn!(%error, "the store cannot be used; it is tried again"),
        }
        // Only who holds the store's lock may take its control socket.
        if usable.is_ok() {
            if let Err(error) = volumes.check_locks().await {
                tracing::warn!(
                    %error,
                    "flags of mounts cannot be locked; where user namespaces are forbidden (sysctl user.max_user_namespaces), volumes are overlays, which pods with hostUsers: false cannot have"
                );
            }
            match socket::bind(&path) {
                Ok(listener) => return control::server::serve(listener, &path, volumes, stop).await,
                Err(error) => tracing::warn!(socket = %path.display(), %error, "cannot bind"),
            }
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(STORE_RETRY) => {}
        }
    }
}

fn checks(
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

/// Mounts reach the pods only if the directory of pods propagates them (`mountPropagation: Bidirectional`). Where it
/// is mounted by itself, as in a container, and does not, nothing would ever work.
fn check_propagation(config: &NodeConfig) -> Result<(), Failure> {
    let Some(pods) = &config.policy.pods else { return Ok(()) };
    let Ok(table) = Table::read() else { return Ok(()) };
    if table.holder(pods).is_some_and(|mount| mount.shared) {
        return Ok(());
    }
    let what =
        "mounts made here do not reach the pods; set mountPropagation: Bidirectional on the volume mount of";
    if table.at(pods).is_some() {
        let advice = "and see that the node's mounts are shared (mount --make-rshared /)";
        return Err(Failure::internal(&format!("{what} {}, {advice}", pods.display())));
    }
    tracing::warn!(pods = %pods.display(), "{what} this directory, if this is a container");
    Ok(())
}
