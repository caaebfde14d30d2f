//! What the events of a pod say.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::http::header;
use axum::response::IntoResponse as _;
use k8s_openapi::api::core::v1::Secret;
use ocivol::demo::push::{Layer, Pusher};
use ocivol::demo::registry::{Registry as DemoRegistry, Seen};
use serde_json::{Value, json};

use super::Shared;
use crate::node::ADDRESS;
use crate::pod::{inline, inline_with, pod, script};
use crate::proxy::SlowLine;
use crate::registry::{DOWN, LOGIN, PRIVATE, REGISTRY, SLOW, fetched, push_model};

/// kubelet gives a call two minutes.
const SECONDS_ON_THE_LINE: f64 = 150.0;

pub async fn a_pull_longer_than_kubelets_deadline_shows_progress_and_ends_well(node: Shared) {
    let pods = node.lock().await.cluster.namespace("slow", json!({})).await;
    let size = 30 << 20;
    let weights: Vec<u8> = (0..size).map(|at: usize| (at / 7).to_le_bytes()[0]).collect();
    let _ = push_model("slow/model", "v1", weights).await;
    let _line = SlowLine::start(SLOW, REGISTRY, size as f64 / SECONDS_ON_THE_LINE).await;
    pods.create(pod("slow", inline(&format!("{SLOW}/slow/model:v1")), &script("true"))).await;
    let message = pods.event("slow", "still pulling").await;
    assert!(message.contains("code = DeadlineExceeded"), "{message}");
    let progress = message.split("slow/model:v1: ").nth(1).unwrap_or_else(|| panic!("{message}"));
    assert!(progress.contains('%') && progress.contains("/s") && progress.contains("left"), "{message}");
    pods.running("slow").await;
    // One download: what was there when the call ended was not fetched again.
    let bytes: u64 = fetched("slow/").values().sum();
    assert!((bytes as f64) < 1.1 * size as f64, "{bytes} bytes were fetched of {size}");
    pods.clear().await;
}

pub async fn a_pod_is_told_of_its_pull_and_of_what_its_registry_warns(node: Shared) {
    const SECONDS: f64 = 12.0;
    let node = node.lock().await;
    let pods = node.cluster.namespace("told", json!({})).await;
    let warning = registry_that_warns("this model is \"old\"").await;
    let plain = format!("registry.plainHTTP={{{SLOW},{warning}}}");
    node.install(&["events.enabled=true", &plain]).await;
    let weights = vec![7; 4 << 20];
    let size = weights.len() as f64;
    let _ = push_model("told/model", "v1", weights).await;
    let _line = SlowLine::start(SLOW, REGISTRY, size / SECONDS).await;
    pods.create(pod("slow", inline(&format!("{SLOW}/told/model:v1")), &script("true"))).await;
    pods.create(pod("warned", inline(&format!("{warning}/m:v1")), &script("true"))).await;
    let message = pods.event("warned", "warns").await;
    assert_eq!(message, format!("{warning} warns: this model is \"old\""));
    let message = pods.event("slow", "told/model:v1: ").await;
    assert!(message.contains("layers") && message.contains('%'), "{message}");
    let message = pods.event("slow", "told/model:v1@sha256:").await;
    assert!(message.contains("seconds") && message.contains("/s"), "{message}");
    pods.running("slow").await;
    pods.running("warned").await;
    let of_pulling: Vec<String> = pods.events_of("slow").await;
    let of_pulling = of_pulling.iter().filter(|message| message.contains("told/model:v1: ")).count();
    assert_eq!(of_pulling, 1, "progress is one event");
    pods.clear().await;
    node.install(&[]).await;
}

