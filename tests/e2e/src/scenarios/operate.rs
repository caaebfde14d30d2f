//! What an operator sees with `kubectl`, and what Prometheus reads.

use serde_json::{Value, json};

use super::Shared;
use crate::node::Node;
use crate::pod::{inline, pod, script};
use crate::proxy::SlowLine;
use crate::registry::{REGISTRY, SLOW, push_model};

/// Longer than what pods are not told of.
const SECONDS_ON_THE_LINE: f64 = 8.0;

pub async fn an_operator_sees_digests_status_and_metrics(node: Shared) {
    let node = node.lock().await;
    let pods = node.cluster.namespace("operate", json!({})).await;
    node.install(&["events.enabled=true", &format!("registry.plainHTTP={{{SLOW}}}")]).await;
    let weights = vec![9; 2 << 20];
    let size = weights.len();
    let _ = push_model("operate/model", "v1", weights).await;
    let _line = SlowLine::start(SLOW, REGISTRY, size as f64 / SECONDS_ON_THE_LINE).await;
    let reference = format!("{SLOW}/operate/model:v1");
    pods.create(pod("slow", inline(&reference), &script("true"))).await;
    pods.running("slow").await;
    pods.event("slow", "operate/model:v1@sha256:").await;

    let mut pulled = vec!["get", "events", "--namespace", "operate", "--field-selector", "reason=Pulled"];
    pulled.extend(["-o", "jsonpath={.items[?(@.source.component==\"csi.ocivol.dev\")].message}"]);
    let messages = node.kubectl(&pulled);
    assert!(messages.contains(&format!("{reference}@sha256:")), "{messages}");

    let name =
        node.kubectl(&["get", "pods", "--namespace", "ocivol", "-o", "jsonpath={.items[0].metadata.name}"]);
    let status = node.kubectl(&[
        "exec",
        "--namespace",
        "ocivol",
        &name,
        "--",
        "/ocivol",
        "status",
        "--output",
        "json",
    ]);
    let status: Value = serde_json::from_str(&status).unwrap_or_else(|error| panic!("{error}: {status}"));
    assert_eq!((&status["ready"], &status["uses_api_server"]), (&json!(true), &json!(true)), "{status}");
    assert!(status["store"]["inline_volumes"].as_u64().is_some_and(|count| count >= 1), "{status}");

    let log = node.kubectl(&["logs", "--namespace", "ocivol", &name]);
    let line = log.lines().find(|line| line.contains("NodePublishVolume") && line.contains("\"OK\""));
    let line: Value = serde_json::from_str(line.unwrap_or_else(|| panic!("{log}"))).expect("JSON");
    assert_eq!((&line["namespace"], &line["pod"]), (&json!("operate"), &json!("slow")), "{line}");
    assert_eq!((&line["reference"], &line["source"]), (&json!(reference), &json!("registry")), "{line}");

    let metrics = metrics(&node, &name);
    for part in [
        "ocivol_registered 1.0",
        "ocivol_ready{check=\"propagation\"} 1.0",
        "ocivol_pulls_total{result=\"ok\",reason=\"none\"} ",
        "ocivol_events_total{result=\"sent\"} ",
        "ocivol_volumes{kind=\"inline\"} ",
        "process_resident_memory_bytes ",
    ] {
        assert!(metrics.contains(part), "{part} in\n{metrics}");
    }
    pods.clear().await;
    node.install(&[]).await;
}

/// What the plugin's pod serves, through the API server.
fn metrics(node: &Node, name: &str) -> String {
    let pod = node.kubectl(&["get", "pod", "--namespace", "ocivol", name, "-o", "json"]);
    let pod: Value = serde_json::from_str(&pod).expect("JSON");
    let ports = pod["spec"]["containers"][0]["ports"].as_array().expect("ports");
    let named = |name: &str| ports.iter().find(|port| port["name"] == name);
    let port = &named("metrics").or(named("healthz")).expect("a port")["containerPort"];
    node.kubectl(&["get", "--raw", &format!("/api/v1/namespaces/ocivol/pods/{name}:{port}/proxy/metrics")])
}
