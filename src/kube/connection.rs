//! One object from the API: requests with time limits, attempts and sizes that are bounded.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::time::Duration;

use ::kube::client::Body;
use ::kube::{Client, Config};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use prometheus_client::metrics::counter::Counter;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout_at};

use crate::failure::one_line;
use crate::host::blocking::{self, Lane};
use crate::host::fair_queue::FairQueue;
use crate::host::limits;
use crate::kube::error::Error;
use crate::kube::object::{Change, Object};
use crate::tenant::Tenant;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(in crate::kube) struct Limits {
    /// All that is read for one caller, with all attempts and waits.
    pub whole: Duration,
    /// One attempt. Shorter than the whole: a connection whose server is gone without a word is then replaced in time.
    pub attempt: Duration,
}

impl Limits {
    /// Those of the plugin. kubelet waits two minutes for a publish, of which the pull wants the most.
    pub const DEFAULT: Self = Self { whole: Duration::from_secs(10), attempt: Duration::from_secs(4) };
}

/// The way to the API server. Connects when it is first asked.
pub(in crate::kube) struct Connection {
    config: Config,
    limits: Limits,
    client: OnceCell<Client>,
    turns: FairQueue,
    /// Requests that failed; see [`Connection::count`].
    errors: Counter,
}

/// Requests at a time: with [`BODY_LIMIT`] that bounds the memory. Who waits for a turn waits within its time limit.
const REQUESTS: u64 = limits::OBJECTS;
/// The media type of a change of some fields.
const MERGE: &str = "application/merge-patch+json";
/// Attempts for one object.
const ATTEMPTS: u32 = 3;
/// The first wait between attempts; doubles with every failure.
const FIRST: Duration = Duration::from_millis(200);
/// The longest wait, also for a `Retry-After`. API servers that are busy ask for one second.
const LONGEST: Duration = Duration::from_secs(2);
/// Bytes of an object.
const BODY_LIMIT: usize = limits::OBJECT_BYTES;
/// Bytes of an answer that says why there is no object.
const FAULT_LIMIT: usize = 64 * 1024;
/// Characters of it that are shown.
const DETAIL_LIMIT: usize = 300;

impl Connection {
    /// Keeps what is needed to connect.
    pub fn new(mut config: Config, limits: Limits) -> Self {
        // Attempts, their limits and the waits between them are those of this file.
        config.default_retry = false;
        config.connect_timeout = Some(limits.attempt);
        Self {
            config,
            limits,
            client: OnceCell::new(),
            turns: FairQueue::new(REQUESTS),
            errors: Counter::default(),
        }
    }

    /// Requests that failed so far, without those whose object was not there, or there already.
    pub fn errors(&self) -> &Counter {
        &self.errors
    }

