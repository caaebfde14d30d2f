//! Traces for who has a collector (OTLP over gRPC): a span for each call of kubelet, and below it for the pull that it waits for, what that
//! resolves, transfers and makes. Off unless [`start`] was called; then nothing is recorded.

use std::fmt::Display;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::global::{self, BoxedSpan};
use opentelemetry::trace::{Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter,
};

use crate::host::limits;

/// Sends what is recorded until it is ended.
pub struct Traces(SdkTracerProvider);

/// Something that takes time. Its span ends when it is dropped; without that its [end](Work::end) was told it was given up.
#[derive(Debug)]
pub struct Work(Option<BoxedSpan>);

/// What further work is a part of.
#[derive(Clone)]
pub struct Parent(Option<SpanContext>);

/// Whether there is a collector.
static IS_ON: AtomicBool = AtomicBool::new(false);

tokio::task_local! {
    static PARENT: SpanContext;
}

/// Bytes of one text of a span, at most: a reference, or what went wrong.
const TEXT_LIMIT: usize = 1024;
/// How long spans wait, and how long sending may take.
const DELAY: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Records from now on, and sends to the collector at `endpoint`, as `http://otel-collector.monitoring:4317`. To be called within a tokio
/// runtime.
///
/// # Errors
/// When that is no address of a collector.
pub fn start(endpoint: &str, node: &str) -> Result<Traces, ExporterBuildError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic();
    let exporter = exporter.with_endpoint(endpoint).with_timeout(TIMEOUT).build()?;
    let exporter = Telling { exporter, endpoint: endpoint.to_owned(), has_failed: AtomicBool::new(false) };
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(limits::SPANS)
        .with_max_export_batch_size(limits::SPANS_AT_ONCE)
        .with_scheduled_delay(DELAY)
        .build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    let about = [
        KeyValue::new("service.name", "ocivol"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("k8s.node.name", node.to_owned()),
    ];
    let resource = Resource::builder_empty().with_attributes(about).build();
    let provider =
        SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource).build();
    global::set_tracer_provider(provider.clone());
    IS_ON.store(true, Ordering::Relaxed);
    Ok(Traces(provider))
}

impl Traces {
    /// Sends what waits, and records nothing more. Blocks, for some seconds at most.
    pub fn end(self) {
        IS_ON.store(false, Ordering::Relaxed);
        if let Err(error) = self.0.shutdown_with_timeout(TIMEOUT) {
            tracing::debug!(%error, "the last traces were not sent");
        }
    }
}

impl Work {
    /// It begins, as a part of what runs here.
    pub fn begin(name: &'static str) -> Self {
        Self::of(name, SpanKind::Internal)
    }

    /// A call of somebody else's begins.
    pub fn answer(name: &'static str) -> Self {
        Self::of(name, SpanKind::Server)
    }

    fn of(name: &'static str, kind: SpanKind) -> Self {
        if !IS_ON.load(Ordering::Relaxed) {
            return Self(None);
        }
        let parent = Parent::here().0;
        let context =
            parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
        let tracer = global::tracer("ocivol");
        let span = tracer.span_builder(name).with_kind(kind);
        Self(Some(tracer.build_with_context(span, &context)))
    }

    /// Says something of it, a text or a number. Secrets have no place here: traces leave the node.
    pub fn set<V: Into<Value>>(&mut self, key: &'static str, value: impl FnOnce() -> V) {
        if let Some(span) = &mut self.0 {
            let value = match value().into() {
                Value::String(text) => Value::from(short(text.as_str())),
                value => value,
            };
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// It ended, well unless there is an error.
    pub fn end<E: Display + ?Sized>(mut self, error: Option<&E>) {
        if let Some(mut span) = self.0.take() {
            if let Some(error) = error {
                span.set_status(Status::error(short(&error.to_string())));
            }
            span.end();
        }
    }

    /// For parts of it.
    pub fn parent(&self) -> Parent {
        Parent(self.0.as_ref().map(|span| span.span_context().clone()))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error("given up"));
        }
    }
}

/// The beginning of a text.
fn short(text: &str) -> String {
    text.get(..text.floor_char_boundary(TEXT_LIMIT)).unwrap_or_default().to_owned()
}

impl Parent {
    /// What the calling task works on.
    pub fn here() -> Self {
        Self(PARENT.try_with(Clone::clone).ok())
    }

    /// Does `work` as a part of it. A task that is spawned meanwhile is none: it is to be given [`Parent::here`].
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        match self.0 {
            Some(parent) => PARENT.scope(parent, work).await,
            None => work.await,
        }
    }
}

/// Sends spans, and says when that cannot be done any more.
#[derive(Debug)]
struct Telling {
    exporter: opentelemetry_otlp::SpanExporter,
    endpoint: String,
    has_failed: AtomicBool,
}

impl SpanExporter for Telling {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let sent = self.exporter.export(batch).await;
        let had_failed = self.has_failed.swap(sent.is_err(), Ordering::Relaxed);
        if let Err(error) = &sent
            && !had_failed
        {
            let endpoint = self.endpoint.as_str();
            tracing::warn!(%error, endpoint, "cannot send traces; they are dropped until it takes some again");
        }
        sent
    }

    fn shutdown_with_timeout(&mut self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
