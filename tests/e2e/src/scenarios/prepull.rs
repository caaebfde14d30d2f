//! Models on the node before their pods: CachedArtifacts at a real API server.

use std::fs;

use serde_json::{Value, json};

use super::Shared;
use crate::cluster::eventually;
use crate::machine::directory;
use crate::node::{Node, run};
use crate::pod::{inline, pod, script};
use crate::registry::{fetched, push_model};

/// Bytes of the model.
const SIZE: usize = 8 << 20;

/// Has `kubectl` make or change `object`.
fn apply(node: &Node, object: &Value) {
    node.kubectl(&["apply", "-f", &written(object)]);
}

/// A file with `object`.
fn written(object: &Value) -> String {
    let path = directory().join("object.json");
    fs::write(&path, object.to_string()).expect("a file");
    path.display().to_string()
}

/// What the node says of its artifacts, as `name=phase`.
fn said(node: &Node) -> String {
    let each = "jsonpath={range .items[*].status.artifacts[*]}{.name}={.phase} {end}";
    node.kubectl(&["get", "nodeartifacts", "-o", each])
}

/// Runs a command of the plugin's pod.
fn in_plugin(node: &Node, arguments: &[&str]) -> String {
    let name = plugin(node);
    node.kubectl(&[&["exec", "--namespace", "ocivol", &name, "--", "/ocivol"], arguments].concat())
}

/// The name of the plugin's pod.
fn plugin(node: &Node) -> String {
    node.kubectl(&["get", "pods", "--namespace", "ocivol", "-o", "jsonpath={.items[0].metadata.name}"])
}

pub async fn an_artifact_is_on_the_node_before_its_pod(node: Shared) {
    let node = node.lock().await;
    node.install(&["prepull.enabled=true", "store.gcMinAge=0"]).await;
    let reference = push_model("ahead/llama", "v1", vec![3; SIZE]).await;
    let artifact = |selector: Value| {
        json!({
            "apiVersion": "ocivol.dev/v1alpha1", "kind": "CachedArtifact", "metadata": {"name": "llama"},
            "spec": {"reference": reference, "nodeSelector": selector},
        })
    };
    apply(&node, &artifact(json!({"matchLabels": {"kubernetes.io/hostname": "node-a"}})));
    eventually("the artifact", || async { said(&node).contains("llama=Ready").then_some(()) }).await;
    let table = node.kubectl(&["get", "nodeartifacts"]);
    println!("{table}");
    assert!(table.starts_with("NAME") && table.contains("node-a"), "{table}");
    assert!(node.kubectl(&["get", "cachedartifacts"]).contains(&reference));

    // Its pod downloads nothing.
    let before = fetched("ahead/");
    assert!(before.values().sum::<u64>() >= SIZE as u64, "{before:?}");
    let pods = node.cluster.namespace("ahead", json!({})).await;
    pods.run(pod("reader", inline(&reference), &script("wc -c /m/weights/model.safetensors; echo looked")))
        .await;
    let printed = pods.printed("reader", "looked").await;
    assert!(printed.contains(&SIZE.to_string()), "{printed}");
    assert_eq!(fetched("ahead/"), before);

    // It stays when the pod has gone, and goes when nobody wants it.
    pods.clear().await;
    let listed = |node: &Node| in_plugin(node, &["ls"]).contains("ahead/llama");
    in_plugin(&node, &["gc"]);
    assert!(listed(&node), "it is kept");
    // Also over a restart, whatever is collected meanwhile.
    node.kubectl(&["delete", "pod", "--namespace", "ocivol", &plugin(&node)]);
    node.cluster.plugin_is_ready().await;
    in_plugin(&node, &["gc"]);
    assert!(listed(&node), "it is kept after a restart");
    apply(&node, &artifact(json!({"matchLabels": {"kubernetes.io/hostname": "elsewhere"}})));
    eventually("the end of the artifact", || async { (!said(&node).contains("llama")).then_some(()) }).await;
    in_plugin(&node, &["gc"]);
    assert!(!listed(&node), "nobody wants it");
    node.kubectl(&["delete", "cachedartifact", "llama"]);
    node.install(&[]).await;
}

pub async fn a_plugin_writes_the_object_of_its_own_node_alone(node: Shared) {
    let node = node.lock().await;
    node.install(&["prepull.enabled=true"]).await;
    let own = || async {
        let names = node.kubectl(&["get", "nodeartifacts", "-o", "name"]);
        names.contains("nodeartifacts.ocivol.dev/node-a").then_some(())
    };
    eventually("the node's own object", own).await;
    let name = plugin(&node);
    let token = node.kubectl(&[
        "create",
        "token",
        "ocivol",
        "--namespace",
        "ocivol",
        "--bound-object-kind",
        "Pod",
        "--bound-object-name",
        &name,
    ]);
    let unbound = node.kubectl(&["create", "token", "ocivol", "--namespace", "ocivol"]);
    let object = |name: &str| json!({"apiVersion": "ocivol.dev/v1alpha1", "kind": "NodeArtifacts", "metadata": {"name": name}});
    // The API server's address and no credentials but the token.
    let server =
        node.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let create = |token: &str, name: &str| {
        let mut command = node.as_admin("/bin/sh");
        let kubectl = format!(
            "kubectl --kubeconfig=/dev/null --insecure-skip-tls-verify --server={} --token={} create --validate=false -f {} 2>&1 || true",
            server.trim(),
            token.trim(),
            written(&object(name))
        );
        run(command.args(["-c", &kubectl]))
    };
    let refused = create(&token, "node-b");
    assert!(refused.contains("a plugin on node-a writes its own object only"), "{refused}");
    let again = create(&token, "node-a");
    assert!(again.contains("already exists"), "it may write that: {again}");
    let refused = create(&unbound, "node-a");
    assert!(refused.contains("the token names no node"), "{refused}");
    node.install(&[]).await;
}
