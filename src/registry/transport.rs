//! One HTTP exchange with a registry: authentication, redirects, classification of answers, bounds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{self, HeaderValue};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::auth::{self, Token, Tokens};
use super::{Credential, Error};
use crate::failure::one_line;
use crate::oci::{Reference, reference::DOCKER_HUB};

/// Where content is asked for, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// The registry's host, with port, as references name it.
    pub host: String,
    /// The repository.
    pub repository: String,
    /// Who asks; `None` is anonymous.
    pub credential: Option<Arc<Credential>>,
}

impl Source {
    /// The repository of `reference`, asked as `credential`.
    pub fn new(reference: &Reference, credential: Option<Credential>) -> Self {
        Self {
            host: reference.host().to_owned(),
            repository: reference.repository().to_owned(),
            credential: credential.map(Arc::new),
        }
    }

    fn who(&self) -> String {
        self.credential.as_ref().map_or_else(|| "anonymous".into(), |known| known.user.clone())
    }
}

/// How registries are spoken to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Hosts, with port, that are spoken to without TLS.
    pub plain_http: BTreeSet<String>,
    /// Wait for a connection.
    pub connect_timeout: Duration,
    /// Wait for the first or the next byte of an answer; then the request counts as stalled.
    pub stall_timeout: Duration,
    /// Failures in a row after which a request is given up.
    pub attempts: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            plain_http: BTreeSet::new(),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            attempts: 4,
        }
    }
}

/// The HTTP client and what it knows of registries. Cheap to clone.
#[derive(Clone)]
pub(super) struct Transport {
    http: reqwest::Client,
    settings: Arc<Settings>,
    tokens: Arc<Tokens>,
}

/// What to ask for.
#[derive(Debug, Clone)]
pub(super) struct Request<'a> {
    pub method: Method,
    /// Below `/v2/<repository>/`.
    pub path: String,
    pub accept: Option<&'a str>,
    pub range: Option<std::ops::Range<u64>>,
    /// In words, for errors.
    pub what: &'a str,
}

/// Redirects followed for one request.
const REDIRECT_LIMIT: usize = 5;
/// Bytes of an error body that are looked at.
const ERROR_BODY_LIMIT: usize = 8 * 1024;
/// Characters of a registry's own words in an error.
const DETAIL_LIMIT: usize = 160;

