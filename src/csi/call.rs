//! One line of log for each call, with what it was about.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::{Code, Response, Status};

use crate::csi::metrics::{Metrics, STATS};
use crate::csi::status;

/// Observes calls: counts and logs them. Clones share what they know.
#[derive(Debug, Clone)]
pub struct Calls {
    metrics: Metrics,
    repeats: Arc<Mutex<Repeats>>,
}

/// A call that runs, and what is known of it.
#[derive(Debug)]
pub struct Call {
    calls: Calls,
    method: &'static str,
    began: Instant,
    /// The volume's ID.
    pub volume: Option<String>,
    /// Where it is mounted.
    pub target: Option<String>,
    /// The pod's namespace, or who else wants it.
    pub namespace: Option<String>,
    /// The pod's name.
    pub pod: Option<String>,
    /// What was asked for.
    pub reference: Option<String>,
    /// What that is.
    pub digest: Option<String>,
    /// Bytes that the volume holds.
    pub bytes: Option<u64>,
    /// Bytes that came over the network for it.
    pub fetched: Option<u64>,
    /// Where its content came from.
    pub source: Option<&'static str>,
}

/// Failures that were logged, by method, volume and code.
#[derive(Debug, Default)]
struct Repeats(HashMap<(&'static str, String, Code), Repeated>);

#[derive(Debug)]
struct Repeated {
    logged: Instant,
    /// How many were not logged since.
    left_out: u64,
}

/// The same failure of one volume is logged once in this time: kubelet tries again every few seconds.
const APART: Duration = Duration::from_secs(60);
/// Failures that are remembered; of more, each is logged.
const REMEMBERED: usize = 1024;

impl Repeats {
    /// How many like it were left out before this failure, which is logged; `None` when it is one of them.
    fn next(&mut self, key: (&'static str, String, Code), now: Instant) -> Option<u64> {
        if let Some(known) = self.0.get_mut(&key) {
            if now.saturating_duration_since(known.logged) < APART {
                known.left_out += 1;
                return None;
            }
            known.logged = now;
            return Some(std::mem::take(&mut known.left_out));
        }
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, known| now.saturating_duration_since(known.logged) < APART);
        }
        if self.0.len() < REMEMBERED {
            self.0.insert(key, Repeated { logged: now, left_out: 0 });
        }
        Some(0)
    }
}

impl Calls {
    /// Counts calls in `metrics`.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, repeats: Arc::default() }
    }

    /// A call of `method` begins.
    pub(in crate::csi) fn begin(&self, method: &'static str) -> Call {
        Call {
            calls: self.clone(),
            method,
            began: Instant::now(),
            volume: None,
            target: None,
            namespace: None,
            pod: None,
            reference: None,
            digest: None,
            bytes: None,
            fetched: None,
            source: None,
        }
    }
}

/// The same fields at every level.
macro_rules! log {
    ($level:ident, $call:expr, $seconds:expr, $code:expr, $($more:tt)*) => {
        tracing::$level!(
            method = $call.method,
            code = $code,
            seconds = $seconds,
            volume = $call.volume,
            namespace = $call.namespace,
            pod = $call.pod,
            reference = $call.reference,
            digest = $call.digest,
            bytes = $call.bytes,
            fetched = $call.fetched,
            source = $call.source,
            target_path = $call.target,
            $($more)*
        )
    };
}

impl Call {
    /// Counts and logs how it ended. What is asked all the time is logged only where everything is.
    pub(in crate::csi) fn end<T>(self, result: Result<T, Status>) -> Result<Response<T>, Status> {
        let seconds = self.began.elapsed().as_secs_f64();
        let code = result.as_ref().err().map_or(Code::Ok, Status::code);
        self.calls.metrics.ended(self.method, code, seconds);
        let name = status::name(code);
        match &result {
            Ok(_) if self.is_frequent() => log!(debug, self, seconds, name, "call"),
            Ok(_) => log!(info, self, seconds, name, "call"),
            Err(error) => {
                let key = (self.method, self.volume.clone().unwrap_or_default(), code);
                let mut repeats = self.calls.repeats.lock().unwrap_or_else(PoisonError::into_inner);
                let left_out = repeats.next(key, Instant::now());
                drop(repeats);
                let error = error.message();
                match left_out {
                    None => log!(debug, self, seconds, name, error, "call failed again"),
                    Some(0) => log!(warn, self, seconds, name, error, "call failed"),
                    Some(repeated) => log!(warn, self, seconds, name, error, repeated, "call failed"),
                }
            }
        }
        result.map(Response::new)
    }

    fn is_frequent(&self) -> bool {
        self.method == STATS
            || self.method.ends_with("/Probe")
            || self.method.ends_with("Capabilities")
            || self.method.ends_with("Info")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_logged_once_a_minute_and_then_with_how_often() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let key = |volume: &str, code| ("publish", volume.to_owned(), code);
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(repeats.next(key("v", Code::NotFound), at(0)), Some(0));
        assert_eq!(repeats.next(key("v", Code::NotFound), at(10)), None);
        assert_eq!(repeats.next(key("v", Code::NotFound), at(59)), None);
        assert_eq!(repeats.next(key("v", Code::Unavailable), at(59)), Some(0), "another failure");
        assert_eq!(repeats.next(key("w", Code::NotFound), at(59)), Some(0), "another volume");
        assert_eq!(repeats.next(key("v", Code::NotFound), at(60)), Some(2));
        assert_eq!(repeats.next(key("v", Code::NotFound), at(61)), None);
        for number in 0..2 * REMEMBERED {
            repeats.next(key(&number.to_string(), Code::NotFound), at(61));
        }
        assert!(repeats.0.len() <= REMEMBERED);
        assert_eq!(repeats.next(key("new", Code::NotFound), at(200)), Some(0));
        assert_eq!(repeats.0.len(), 1, "the others are long ago");
    }
}
