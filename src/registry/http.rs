//! What comes back: bodies with bounds, and refusals in words.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use reqwest::header::{self, HeaderMap};
use reqwest::{Response, StatusCode};
use serde::Deserialize;

use crate::failure::one_line;
use crate::registry::addresses::Refused;
use crate::registry::error::Error;
use crate::registry::mirrors::Meter;
use crate::registry::place::Place;
use crate::registry::source::Source;

/// Bytes of an error body that are looked at.
const ERROR_BODY_LIMIT: usize = 8 * 1024;
/// Characters of a registry's own words in an error.
const DETAIL_LIMIT: usize = 160;

/// A body that is still coming.
pub struct Body {
    pub(super) response: Response,
    pub(super) host: String,
    /// Whether another host sends it than the registry.
    pub(super) elsewhere: bool,
    /// Wait for the first byte, then for each after it.
    pub(super) first_timeout: Option<Duration>,
    pub(super) stall_timeout: Duration,
    /// Measures how fast a place is that has others beside it.
    pub(super) meter: Option<Meter>,
}

impl Body {
    /// Status, and headers, of the answer.
    pub fn response(&self) -> &Response {
        &self.response
    }

    /// Whether another host sends it than the registry itself: one that it redirects to.
    pub fn is_from_elsewhere(&self) -> bool {
        self.elsewhere
    }

    /// The mirror that sends it, if it is none of the registry's own.
    pub fn mirror(&self) -> Option<&Place> {
        self.meter.as_ref().and_then(Meter::mirror)
    }

