//! One line of log for each call, with what it was about.

use std::sync::Arc;
use std::time::Instant;

use tonic::{Code, Response, Status};

use crate::csi::metrics::{Metrics, STATS};
use crate::csi::status;
use crate::host::repeats::Repeats;
use crate::host::traces::{Parent, Work};
use crate::tenant::Tenant;

/// Observes calls: counts and logs them. Clones share what they know.
#[derive(Debug, Clone)]
pub struct Calls {
    metrics: Metrics,
    repeats: Arc<Repeats>,
}

/// A call that runs, and what is known of it.
#[derive(Debug)]
pub struct Call {
    calls: Calls,
    method: &'static str,
    began: Instant,
    /// Of what is not asked all the time.
    work: Option<Work>,
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
            work: (!is_frequent(method)).then(|| Work::answer(method.trim_start_matches('/'))),
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
    /// What is done for it is a part of it in traces.
    pub(in crate::csi) fn parent(&self) -> Parent {
        self.work.as_ref().map_or_else(Parent::here, Work::parent)
    }

    /// Counts and logs how it ended. What is asked all the time is logged only where everything is.
    pub(in crate::csi) fn end<T>(mut self, result: Result<T, Status>) -> Result<Response<T>, Status> {
        self.trace(&result);
        let seconds = self.began.elapsed().as_secs_f64();
        let code = result.as_ref().err().map_or(Code::Ok, Status::code);
        self.calls.metrics.ended(self.method, code, seconds);
        let name = status::name(code);
        match &result {
            Ok(_) if is_frequent(self.method) => log!(debug, self, seconds, name, "call"),
            Ok(_) => log!(info, self, seconds, name, "call"),
            Err(error) => {
                // Pods that use the same claim have one volume, and a target each.
                let about = self.target.as_ref().or(self.volume.as_ref());
                let tenant = Tenant::of_namespace(self.namespace.as_deref());
                let left_out = self.calls.repeats.next(&tenant, &(self.method, about, code));
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

    /// The names of attributes are those of OpenTelemetry's semantic conventions, where these have some.
    fn trace<T>(&mut self, result: &Result<T, Status>) {
        let Some(mut work) = self.work.take() else { return };
        let code = result.as_ref().err().map_or(Code::Ok, Status::code);
        work.set("rpc.system", || "grpc");
        work.set("rpc.grpc.status_code", || i64::from(i32::from(code)));
        let texts = [
            ("csi.volume.id", &self.volume),
            ("k8s.namespace.name", &self.namespace),
            ("k8s.pod.name", &self.pod),
            ("oci.reference", &self.reference),
            ("oci.manifest.digest", &self.digest),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                work.set(key, || text.clone());
            }
        }
        if let Some(source) = self.source {
            work.set("ocivol.source", || source);
        }
        if let Some(fetched) = self.fetched {
            work.set("ocivol.fetched_bytes", || i64::try_from(fetched).unwrap_or(i64::MAX));
        }
        work.end(result.as_ref().err().map(Status::message));
    }
}

/// Whether it is asked all the time.
fn is_frequent(method: &str) -> bool {
    method == STATS
        || method.ends_with("/Probe")
        || method.ends_with("Capabilities")
        || method.ends_with("Info")
}
