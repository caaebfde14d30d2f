//! The health server: `/healthz`, `/readyz`, `/metrics`, on one port or on two.

use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

use crate::host::blocking::{self, Lane};
use crate::telemetry::{exposition, server};

/// The answer to a check: well, or why not.
pub type Answer = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
/// Something that can be asked again and again.
pub type Check = Box<dyn Fn() -> Answer + Send + Sync>;

/// What the server asks.
pub struct Checks {
    /// Whether the process works; if not, it is to be restarted. Says nothing about registries or disks, which
    /// a restart does not mend.
    pub live: Check,
    /// Whether volumes can be published.
    pub ready: Check,
    /// What `/metrics` shows.
    pub metrics: Registry,
}

/// Time for a check: livenessprobe's default.
const CHECK_TIME: Duration = Duration::from_secs(3);

/// Requests answered at the same time on a port; more wait.
const REQUESTS: usize = 16;

/// Connections that wait to be accepted. A crowd is let through quickly; who comes while the queue is full waits a second,
/// until its TCP tries again.
const QUEUE: u32 = 1024;

/// Binds `address`; where there is no IPv6, all IPv4 addresses in place of all addresses.
///
/// *Caller:* it runs in the async runtime, which the listener is registered with.
///
/// # Errors
/// When the port is taken, or the address is not this machine's.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    match listen(address) {
        Err(error)
            if address.ip() == Ipv6Addr::UNSPECIFIED
                && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
        {
            listen((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        result => result,
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    socket.set_reuseaddr(true)?; // As `TcpListener::bind` does: the port is free again as soon as the process has ended.
    socket.bind(address)?;
    socket.listen(QUEUE)
}

/// Where it serves.
pub struct Listeners {
    /// For `/healthz` and `/readyz`.
    pub health: Option<TcpListener>,
    /// For `/metrics`; without it they are beside the checks.
    pub metrics: Option<TcpListener>,
}

/// Serves until `stop` is true.
pub async fn serve(listeners: Listeners, checks: Checks, stop: watch::Receiver<bool>) {
    let checks = Arc::new(checks);
    let health = Router::new()
        .route("/healthz", get(|State(checks): State<Arc<Checks>>| async move { answer(&checks.live).await }))
        .route(
            "/readyz",
            get(|State(checks): State<Arc<Checks>>| async move { answer(&checks.ready).await }),
        );
    let metrics = Router::new().route("/metrics", get(metrics));
    let serve_one = async |listener: Option<TcpListener>, router: Router<Arc<Checks>>| {
        let Some(listener) = listener else { return };
        let limited = router.layer(tower::limit::GlobalConcurrencyLimitLayer::new(REQUESTS));
        server::serve(listener, limited.with_state(Arc::clone(&checks)), stop.clone()).await;
    };
    if listeners.metrics.is_some() {
        // Each is limited by itself: who asks for metrics again and again keeps no probe out.
        tokio::join!(serve_one(listeners.health, health), serve_one(listeners.metrics, metrics));
    } else {
        serve_one(listeners.health, health.merge(metrics)).await;
    }
}

async fn answer(check: &Check) -> Response {
    match tokio::time::timeout(CHECK_TIME, check()).await {
        Ok(Ok(())) => (StatusCode::OK, "ok\n".to_owned()).into_response(),
        Ok(Err(reason)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "no answer in 3 s\n".to_owned()).into_response(),
    }
}

async fn metrics(State(checks): State<Arc<Checks>>, headers: HeaderMap) -> Response {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let accepted = accepted.collect::<Vec<_>>().join(",");
    // The kernel is asked about the process.
    let write = move || exposition::write(&checks.metrics, &accepted);
    match blocking::run(Lane::Mounts, write).await {
        Ok((kind, text)) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
