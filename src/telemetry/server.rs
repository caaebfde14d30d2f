//! HTTP for whoever can reach the port, which in a cluster is every pod.
//!
//! A client is trusted with nothing: not to send a request, not to read the answer, not to go away. What all clients
//! together hold is a bounded number of descriptors, whatever they do, and who only holds connections keeps nobody out. A
//! flood of whole requests can: that is what the chart's NetworkPolicy is for.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use futures_util::StreamExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tower::ServiceExt as _;

use crate::host::accept;

/// Connections that are open at the same time. The next one takes the place of the one that has been idle longest.
const CONNECTIONS: usize = 32;
/// How long a new connection keeps its place in any case. Clients that mean it send their request at once, and are then no
/// longer idle. Meanwhile nobody is accepted, and who comes waits in the listener's queue: this lets 16,000 a second pass.
const GRACE: Duration = Duration::from_millis(2);
/// Time for the whole header of a request to come.
const HEADER_TIME: Duration = Duration::from_secs(3);
/// Time for a connection from its beginning to its end: for the header, a check of 3 s, and the answer.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// Bytes of a request's header, and of what is read or written ahead. hyper wants at least 8 KiB.
const BUFFER_BYTES: usize = 16 * 1024;

/// Serves `router` until `stop` is true, one request for each connection; then lets those that are being answered end.
pub async fn serve(listener: TcpListener, router: Router, mut stop: watch::Receiver<bool>) {
    let mut incoming = pin!(accept::connections(listener));
    let mut crowd = Crowd::default();
    loop {
        let connection = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            connection = incoming.next() => connection,
        };
        let Some(connection) = connection else { break };
        crowd.make_room().await;
        crowd.add(connection, router.clone(), stop.clone());
    }
    while crowd.tasks.join_next().await.is_some() {}
}

/// The connections that are open.
#[derive(Default)]
struct Crowd {
    /// Oldest first.
    members: Vec<Member>,
    tasks: JoinSet<()>,
}

/// A connection.
struct Member {
    since: Instant,
    /// Whether its request has come.
    asked: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Crowd {
    /// Waits until there is room for one more, and makes it.
    ///
    /// The oldest connection that has sent no request is closed; the oldest of all, when all have. How much a client
    /// has sent of its request makes no difference: who sends a byte from time to time is idle, too.
    async fn make_room(&mut self) {
        loop {
            while self.tasks.try_join_next().is_some() {}
            self.members.retain(|member| !member.task.is_finished());
            if self.members.len() < CONNECTIONS {
                return;
            }
            let idle = self.members.iter().find(|member| !member.asked.load(Ordering::Relaxed));
            let Some(longest) = idle.or(self.members.first()) else { return };
            let keeps_until = longest.since + GRACE;
            if Instant::now() < keeps_until {
                // Meanwhile its request may come, or another connection may end.
                tokio::select! {
                    () = sleep_until(keeps_until) => {}
                    _ = self.tasks.join_next() => {}
                }
            } else {
                longest.task.abort();
                self.tasks.join_next().await; // A descriptor is free when a task has ended, not when it is told to.
            }
        }
    }

    fn add(&mut self, connection: TcpStream, router: Router, stop: watch::Receiver<bool>) {
        let asked = Arc::new(AtomicBool::new(false));
        let task = self.tasks.spawn(answer(connection, router, Arc::clone(&asked), stop));
        self.members.push(Member { since: Instant::now(), asked, task });
    }
}

/// Answers one request.
async fn answer(
    connection: TcpStream,
    router: Router,
    asked: Arc<AtomicBool>,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        router.clone().oneshot(request)
    });
    let mut http = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME)
            .keep_alive(false)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(connection), service)
    );
    let ended = timeout(CONNECTION_TIME, async {
        tokio::select! {
            ended = http.as_mut() => return ended,
            _ = stop.wait_for(|stop| *stop) => {}
        }
        http.as_mut().graceful_shutdown();
        http.await
    });
    match ended.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the health port ended early"),
        Err(_) => tracing::debug!("a connection to the health port took too long"),
    }
}
