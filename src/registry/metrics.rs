//! Counters of what registries answer.
//!
//! Pod authors choose registries, so only those that the operator has named are told apart, and of them only a few.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use reqwest::Response;

use crate::host::metric::{Counts, Labels, Pairs};
use crate::registry::error::Error;

/// Counters of one client. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Those that are told apart, and all others.
    registries: Arc<[OfRegistry]>,
    /// How asking for tokens ended.
    tokens: Counts<TokenEnding>,
}

#[derive(Debug)]
struct OfRegistry {
    name: String,
    answers: Counts<Answer>,
    seconds: Histogram,
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Success,
    Redirect,
    Unauthorized,
    Forbidden,
    NotFound,
    TooManyRequests,
    OtherRefusal,
    ServerError,
    Timeout,
    Tls,
    Connect,
}

/// How asking for a token ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenEnding {
    Ok,
    Refused,
    Error,
}

/// Registries that are told apart. Each is 17 series.
pub const TOLD_APART: usize = 3;
/// The label of those that are not.
const OTHERS: &str = "other";
/// Upper bounds, in seconds, of the time until an answer begins.
const BUCKETS: [f64; 3] = [0.1, 1.0, 10.0];

impl Labels for Answer {
    const ALL: &'static [(Self, Pairs)] = &[
        (Self::Success, &[("class", "2xx")]),
        (Self::Redirect, &[("class", "3xx")]),
        (Self::Unauthorized, &[("class", "401")]),
        (Self::Forbidden, &[("class", "403")]),
        (Self::NotFound, &[("class", "404")]),
        (Self::TooManyRequests, &[("class", "429")]),
        (Self::OtherRefusal, &[("class", "4xx")]),
        (Self::ServerError, &[("class", "5xx")]),
        (Self::Timeout, &[("class", "timeout")]),
        (Self::Tls, &[("class", "tls")]),
        (Self::Connect, &[("class", "connect")]),
    ];
}

impl Labels for TokenEnding {
    const ALL: &'static [(Self, Pairs)] = &[
        (Self::Ok, &[("result", "ok")]),
        (Self::Refused, &[("result", "refused")]),
        (Self::Error, &[("result", "error")]),
    ];
}

impl Answer {
    /// `None` for what was never asked.
    fn of(result: &Result<Response, Error>) -> Option<Self> {
        let response = match result {
            Ok(response) => response,
            Err(Error::Stalled { .. }) => return Some(Self::Timeout),
            Err(Error::Certificate { .. } | Error::NoTls { .. }) => return Some(Self::Tls),
            Err(Error::Unreachable { .. }) => return Some(Self::Connect),
            Err(_) => return None,
        };
        Some(match response.status().as_u16() {
            300..400 => Self::Redirect,
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            429 => Self::TooManyRequests,
            400..500 => Self::OtherRefusal,
            500.. => Self::ServerError,
            _ => Self::Success,
        })
    }
}

impl Metrics {
    /// Tells the first [`TOLD_APART`] of `names` apart, hosts with their ports.
    pub fn new(names: &[String]) -> Self {
        let named = names.iter().take(TOLD_APART).map(String::as_str);
        let of_registry = |name: &str| OfRegistry {
            name: name.to_owned(),
            answers: Counts::default(),
            seconds: Histogram::new(BUCKETS),
        };
        Self { registries: named.chain([OTHERS]).map(of_registry).collect(), tokens: Counts::default() }
    }

    /// A request for what `registry` has was answered, or was not, after `wait`: by the registry, by a mirror of it, or by storage that
    /// one of them redirects to.
    pub(super) fn answered(&self, registry: &str, wait: Duration, result: &Result<Response, Error>) {
        let Some(answer) = Answer::of(result) else { return };
        let own = self.registries.iter().find(|known| known.name == registry);
        if let Some(known) = own.or(self.registries.last()) {
            known.answers.inc(answer);
            if result.is_ok() {
                known.seconds.observe(wait.as_secs_f64());
            }
        }
    }

    /// A token was asked for. Who has nothing to show asks for none.
    pub(super) fn token<T>(&self, result: &Result<Option<T>, Error>) {
        match result {
            Ok(None) => {}
            Ok(Some(_)) => self.tokens.inc(TokenEnding::Ok),
            Err(error) if error.is_about_access() => self.tokens.inc(TokenEnding::Refused),
            Err(_) => self.tokens.inc(TokenEnding::Error),
        }
    }

    /// Makes them part of what is served.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "ocivol_requests",
            "Requests to registries, their mirrors and storage, by registry and answer",
            Requests(Arc::clone(&self.registries)),
        );
        registry.register(
            "ocivol_request_duration_seconds",
            "Time until an answer begins",
            Seconds(Arc::clone(&self.registries)),
        );
        registry.register("ocivol_tokens", "Tokens that were asked for, by result", self.tokens.clone());
    }
}

#[derive(Debug)]
struct Requests(Arc<[OfRegistry]>);

impl EncodeMetric for Requests {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let mut each = self.0.iter();
        each.try_for_each(|known| known.answers.encode_with(&mut encoder, Some(("registry", &known.name))))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

#[derive(Debug)]
struct Seconds(Arc<[OfRegistry]>);

impl EncodeMetric for Seconds {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for known in self.0.iter() {
            known.seconds.encode(encoder.encode_family(&[("registry", known.name.as_str())])?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_operator_names_is_told_apart() {
        let names = ["a", "b", "c", "d"].map(str::to_owned);
        let metrics = Metrics::new(&names);
        let late = || Err(Error::Stalled { host: String::new(), after: Duration::ZERO });
        for name in ["a", "d", "chosen.by.a.pod"] {
            metrics.answered(name, Duration::ZERO, &late());
        }
        let counts: Vec<(&str, u64)> = metrics
            .registries
            .iter()
            .map(|known| (known.name.as_str(), known.answers.get(Answer::Timeout)))
            .collect();
        assert_eq!(counts, [("a", 1), ("b", 0), ("c", 0), ("other", 2)]);
    }
}