    /// When what is begun now has to have ended.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.limits.whole
    }

    /// Reads `object`, and asks again after what may pass, at most [`ATTEMPTS`] times and until `deadline`. Also waits for one of
    /// [`REQUESTS`] turns.
    ///
    /// # Errors
    /// When the API server does not give it, cannot be reached until then, or sends more than [`BODY_LIMIT`] bytes or what is not
    /// the JSON of a `T`; [`Error::Setup`] when the token or certificates cannot be read.
    pub async fn get<T: DeserializeOwned>(&self, object: &Object, deadline: Instant) -> Result<T, Error> {
        let (mut wait, mut failures) = (FIRST, 0);
        loop {
            let error = match self.once(object, Some(deadline), self.ask(object)).await {
                Ok(body) => return read(object, &body),
                Err(error) => error,
            };
            failures += 1;
            let least = match error {
                Error::Status { retry_after: Some(least), .. } => least.max(wait / 2),
                _ => wait / 2,
            };
            // A part is random: plugins that failed together do not come back together.
            let pause = least + wait.mul_f64(rand::random_range(0.0..0.5));
            let is_late = least > LONGEST || Instant::now() + pause >= deadline;
            if !error.is_transient() || failures >= ATTEMPTS || is_late {
                return Err(error);
            }
            tracing::debug!(%error, ?pause, "asking the Kubernetes API again");
            sleep(pause).await;
            wait = (2 * wait).min(LONGEST);
        }
    }

    /// Writes `object`, in one attempt: what is written by the way is not worth another. Takes none of the turns, which are for
    /// what publishes wait for. *Caller:* writes one object at a time.
    ///
    /// # Errors
    /// As [`Connection::get`].
    pub async fn change(&self, object: &Object, change: Change, body: &Value) -> Result<(), Error> {
        let (method, path, kind) = match change {
            Change::Create => (Method::POST, object.collection(), "application/json"),
            Change::Merge => (Method::PATCH, object.path(), MERGE),
            Change::MergeStatus => (Method::PATCH, format!("{}/status", object.path()), MERGE),
        };
        let request = Request::builder().method(method).uri(path).header(ACCEPT, "application/json");
        let request = request.header(CONTENT_TYPE, kind).body(Body::from(body.to_string().into_bytes()));
        let request = request.map_err(|error| Error::Setup { reason: one_line(&error.to_string()) })?;
        let changing = async {
            let response = self.send(object, request).await?;
            if !response.status().is_success() {
                return Err(refusal(object, response).await);
            }
            // Read to its end, so that the connection is used again.
            body_of(object, response, FAULT_LIMIT).await.map(drop)
        };
        self.once(object, None, changing).await
    }

    /// Asks for what is at `path` once, as `accept` says, and gives the answer before its body has come. Takes none of the turns.
    /// *Caller:* reads one body at a time, and bounds it.
    ///
    /// # Errors
    /// As [`Connection::get`], also after the limit of an attempt.
    pub async fn open(&self, what: &Object, path: &str, accept: &str) -> Result<Response<Body>, Error> {
        let request = Request::get(path).header(ACCEPT, accept).body(Body::empty());
        let request = request.map_err(|error| Error::Setup { reason: one_line(&error.to_string()) })?;
        let opening = async {
            let response = self.send(what, request).await?;
            match response.status() {
                StatusCode::OK => Ok(response),
                _ => Err(refusal(what, response).await),
            }
        };
        self.once(what, None, opening).await
    }

    /// The same, with a body that is an object or a page of a list, of at most [`BODY_LIMIT`] bytes.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub async fn page<T: DeserializeOwned>(
        &self,
        what: &Object,
        path: &str,
        accept: &str,
    ) -> Result<T, Error> {
        let limit = self.limits.whole;
        let read_all = async {
            let response = self.open(what, path, accept).await?;
            read(what, &body_of(what, response, BODY_LIMIT).await?)
        };
        let late = |_| Err(Error::Timeout { what: what.clone(), limit });
        timeout_at(Instant::now() + limit, read_all).await.unwrap_or_else(late)
    }

    /// The namespace of this process, or of the kubeconfig.
    pub fn namespace(&self) -> &str {
        &self.config.default_namespace
    }

    /// One attempt: what `work` gives within its own limit, and before `deadline`.
    async fn once<T>(
        &self,
        what: &Object,
        deadline: Option<Instant>,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let began = Instant::now();
        let own = began + self.limits.attempt;
        let end = deadline.map_or(own, |deadline| deadline.min(own));
        let late = || Error::Timeout { what: what.clone(), limit: end.saturating_duration_since(began) };
        let done = timeout_at(end, work).await.unwrap_or_else(|_| Err(late()));
        done.inspect_err(|error| self.count(error))
    }

    async fn send(&self, what: &Object, request: Request<Body>) -> Result<Response<Body>, Error> {
        let response = self.client().await?.send(request).await;
        response.map_err(|error| unreachable(what, &error))
    }

    /// Counts a failure. That an object is not there, or there already, is an answer: of an event that was forgotten here or has expired,
    /// of a pull secret that nobody has made; and that a version is no longer known is one as well.
    fn count(&self, error: &Error) {
        if !matches!(error, Error::NotFound { .. } | Error::Conflict { .. } | Error::Expired { .. }) {
            self.errors.inc();
        }
    }

    async fn ask(&self, object: &Object) -> Result<Bytes, Error> {
        let _turn = self.turns.acquire(&Tenant::of_namespace(Some(&object.namespace)), "", 1).await;
        let request = Request::get(object.path()).header(ACCEPT, "application/json").body(Body::empty());
        let request = request.map_err(|error| Error::Setup { reason: one_line(&error.to_string()) })?;
        let response = self.send(object, request).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(object, response).await);
        }
        body_of(object, response, BODY_LIMIT).await
    }

    /// The client, which is made when it is first needed: that reads the token and the certificates, so it may block. From then on
    /// it reads them again by itself, once a minute, from files that are in memory.
    async fn client(&self) -> Result<&Client, Error> {
        let make = || async {
            let config = self.config.clone();
            let made = blocking::run(Lane::Store, move || Client::try_from(config)).await;
            made.map_err(|error| Error::Setup { reason: innermost(&error) })
        };
        self.client.get_or_try_init(make).await
    }
}