/// A registry that sends a warning with a manifest; its host.
async fn registry_that_warns(text: &str) -> String {
    let manifest: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
    let (known, value) = (Arc::clone(&manifest), format!("299 - \"{}\"", text.replace('"', "\\\"")));
    let hook = move |seen: &Seen| {
        let manifest = known.lock().expect("no panic").clone()?;
        let is_wanted = seen.method == "GET" && seen.path.contains("/manifests/");
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let headers = [(header::WARNING, value.clone()), (header::CONTENT_TYPE, kind.to_owned())];
        is_wanted.then(|| (headers, manifest).into_response())
    };
    let address: IpAddr = ADDRESS.parse().expect("an address");
    let registry = DemoRegistry::start_at(address, Some(Box::new(hook))).await.expect("a registry");
    let host = format!("{ADDRESS}:{}", registry.port());
    let layers = [Layer::model_file("weight", "model.gguf", b"warned".to_vec())];
    let digest = Pusher::new(&host, "m").model("v1", &layers).await.expect("pushed");
    let url = format!("http://{host}/v2/m/manifests/{digest}");
    let sent = reqwest::get(url).await.expect("an answer").bytes().await.expect("a manifest");
    *manifest.lock().expect("no panic") = Some(sent.to_vec());
    // It serves until the machine ends.
    std::mem::forget(registry);
    host
}

pub async fn events_say_what_the_readme_says(node: Shared) {
    let pods = node.lock().await.cluster.namespace("messages", json!({})).await;
    let good = push_model("messages/model", "v1", vec![1; 100]).await;
    let mut private = Pusher::new(PRIVATE, "models/llama");
    private.login = Some((LOGIN.0.to_owned(), LOGIN.1.to_owned()));
    let layers = [Layer::model_file("weight", "model.gguf", vec![2; 100])];
    private.model("v1", &layers).await.expect("pushed");
    for (name, password) in [("right", LOGIN.1), ("wrong", "guess")] {
        let config = json!({"auths": {PRIVATE: {"username": LOGIN.0, "password": password}}}).to_string();
        pods.create_other::<Secret>(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config},
        }))
        .await;
    }
    let model = format!("{PRIVATE}/models/llama:v1");
    let with_secret = |name: &str| {
        let mut volume = inline(&model);
        volume["csi"]["nodePublishSecretRef"] = json!({"name": name});
        volume
    };
    let down = format!("{DOWN}/models/llama:v1");
    let loopback = "127.0.0.1:10250/models/llama:v1";
    let cases: [(&str, Value, &str); 7] = [
        ("wrong-tag", inline(&good.replace(":v1", ":v2")), "does not exist in"),
        ("no-secret", inline(&model), "none match"),
        ("wrong-password", with_secret("wrong"), "did not accept the credentials"),
        (
            "unknown-attribute",
            inline_with(&good, &json!({"pulPolicy": "Always"})),
            "unknown volume attribute",
        ),
        ("registry-down", inline(&down), "cannot reach"),
        ("loopback", inline(loopback), "does not connect to"),
        ("right-secret", with_secret("right"), ""),
    ];
    for (name, volume, _) in &cases {
        pods.create(pod(name, volume.clone(), &script("true"))).await;
    }
    // kubelet's own word; the plugin is not asked.
    pods.create(pod("missing-secret", with_secret("absent"), &script("true"))).await;
    for (name, _, part) in &cases {
        if part.is_empty() {
            pods.running(name).await;
            continue;
        }
        let message = pods.event(name, part).await;
        let said = message.split(" desc = ").nth(1).unwrap_or_else(|| panic!("{name}: {message}"));
        assert_quoted(name, said);
    }
    pods.event("missing-secret", "secrets \"absent\" not found").await;
    pods.clear().await;
}

/// Fails unless the README's troubleshooting section quotes `message`, word for word, but for names and the reason that the
/// network gave.
pub fn assert_quoted(what: &str, message: &str) {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md"))
        .expect("the README");
    let section = readme.split("## Troubleshooting").nth(1).expect("a section");
    let section = section.split("\n## ").next().expect("its text");
    let mut text = message.trim().to_owned();
    for host in [REGISTRY, PRIVATE, DOWN] {
        text = text.replace(host, "registry.example.com");
    }
    text = text.replace("messages/model", "models/llama");
    if let Some((_, rest)) = text.split_once("cannot reach registry.example.com: ") {
        let reason = rest.split("; check").next().unwrap_or_default().to_owned();
        text = text.replace(&reason, "<reason>");
    }
    let flat = |text: &str| {
        let text = text.replace("&lt;", "<").replace("&gt;", ">");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(flat(section).contains(&flat(&text)), "{what}: the README does not quote\n{text}");
}
