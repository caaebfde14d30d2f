//! Traces, as a collector of OpenTelemetry gets them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::http::{Method, StatusCode};
use axum::response::IntoResponse as _;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};

use crate::support::{Node, Scripted, eventually, isolated, noise};

/// A collector that remembers.
#[derive(Clone, Default)]
struct Collector {
    got: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.got.lock().expect("no panic").push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Its address.
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        format!("http://{address}")
    }

    fn spans(&self) -> Vec<Span> {
        let got = self.got.lock().expect("no panic");
        let scopes = got.iter().flat_map(|it| &it.resource_spans).flat_map(|it| &it.scope_spans);
        scopes.flat_map(|it| it.spans.clone()).collect()
    }

    fn named(&self, name: &str) -> Option<Span> {
        self.spans().into_iter().find(|span| span.name == name)
    }
}

fn texts(span: &Span) -> HashMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let attributes = span.attributes.iter();
    attributes.filter_map(|it| Some((it.key.clone(), text(it.value.as_ref()?.value.as_ref()?)))).collect()
}

#[test]
fn a_call_and_what_it_waits_for_are_one_trace() {
    isolated(async {
        let collector = Collector::default();
        let endpoint = collector.start().await;
        let registry = Scripted::with_model(noise(1, 1 << 20)).await;
        let mut node = Node::on_host(&["--plain-http", &registry.host(), "--otlp-endpoint", &endpoint]);
        node.run_registered().await;
        let volume = node.volume("pod");
        let reference = registry.reference("m:v1");
        node.publish_as(&volume, &reference, &[], ("user", "hunter2")).await.expect("published");
        registry.script(|_| Some(StatusCode::NOT_FOUND.into_response()));
        let other = node.volume("other");
        node.publish(&other, &registry.reference("absent:v1"), &[]).await.expect_err("not there");
        // What waits is sent at the end.
        node.stop().await;

        let publish =
            collector.spans().into_iter().filter(|span| span.name == "csi.v1.Node/NodePublishVolume");
        let (good, bad): (Vec<Span>, Vec<Span>) =
            publish.partition(|span| texts(span)["rpc.grpc.status_code"] == "0");
        let (good, bad) = (good.first().expect("one"), bad.first().expect("another"));
        assert!(good.parent_span_id.is_empty(), "{good:?}");
        let about = texts(good);
        assert_eq!(
            (about["oci.reference"].as_str(), about["k8s.pod.name"].as_str()),
            (reference.as_str(), "pod")
        );
        assert!(about["oci.manifest.digest"].starts_with("sha256:"), "{about:?}");
        let status = bad.status.as_ref().expect("a status");
        assert!(status.code == 2 && status.message.contains("absent"), "{status:?}");

        let below = |name: &str, parent: &Span| {
            let all = collector.spans().into_iter().filter(|span| span.name == name);
            let mut own =
                all.filter(|span| span.trace_id == good.trace_id && span.parent_span_id == parent.span_id);
            own.next().unwrap_or_else(|| panic!("no {name} below {}", parent.name))
        };
        let pull = below("pull", good);
        for part in ["resolve", "transfer", "tree"] {
            let part = below(part, &pull);
            assert!(part.start_time_unix_nano >= pull.start_time_unix_nano, "{part:?}");
            assert!(part.end_time_unix_nano <= pull.end_time_unix_nano, "{part:?}");
        }
        // Each of them says how it ended.
        let code = |span: &Span| span.status.as_ref().map_or(0, |status| status.code);
        assert_eq!((code(good), code(&pull)), (0, 0));
        let failed = collector.spans().into_iter().filter(|span| span.trace_id == bad.trace_id);
        let failed: Vec<(String, String)> =
            failed.map(|span| (span.name, span.status.unwrap_or_default().message)).collect();
        for name in ["pull", "resolve"] {
            let message = failed.iter().find(|(span, _)| span == name).map(|(_, message)| message.as_str());
            assert!(message.is_some_and(|message| message.contains("absent")), "{name}: {failed:?}");
        }
        assert!(collector.named("csi.v1.Identity/Probe").is_none(), "that is asked all the time");
        let all = format!("{:?}", collector.got.lock().expect("no panic"));
        assert!(!all.contains("hunter2") && all.contains("node-1"), "{all}");
    });
}

#[test]
fn what_nobody_waits_for_any_more_is_a_span_that_was_given_up() {
    isolated(async {
        let collector = Collector::default();
        let endpoint = collector.start().await;
        let registry = Scripted::with_model(noise(1, 1 << 20)).await;
        // Its blobs begin, and do not end.
        registry.script(|seen| {
            let is_blob = seen.path.contains("/blobs/");
            let never = futures_util::stream::pending::<std::io::Result<String>>();
            is_blob.then(|| axum::response::Response::new(axum::body::Body::from_stream(never)))
        });
        let mut node = Node::on_host(&["--plain-http", &registry.host(), "--otlp-endpoint", &endpoint]);
        node.run_registered().await;
        let volume = node.volume("pod");
        let reference = registry.reference("m:v1");
        let publish = node.publish(&volume, &reference, &[]);
        let asked = eventually("it is asked for", || registry.count(&Method::GET, "/blobs/") > 0);
        tokio::select! {
            _ = publish => panic!("it does not end"),
            () = asked => {}
        }
        node.stop().await;
        for name in ["transfer", "pull"] {
            let span = collector.named(name).unwrap_or_else(|| panic!("no {name}"));
            assert_eq!(span.status.map(|status| status.message).as_deref(), Some("given up"), "{name}");
        }
    });
}

#[test]
fn a_collector_that_is_not_there_costs_its_traces_and_nothing_else() {
    isolated(async {
        let registry = Scripted::with_model(noise(1, 1000)).await;
        let nobody =
            std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        let endpoint = format!("http://{nobody}");
        let mut node = Node::on_host(&["--plain-http", &registry.host(), "--otlp-endpoint", &endpoint]);
        node.run_registered().await;
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("m:v1"), &[]).await.expect("published");
        eventually("it is said", || node.logged().contains("cannot send traces")).await;
        node.stop().await;
    });
}