/// The value in an answer. Of what it is not only the place is said: serde_json's own text can quote a secret.
pub(in crate::kube) fn read<T: DeserializeOwned>(object: &Object, body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::Protocol {
        what: object.clone(),
        fault: format!("is not the JSON of one: line {}, column {}", error.line(), error.column()),
    })
}

/// The body of an answer, of at most `limit` bytes.
async fn body_of(object: &Object, response: Response<Body>, limit: usize) -> Result<Bytes, Error> {
    match Limited::new(response.into_body(), limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Error::TooLarge { what: object.clone(), limit }),
        Err(error) => Err(unreachable(object, &*error)),
    }
}

/// Why the API server does not give `object`.
async fn refusal(object: &Object, response: Response<Body>) -> Error {
    /// `metav1.Status`.
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    let what = object.clone();
    let status = response.status();
    let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let retry_after = header.map(Duration::from_secs);
    let said = body_of(object, response, FAULT_LIMIT).await.ok();
    let said = said.and_then(|body| serde_json::from_slice::<Refusal>(&body).ok());
    let detail = said.map_or_else(String::new, |said| {
        format!(" ({})", one_line(&said.message.chars().take(DETAIL_LIMIT).collect::<String>()))
    });
    match status {
        StatusCode::UNAUTHORIZED => Error::Unauthorized { what },
        StatusCode::FORBIDDEN => Error::Forbidden { what, detail },
        StatusCode::NOT_FOUND => Error::NotFound { what },
        StatusCode::CONFLICT => Error::Conflict { what },
        StatusCode::GONE => Error::Expired { what },
        _ if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
            Error::Status { what, status: status.as_u16(), retry_after, detail }
        }
        _ => Error::Protocol { what, fault: format!("has the status {}{detail}", status.as_u16()) },
    }
}

pub(in crate::kube) fn unreachable(object: &Object, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Unreachable { what: object.clone(), reason: innermost(error) }
}