impl Transport {
    /// # Errors
    /// When no TLS configuration can be made.
    pub fn new(settings: Settings) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("ocivol/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.connect_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .pool_max_idle_per_host(8)
            .pool_idle_timeout(Duration::from_secs(30))
            // Over HTTP/2 all requests would share one connection, and its windows would be memory to bound.
            .http1_only()
            .build()?;
        Ok(Self { http, settings: Arc::new(settings), tokens: Arc::default() })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Asks `source` once, and once more when it asks for credentials.
    pub async fn send(&self, source: &Source, request: &Request<'_>) -> Result<Response, Error> {
        let slot = self.tokens.slot(source).await;
        let known = slot.lock().await.clone().filter(Token::is_fresh);
        let response = self.follow(source, request, known.as_ref()).await?;
        // Only the registry itself may ask for credentials: not a host that it redirected to.
        let own = self.url(source, &request.path).is_ok_and(|url| url.origin() == response.url().origin());
        if response.status() != StatusCode::UNAUTHORIZED || !own {
            return self.classify(source, request, response).await;
        }
        let values: Vec<String> = response
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        let Some(challenge) = auth::choose(values.iter().map(String::as_str)) else {
            return self.classify(source, request, response).await;
        };
        let token = {
            let mut slot = slot.lock().await;
            // Another request may have fetched a new token while this one waited for the lock.
            let newer = slot.as_ref().filter(|token| {
                token.is_fresh() && known.as_ref().is_none_or(|known| known.header != token.header)
            });
            match newer {
                Some(token) => Some(token.clone()),
                None => {
                    let plain_http = self.settings.plain_http.contains(&source.host);
                    let fetched = auth::answer(&self.http, &challenge, source, plain_http);
                    *slot = self.bounded(&source.host, fetched).await?;
                    slot.clone()
                }
            }
        };
        let Some(token) = token else {
            return self.classify(source, request, response).await;
        };
        drop(response);
        let response = self.follow(source, request, Some(&token)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            *slot.lock().await = None;
        }
        self.classify(source, request, response).await
    }

    /// Sends the request and follows redirects. The `Authorization` value is for the registry's own origin only.
    async fn follow(
        &self,
        source: &Source,
        request: &Request<'_>,
        token: Option<&Token>,
    ) -> Result<Response, Error> {
        let protocol = |what: String| Error::Protocol { host: source.host.clone(), what };
        let origin = self.url(source, &request.path).map_err(protocol)?;
        let mut url = origin.clone();
        for _ in 0..=REDIRECT_LIMIT {
            let mut outgoing = self.http.request(request.method.clone(), url.clone());
            if let Some(accept) = request.accept {
                outgoing = outgoing.header(header::ACCEPT, accept);
            }
            if let Some(range) = &request.range {
                outgoing = outgoing.header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
            }
            if let Some(token) = token.filter(|_| url.origin() == origin.origin()) {
                let mut value = HeaderValue::from_str(token.header.reveal())
                    .map_err(|_| protocol("sent a token that is no header value".into()))?;
                value.set_sensitive(true);
                outgoing = outgoing.header(header::AUTHORIZATION, value);
            }
            let sent = async { outgoing.send().await.map_err(|error| unreachable(&source.host, error)) };
            let response = self.bounded(&source.host, sent).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response
                .headers()
                .get(header::LOCATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| url.join(value).ok())
                .ok_or_else(|| protocol("sent a redirect without a usable Location".into()))?;
            let downgrade = url.scheme() == "https" && location.scheme() != "https";
            if downgrade || !matches!(location.scheme(), "https" | "http") {
                return Err(protocol(format!("redirects from https to {}", location.scheme())));
            }
            url = location;
        }
        Err(protocol(format!("redirects more than {REDIRECT_LIMIT} times")))
    }

    /// The URL of `path` below the repository.
    fn url(&self, source: &Source, path: &str) -> Result<Url, String> {
        let scheme = if self.settings.plain_http.contains(&source.host) { "http" } else { "https" };
        let host = if source.host == DOCKER_HUB { "registry-1.docker.io" } else { &source.host };
        Url::parse(&format!("{scheme}://{host}/v2/{}/{path}", source.repository))
            .map_err(|error| format!("is no host for a URL: {error}"))
    }

    /// Runs `work` for at most the stall timeout.
    async fn bounded<T>(&self, host: &str, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let after = self.settings.stall_timeout;
        tokio::time::timeout(after, work)
            .await
            .unwrap_or_else(|_| Err(Error::Stalled { host: host.to_owned(), after }))
    }

    async fn classify(
        &self,
        source: &Source,
        request: &Request<'_>,
        response: Response,
    ) -> Result<Response, Error> {
        if matches!(response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Ok(response);
        }
        let refusal = async { Err(refusal(source, &source.host, response, request.what).await) };
        self.bounded(&source.host, refusal).await
    }

    /// The body of `response`, to be read as it comes.
    pub fn body(&self, source: &Source, response: Response) -> Body {
        Body { response, host: source.host.clone(), stall_timeout: self.settings.stall_timeout }
    }

    /// The body of `response`, whole.
    pub async fn read(&self, source: &Source, response: Response, limit: usize) -> Result<Bytes, Error> {
        self.bounded(&source.host, read_bounded(response, limit, &source.host)).await
    }
}

/// A body that is still coming.
pub struct Body {
    response: Response,
    host: String,
    stall_timeout: Duration,
}

impl Body {
    /// Status, and headers, of the answer.
    pub fn response(&self) -> &Response {
        &self.response
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Stalled`] when none come in time, [`Error::Unreachable`] when the connection breaks.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match tokio::time::timeout(self.stall_timeout, self.response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| unreachable(&self.host, error)),
            Err(_) => Err(Error::Stalled { host: self.host.clone(), after: self.stall_timeout }),
        }
    }
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_bounded(mut response: Response, limit: usize, host: &str) -> Result<Bytes, Error> {
    let mut body = bytes::BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(host, error))? {
        if body.len() + chunk.len() > limit {
            let what = format!("sent more than {limit} bytes");
            return Err(Error::Protocol { host: host.to_owned(), what });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// The error for an answer that is no success; `server` sent it when `source` was asked for `what`.
pub(super) async fn refusal(source: &Source, server: &str, response: Response, what: &str) -> Error {
    let status = response.status();
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let body = read_bounded(response, ERROR_BODY_LIMIT, server).await.unwrap_or_default();
    let detail = detail(&body);
    // A token server refuses in the name of the registry whose secret was shown.
    let access = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    let host = if access { source.host.clone() } else { server.to_owned() };
    let repository = source.repository.clone();
    match status {
        StatusCode::NOT_FOUND => Error::NotFound { host, what: what.to_owned(), detail },
        StatusCode::UNAUTHORIZED => match &source.credential {
            None => Error::CredentialsNeeded { host, repository, detail },
            Some(credential) => {
                Error::CredentialsRefused { host, repository, user: credential.user.clone(), detail }
            }
        },
        StatusCode::FORBIDDEN => Error::Denied { host, repository, who: source.who(), detail },
        StatusCode::TOO_MANY_REQUESTS => Error::RateLimited { host, retry_after, detail },
        status => Error::Status { host, status: status.as_u16(), detail },
    }
}

/// The first error of a distribution-spec error body, in brackets; empty when there is none.
fn detail(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let first = serde_json::from_slice::<Errors>(body).ok().and_then(|body| body.errors.into_iter().next());
    match first {
        Some(One { code, message }) => {
            let words: String = format!("{code}: {message}").chars().take(DETAIL_LIMIT).collect();
            format!(" ({})", one_line(words.trim_matches([':', ' '])))
        }
        None => String::new(),
    }
}

/// A failed connection; the innermost cause is what a person can act on.
pub(super) fn unreachable(host: &str, error: reqwest::Error) -> Error {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let reason = match error.is_timeout() {
        true => "no answer in time".to_owned(),
        false => one_line(&cause.to_string()),
    };
    Error::Unreachable { host: host.to_owned(), reason }
}
