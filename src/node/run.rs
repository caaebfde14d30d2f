//! `ocivol node`: the life of the plugin, from the first socket to the last call.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::control::status::AboutNode;
use crate::csi::metrics::Metrics;
use crate::csi::registration::{self, State};
use crate::failure::Failure;
use crate::host::blocking::{self, Lane};
use crate::host::{socket, traces};
use crate::kube::events::{Author, Events};
use crate::node::checks::Checks;
use crate::node::config::NodeConfig;
use crate::node::health::checks;
use crate::node::open::open;
use crate::node::serve::serve;
use crate::node::shutdown::{CONTROL, DRAIN, FLUSH, THREADS, TRACES, wait_for};
use crate::node::{metrics, propagation, registries};
use crate::prepull::agent::Agent;
use crate::registry::client::Registry;
use crate::registry::transport::RegistrySettings;
use crate::telemetry::health;
use crate::volume::volumes::{Settings, Volumes};
use crate::{control, pull};

/// Serves until `stop` is true; then takes the registration away, lets running calls end, and returns.
///
/// The CSI socket serves before the registration socket exists, because kubelet calls it at once.
///
/// # Errors
/// When a socket cannot be bound, and when kubelet can no longer be registered with. A store that cannot be used is no reason: unpublish works without it.
pub async fn run(config: NodeConfig, stop: watch::Receiver<bool>) -> Result<(), Failure> {
    let told_apart = {
        let config = config.clone();
        blocking::run(Lane::Store, move || registries::of(&config)).await
    };
    let registry = RegistrySettings { told_apart, ..config.registry.clone() };
    let endpoint = config.otlp_endpoint.as_deref();
    let traces = endpoint.map(|endpoint| traces::start(endpoint, &config.node_id)).transpose();
    let traces = traces
        .map_err(|error| Failure::internal(&format!("cannot send traces (--otlp-endpoint): {error}")))?;
    let registry = Registry::new(registry).map_err(|error| Failure::internal(&error.to_string()))?;
    let cluster = config.credentials.cluster.clone().filter(|_| config.pod_events);
    let author = Author { driver: config.driver_name.clone(), node: config.node_id.clone() };
    let settings = Settings {
        events: cluster.map(|cluster| Events::start(cluster, author)),
        credentials: config.credentials.clone(),
        permits: config.permits.clone(),
        pulls: config.pulls.clone(),
        budget: config.budget,
        pinned: config.pins.iter().map(ToString::to_string).collect(),
        min_age: config.min_age,
        policy: config.policy.clone(),
        lock: config.lock,
        warm: config.warm,
    };
    let volumes = Volumes::new(config.root.clone(), registry, settings, pull::metrics::Metrics::default());
    let metrics = Metrics::new(&config.driver_name);
    let state = Arc::new(watch::Sender::new(State::Waiting));
    let bind = |path: &PathBuf| {
        socket::bind(path)
            .map_err(|error| Failure::internal(&format!("cannot bind {}: {error}", path.display())))
    };
    let listener = bind(&config.socket)?;
    let own_socket = socket::identity(&config.socket);
    let listen = |address: Option<SocketAddr>, flag: &str| {
        let bound = address.map(|address| {
            health::bind(address)
                .map_err(|error| Failure::internal(&format!("cannot bind {address} ({flag}): {error}")))
        });
        bound.transpose()
    };
    let listeners = health::Listeners {
        health: listen(config.health, "--health-addr")?,
        metrics: listen(config.metrics, "--metrics-addr")?,
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
    let node = Checks::new(&config, &volumes, &state, propagation::check(&config)?);
    let about: AboutNode = {
        let (node, config) = (node.clone(), config.clone());
        Arc::new(move || node.about(&config))
    };
    let control = tokio::spawn(open(
        config.root.join(control::request::SOCKET),
        Arc::clone(&volumes),
        about,
        config.cached_artifacts,
        stop.clone(),
    ));
    let collecting = {
        let volumes = Arc::clone(&volumes);
        tokio::spawn(async move { volumes.collect_at_watermark().await })
    };
    if config.warm.is_some() {
        tokio::spawn(Arc::clone(&volumes).watch_residency());
    }
    {
        let volumes = Arc::clone(&volumes);
        tokio::spawn(async move { volumes.count_now_and_then().await });
    }
    if let Some(round) = config.scrub {
        let volumes = Arc::clone(&volumes);
        tokio::spawn(async move { volumes.scrub(round).await });
    }
    for reference in config.pins.clone() {
        let volumes = Arc::clone(&volumes);
        tokio::spawn(async move { volumes.pin(&reference).await });
    }
    if let Some(cluster) = config.credentials.cluster.clone().filter(|_| config.cached_artifacts) {
        let agent = Agent::new(Arc::clone(&volumes), cluster, config.node_id.clone());
        let stop = stop.clone();
        tokio::spawn(async move {
            if let Err(error) = agent.run(stop).await {
                tracing::error!(%error, "nothing is brought before pods want it: --node-id is not the node's name");
            }
        });
    }
    let mut registering = config
        .registration
        .clone()
        .map(|settings| tokio::spawn(registration::run(settings, Arc::clone(&state), stop.clone())));
    let all = metrics::all(&config, &volumes, &metrics, &node);
    let checks = checks(&config, &volumes, all, node);
    let health = tokio::spawn(health::serve(listeners, checks, calls_may_end));
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
    let ended = async {
        let _ = collecting.await; // It ends with `volumes`, after what it deletes.
        volumes.end_pulls().await;
        blocking::own_threads_ended().await;
    };
    if tokio::time::timeout(THREADS, ended).await.is_err() {
        tracing::warn!("not all work ended in time; what is left of it is cleared at the next start");
    }
    if tokio::time::timeout(FLUSH, volumes.flush()).await.is_err() {
        tracing::warn!("the disk is slow; what is not durable is checked at the next start");
    }
    health.abort();
    if let Some(traces) = traces {
        let ended = blocking::on_own_thread("traces", move || traces.end());
        let _ = tokio::time::timeout(TRACES, ended).await; // What is not sent is lost.
    }
    // Another instance may have taken the place meanwhile; a stale socket is replaced at the next start.
    if socket::identity(&config.socket) == own_socket {
        let _ = std::fs::remove_file(&config.socket);
    }
    lost.map_or(Ok(()), |lost| Err(Failure::internal(&lost)))
}