/// The text of the innermost cause, which is what a person can act on.
pub(in crate::kube) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    one_line(&cause.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::body::Body as Sent;
    use axum::http::header::AUTHORIZATION;
    use futures_util::StreamExt as _;
    use serde_json::json;

    use super::*;
    use crate::kube::object::Resource;

    /// How the fake API server answers.
    pub enum Reply {
        /// With an object.
        Object(Value),
        /// With a status, and `metav1.Status`.
        Status(u16),
        /// With a status and a `Retry-After`.
        Later(u16, u64),
        /// With these bytes.
        Bytes(Vec<u8>),
        /// With these objects, each on a line, and then with nothing more; the answer ends only if that is said.
        Lines(Vec<Value>, bool),
        /// Not at all.
        Silence,
    }

    /// A request.
    #[derive(Clone)]
    struct Seen {
        method: Method,
        path: String,
        /// Its `Authorization`.
        token: Option<String>,
        body: Bytes,
    }

    /// An API server on the loopback interface, without TLS, that remembers what it was asked.
    pub struct Fake {
        pub address: SocketAddr,
        seen: Arc<Mutex<Vec<Seen>>>,
    }

    impl Fake {
        /// Answers each path as `script` says, which is also told how many requests there were before.
        pub async fn start(script: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Self {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
            let (log, script) = (Arc::clone(&seen), Arc::new(script));
            let router = Router::new().fallback(move |request: axum::extract::Request| {
                let (log, script) = (Arc::clone(&log), Arc::clone(&script));
                async move {
                    let method = request.method().clone();
                    let token = request.headers().get(AUTHORIZATION);
                    let token = token.map(|token| token.to_str().expect("text").to_owned());
                    let path = request.uri().to_string();
                    let body = axum::body::to_bytes(request.into_body(), BODY_LIMIT).await.expect("a body");
                    assert_eq!(body.is_empty(), method == Method::GET);
                    let before = {
                        let mut log = log.lock().expect("no panic");
                        log.push(Seen { method, path: path.clone(), token, body });
                        log.len() - 1
                    };
                    answer(script(&path, before)).await
                }
            });
            tokio::spawn(async move { axum::serve(listener, router).await });
            Self { address, seen }
        }

        /// The paths that were asked for.
        pub fn paths(&self) -> Vec<String> {
            let seen = self.seen.lock().expect("no panic");
            assert!(seen.iter().all(|seen| seen.method == Method::GET), "something is not only read");
            seen.iter().map(|seen| seen.path.clone()).collect()
        }

        /// The `Authorization` of each request.
        pub fn tokens(&self) -> Vec<Option<String>> {
            self.seen.lock().expect("no panic").iter().map(|seen| seen.token.clone()).collect()
        }

        /// What was written: the method and the path, and the body.
        pub fn sent(&self) -> Vec<(String, Value)> {
            let seen = self.seen.lock().expect("no panic").clone();
            let sent = seen.into_iter().map(|Seen { method, path, body, .. }| {
                (format!("{method} {path}"), serde_json::from_slice(&body).expect("JSON"))
            });
            sent.collect()
        }

        pub fn config(&self) -> Config {
            Config::new(format!("http://{}", self.address).parse().expect("a URL"))
        }

        /// The cluster whose API server it is.
        pub fn cluster(&self) -> crate::kube::cluster::Cluster {
            crate::kube::cluster::Cluster::for_tests(self.config(), Limits::DEFAULT)
        }

        /// Waits until these requests were made, and no others.
        pub async fn until(&self, expected: &[&str]) {
            let asked = || -> Vec<String> {
                let seen = self.seen.lock().expect("no panic");
                seen.iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect()
            };
            let all = async {
                while asked() != expected {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            let all = tokio::time::timeout(Duration::from_secs(20), all).await;
            assert!(all.is_ok(), "{:?} and not {expected:?}", asked());
        }
    }

    async fn answer(reply: Reply) -> axum::response::Response {
        let (status, later, body) = match reply {
            Reply::Object(object) => (200, None, object.to_string().into_bytes()),
            Reply::Bytes(bytes) => (200, None, bytes),
            Reply::Status(status) | Reply::Later(status, _) => {
                let body = json!({"kind": "Status", "message": "said\nso", "code": status});
                let later = if let Reply::Later(_, seconds) = reply { Some(seconds) } else { None };
                (status, later, body.to_string().into_bytes())
            }
            Reply::Lines(lines, ends) => {
                let lines: Vec<_> =
                    lines.iter().map(|line| Ok::<_, std::io::Error>(format!("{line}\n"))).collect();
                let lines = futures_util::stream::iter(lines);
                let body = match ends {
                    true => Sent::from_stream(lines),
                    false => Sent::from_stream(lines.chain(futures_util::stream::pending())),
                };
                return axum::http::Response::new(body);
            }
            Reply::Silence => std::future::pending().await,
        };
        let mut response = axum::http::Response::builder().status(status);
        if let Some(seconds) = later {
            response = response.header(RETRY_AFTER, seconds);
        }
        response.body(Sent::from(body)).expect("an answer")
    }

    /// Limits for tests of what is too slow.
    pub(in crate::kube) const SHORT: Limits =
        Limits { whole: Duration::from_millis(400), attempt: Duration::from_millis(50) };

    fn object() -> Object {
        Object::new(Resource::Secret, "shop", "pull").expect("valid")
    }

    async fn get(fake: &Fake, limits: Limits) -> Result<Value, Error> {
        let connection = Connection::new(fake.config(), limits);
        connection.get(&object(), connection.deadline()).await
    }

    #[tokio::test]
    async fn what_may_pass_is_asked_again() {
        for first in [503, 500, 429] {
            let fake = Fake::start(move |_, before| match before {
                0 | 1 => Reply::Status(first),
                _ => Reply::Object(json!({"a": 1})),
            });
            let fake = fake.await;
            assert_eq!(get(&fake, Limits::DEFAULT).await.expect("the third attempt")["a"], 1);
            assert_eq!(fake.paths(), ["/api/v1/namespaces/shop/secrets/pull"; 3]);
        }
        let fake = Fake::start(|_, _| Reply::Status(503)).await;
        let error = get(&fake, Limits::DEFAULT).await.expect_err("never");
        assert!(
            error.to_string().contains("status 503") && error.to_string().contains("(said\\nso)"),
            "{error}"
        );
        assert_eq!(fake.paths().len(), 3);
    }

    #[tokio::test]
    async fn what_does_not_pass_is_not_asked_again() {
        for status in [400, 401, 403, 404, 302] {
            let fake = Fake::start(move |_, _| Reply::Status(status)).await;
            let error = get(&fake, Limits::DEFAULT).await.expect_err("refused");
            assert!(!error.is_transient(), "{error}");
            assert_eq!(fake.paths().len(), 1, "{status}");
        }
        let fake = Fake::start(|_, _| Reply::Later(429, 3600)).await;
        let error = get(&fake, Limits::DEFAULT).await.expect_err("an hour");
        assert!(matches!(error, Error::Status { status: 429, .. }), "{error}");
        assert_eq!(fake.paths().len(), 1);
    }

    #[tokio::test]
    async fn what_is_not_there_or_there_already_is_no_failure() {
        for (status, failures) in [(404, 0), (409, 0), (403, 1), (500, 1)] {
            let fake = Fake::start(move |_, _| Reply::Status(status)).await;
            let connection = Connection::new(fake.config(), Limits::DEFAULT);
            let body = json!({});
            connection.change(&object(), Change::Create, &body).await.expect_err("refused");
            assert_eq!(connection.errors().get(), failures, "{status}, of what is written");
            connection.get::<Value>(&object(), connection.deadline()).await.expect_err("refused");
            let attempts = u64::from(if status == 500 { ATTEMPTS } else { 1 });
            assert_eq!(
                connection.errors().get(),
                failures + failures * attempts,
                "{status}, of what is read"
            );
        }
    }

    #[tokio::test]
    async fn slow_servers_end_with_the_limit() {
        let fake = Fake::start(|_, _| Reply::Silence).await;
        let began = Instant::now();
        let error = get(&fake, SHORT).await.expect_err("silence");
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!((2..=3).contains(&fake.paths().len()), "{:?}", fake.paths());
    }

    #[tokio::test]
    async fn nobody_there_is_said() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let config = Config::new(format!("http://{address}").parse().expect("a URL"));
        let connection = Connection::new(config, Limits::DEFAULT);
        let error = connection.get::<Value>(&object(), connection.deadline()).await.expect_err("nobody");
        assert!(matches!(&error, Error::Unreachable { reason, .. } if reason.contains("refused")), "{error}");
    }

    #[tokio::test]
    async fn bodies_are_bounded() {
        let fake = Fake::start(|_, _| Reply::Bytes(vec![b' '; BODY_LIMIT + 1])).await;
        let error = get(&fake, Limits::DEFAULT).await.expect_err("too large");
        assert!(matches!(&error, Error::TooLarge { limit: BODY_LIMIT, .. }), "{error}");
    }

    #[tokio::test]
    async fn the_clients_of_registries_work_beside_it() {
        let fake = Fake::start(|_, _| Reply::Object(json!({}))).await;
        get(&fake, Limits::DEFAULT).await.expect("an object");
        // `kube` has set the cryptographic provider of the process.
        assert!(reqwest::Client::builder().no_proxy().build().is_ok());
    }
}