    /// What is odd about the answer, if it is not what was asked for.
    pub fn oddity(&self) -> Option<String> {
        oddity(self.response.headers())
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Stalled`] when none come in time, [`Error::Unreachable`] when the connection breaks.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let after = self.first_timeout.take().unwrap_or(self.stall_timeout);
        let began = Instant::now();
        match tokio::time::timeout(after, self.response.chunk()).await {
            Ok(chunk) => {
                let chunk = chunk.map_err(|error| {
                    self.broke_off();
                    unreachable(&self.host, error)
                })?;
                if let (Some(meter), Some(chunk)) = (&mut self.meter, &chunk) {
                    meter.add(chunk.len(), began.elapsed());
                }
                Ok(chunk)
            }
            Err(_) => {
                self.broke_off();
                Err(Error::Stalled { host: self.host.clone(), after })
            }
        }
    }

    /// What was to come did not: if a mirror sends it, other places are asked before that.
    pub fn broke_off(&self) {
        if let Some(meter) = &self.meter {
            meter.broke_off();
        }
    }
}

/// Reads a body of at most `limit` bytes, of which `first` were read before.
pub(super) async fn read_bounded(
    first: Bytes,
    mut response: Response,
    limit: usize,
    host: &str,
) -> Result<Bytes, Error> {
    let mut body = bytes::BytesMut::from(first);
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(host, error))? {
        if body.len() + chunk.len() > limit {
            let what = format!("sent more than {limit} bytes");
            return Err(Error::Protocol { host: host.to_owned(), what });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// What headers say of a body that is not what it should be. The bytes decide; this is why they may be wrong.
pub(super) fn oddity(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let cut = |text: &str| one_line(&text.chars().take(60).collect::<String>());
    let encoding = text(header::CONTENT_ENCODING).filter(|encoding| !encoding.is_empty());
    if let Some(encoding) = encoding.filter(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Some(format!("content encoded as {}, which it was not asked for", cut(encoding)));
    }
    let kind = text(header::CONTENT_TYPE)?.split(';').next()?.trim().to_ascii_lowercase();
    let page = matches!(kind.as_str(), "text/html" | "application/xhtml+xml");
    page.then(|| format!("{kind}: a login or proxy page?"))
}

/// `Retry-After`: seconds, or a date. RFC 9110, 10.2.3.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Who asked for what, as errors say it.
pub(super) struct Asked<'a> {
    /// For whom.
    pub source: &'a Source,
    /// Who answered: the registry, a token server in its name, or a host that it redirected to.
    pub server: &'a str,
    /// In words.
    pub what: &'a str,
    /// Whether the credential was shown.
    pub shown: bool,
}

impl Asked<'_> {
    /// The error for an answer of the registry, or of its token server, that is no success.
    pub async fn refusal(&self, response: Response) -> Error {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let detail = detail(response, self.server).await;
        // A token server refuses in the name of the registry whose secret was shown.
        let access = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let host = if access { self.source.repository.host.clone() } else { self.server.to_owned() };
        let repository = self.source.repository.name.clone();
        let credential = self.source.credential.as_deref();
        match (status, credential) {
            (StatusCode::NOT_FOUND, _) => Error::NotFound { host, what: self.what.to_owned(), detail },
            (StatusCode::UNAUTHORIZED, None) => Error::CredentialsNeeded { host, repository, detail },
            (StatusCode::UNAUTHORIZED, Some(known)) if self.shown => {
                Error::CredentialsRefused { host, repository, user: known.user.clone(), detail }
            }
            (StatusCode::UNAUTHORIZED, Some(_)) => Error::NoLogin { host, repository, detail },
            (StatusCode::FORBIDDEN, known) => {
                let shown = known.filter(|_| self.shown);
                let who = shown.map_or_else(|| "anonymous".to_owned(), |known| known.user.clone());
                Error::Denied { host, repository, who, detail }
            }
            (StatusCode::TOO_MANY_REQUESTS, _) => Error::RateLimited { host, retry_after, detail },
            (status, _) => Error::Status { host, status: status.as_u16(), retry_after, detail },
        }
    }

    /// The error for an answer of a host that the registry redirected to. It saw no credential, and what it refuses may
    /// be a signature that is good for one method, or for a short time.
    pub async fn refusal_elsewhere(&self, response: Response) -> Error {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let host = self.source.repository.host.clone();
        // Its own words are not told: it may be a host that only the node reaches.
        let said = detail(response, self.server).await;
        tracing::info!(host, server = self.server, %status, said, "a host that the registry redirects to refuses");
        let detail = String::new();
        match status {
            StatusCode::NOT_FOUND => Error::NotFound { host, what: self.what.to_owned(), detail },
            StatusCode::TOO_MANY_REQUESTS => Error::RateLimited { host, retry_after, detail },
            status => Error::Elsewhere { host, server: self.server.to_owned(), status: status.as_u16() },
        }
    }
}

/// What an answer says for itself, in brackets: the first error of a distribution-spec error body, or what else it is.
async fn detail(response: Response, server: &str) -> String {
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
    let oddity = oddity(response.headers());
    let body = read_bounded(Bytes::new(), response, ERROR_BODY_LIMIT, server).await.unwrap_or_default();
    let first = serde_json::from_slice::<Errors>(&body).ok().and_then(|body| body.errors.into_iter().next());
    match (first, oddity) {
        (Some(One { code, message }), _) => {
            let words: String = format!("{code}: {message}").chars().take(DETAIL_LIMIT).collect();
            format!(" ({})", one_line(words.trim_matches([':', ' '])))
        }
        (None, Some(oddity)) => format!(" (sent {oddity})"),
        (None, None) => String::new(),
    }
}

/// The host of `url` with its port, for errors. Nothing else of it: it may hold a secret.
pub(super) fn host_and_port(url: &reqwest::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// A failed connection; the innermost cause is what a person can act on.
pub(super) fn unreachable(host: &str, error: reqwest::Error) -> Error {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    if let Some(reason) = cause.downcast_ref::<Refused>() {
        return Error::Address { host: host.to_owned(), reason: *reason };
    }
    let (host, reason) = (host.to_owned(), one_line(&cause.to_string()));
    match reason {
        _ if error.is_timeout() => Error::Unreachable { host, reason: "no answer in time".to_owned() },
        // These are rustls' words.
        reason if reason.contains("certificate") => Error::Certificate { host, reason },
        reason if reason.contains("InvalidContentType") => Error::NoTls { host },
        reason => Error::Unreachable { host, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (header::HeaderName::from_static(name), value.parse().expect("a value")))
            .collect()
    }

    #[test]
    fn regression_retry_after_is_seconds_or_a_date() {
        let at = |value: &str| retry_after(&headers(&[("retry-after", value)]));
        assert_eq!(at("7"), Some(Duration::from_secs(7)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        let wait = at(&date).expect("a date").as_secs();
        assert!((95..=100).contains(&wait), "{date} is {wait} s away");
        assert_eq!(at("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        for text in ["", "soon", "-1", "1.5"] {
            assert_eq!(at(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_not_what_was_asked_for_is_named() {
        type Row<'a> = (&'a [(&'static str, &'a str)], Option<&'a str>);
        let table: [Row<'_>; 6] = [
            (&[("content-type", "text/html; charset=utf-8")], Some("text/html: a login or proxy page?")),
            (&[("content-encoding", "gzip")], Some("content encoded as gzip, which it was not asked for")),
            (&[("content-encoding", "identity"), ("content-type", "application/json")], None),
            (
                &[("content-encoding", ""), ("content-type", "Text/HTML")],
                Some("text/html: a login or proxy page?"),
            ),
            (&[("content-type", "application/octet-stream")], None),
            (&[], None),
        ];
        for (pairs, expected) in table {
            assert_eq!(oddity(&headers(pairs)).as_deref(), expected, "{pairs:?}");
        }
    }
}
