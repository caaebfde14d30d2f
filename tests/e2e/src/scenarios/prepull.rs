//! Models on the node before their pods: CachedArtifacts at a real API server.

use std::fs;

use serde_json::{Value, json};

use super::Shared;
use super::storage::with_controller;
use crate::cluster::eventually;
use crate::machine::directory;
use crate::node::{Node, run};
use crate::pod::{inline, pod, script};
use crate::registry::{fetched, push_model};

/// Bytes of a model. No other scenario has the same: it would be here already.
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

/// A token of the service account `account`, bound to its pod `pod`.
fn token_of(node: &Node, account: &str, pod: &str) -> String {
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", pod];
    node.kubectl(&[&["create", "token", account, "--namespace", "ocivol"][..], &bound].concat())
}

/// What `kubectl` prints, of which the API server knows nothing but this token.
fn with_token(node: &Node, token: &str, arguments: &str) -> String {
    let server =
        node.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let mut command = node.as_admin("/bin/sh");
    let kubectl = format!(
        "kubectl --kubeconfig=/dev/null --insecure-skip-tls-verify --server={} --token={} {arguments} 2>&1 || true",
        server.trim(),
        token.trim(),
    );
    run(command.args(["-c", &kubectl]))
}

pub async fn an_artifact_is_on_the_node_before_its_pod(node: Shared) {
    let node = node.lock().await;
    node.install(&["prepull.enabled=true", "store.gcMinAge=0"]).await;
    let reference = push_model("ahead/llama", "v1", vec![201; SIZE]).await;
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
    let token = token_of(&node, "ocivol", &plugin(&node));
    let unbound = node.kubectl(&["create", "token", "ocivol", "--namespace", "ocivol"]);
    let object = |name: &str| json!({"apiVersion": "ocivol.dev/v1alpha1", "kind": "NodeArtifacts", "metadata": {"name": name}});
    let create = |token: &str, name: &str| {
        with_token(&node, token, &format!("create --validate=false -f {}", written(&object(name))))
    };
    let refused = create(&token, "node-b");
    assert!(refused.contains("a plugin on node-a writes its own object only"), "{refused}");
    let again = create(&token, "node-a");
    assert!(again.contains("already exists"), "it may write that: {again}");
    let refused = create(&unbound, "node-a");
    assert!(refused.contains("the token names no node"), "{refused}");
    node.install(&[]).await;
}

pub async fn a_node_shows_what_it_has_and_loses_its_startup_taint(node: Shared) {
    let taint = "csi.ocivol.dev/agent-not-ready";
    let mut values = with_controller().await;
    for more in [
        "prepull.enabled=true",
        "prepull.nodeLabels=true",
        "prepull.startupTaint.enabled=true",
        "prepull.bytesPerSecond=4MiB",
    ] {
        values.push(more.to_owned());
    }
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let node = node.lock().await;
    node.install(&values).await;
    let reference = push_model("shown/llama", "v1", vec![202; SIZE]).await;
    apply(
        &node,
        &json!({
            "apiVersion": "ocivol.dev/v1alpha1", "kind": "CachedArtifact", "metadata": {"name": "llama"},
            "spec": {"reference": reference, "nodeLabel": true},
        }),
    );
    node.kubectl(&[
        "taint",
        "node",
        "node-a",
        &format!("{taint}=:NoSchedule"),
        "example.com/other=:PreferNoSchedule",
    ]);
    let taints = || node.kubectl(&["get", "node", "node-a", "-o", "jsonpath={.spec.taints[*].key}"]);
    assert!(taints().contains(taint), "{}", taints());
    eventually("the end of the taint", || async { (!taints().contains(taint)).then_some(()) }).await;
    // Not before it is there.
    assert!(said(&node).contains("llama=Ready"), "{}", said(&node));
    assert!(taints().contains("example.com/other"), "{}", taints());
    let digest = node.kubectl(&["get", "cachedartifact", "llama", "-o", "jsonpath={.status.digest}"]);
    let label = || {
        node.kubectl(&[
            "get",
            "node",
            "node-a",
            "-o",
            r"jsonpath={.metadata.labels.artifact\.ocivol\.dev/llama}",
        ])
    };
    assert_eq!(label(), digest["sha256:".len()..][..12], "{digest}");
    node.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", "cachedartifact/llama"]);
    println!("{}", node.kubectl(&["get", "cachedartifacts"]));

    // Its right to patch Nodes is for nothing else.
    let name = node.kubectl(&[
        "get",
        "pods",
        "--namespace",
        "ocivol",
        "--selector",
        "app.kubernetes.io/name=ocivol-controller",
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ]);
    let account = node.kubectl(&[
        "get",
        "pod",
        &name,
        "--namespace",
        "ocivol",
        "-o",
        "jsonpath={.spec.serviceAccountName}",
    ]);
    let token = token_of(&node, &account, &name);
    // kubectl reads what it patches.
    let reader = "e2e-reads-nodes";
    node.kubectl(&["create", "clusterrole", reader, "--verb=get", "--resource=nodes"]);
    let role = format!("--clusterrole={reader}");
    let subject = format!("--serviceaccount=ocivol:{account}");
    node.kubectl(&["create", "clusterrolebinding", reader, &role, &subject]);
    for (change, why) in [
        (r#"{"metadata":{"labels":{"zone":"b"}}}"#, "changes no labels of nodes but artifact.ocivol.dev/"),
        (
            r#"{"metadata":{"labels":{"kubernetes.io/os":null}}}"#,
            "changes no labels of nodes but artifact.ocivol.dev/",
        ),
        (r#"{"spec":{"taints":[]}}"#, "takes no taint of nodes away but its startup taint"),
        (
            r#"{"spec":{"taints":[{"key":"x","effect":"NoExecute"}]}}"#,
            "takes no taint of nodes away but its startup taint",
        ),
        (r#"{"spec":{"unschedulable":true}}"#, "changes labels and taints of nodes, and nothing else"),
        (r#"{"spec":{"providerID":"other://node"}}"#, "changes labels and taints of nodes, and nothing else"),
        (r#"{"metadata":{"annotations":{"a":"b"}}}"#, "changes labels and taints of nodes, and nothing else"),
        // Whose owner does not exist is collected.
        (
            r#"{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"gone","uid":"gone"}]}}"#,
            "changes labels and taints of nodes, and nothing else",
        ),
    ] {
        let refused =
            with_token(&node, &token, &format!("patch node node-a --type=merge --patch='{change}'"));
        assert!(refused.contains(why), "{change}: {refused}");
    }
    let taken = with_token(
        &node,
        &token,
        r#"patch node node-a --type=merge --patch='{"metadata":{"labels":{"artifact.ocivol.dev/x":"y"}}}'"#,
    );
    assert!(taken.contains("patched"), "{taken}");
    node.kubectl(&["delete", "clusterrolebinding", reader]);
    node.kubectl(&["delete", "clusterrole", reader]);

    // What nobody wants any more has no label.
    node.kubectl(&["delete", "cachedartifact", "llama"]);
    eventually("the end of the labels", || async { label().is_empty().then_some(()) }).await;
    let labels = || node.kubectl(&["get", "node", "node-a", "-o", "jsonpath={.metadata.labels}"]);
    eventually("the end of all", || async { (!labels().contains("artifact.ocivol.dev")).then_some(()) })
        .await;
    node.kubectl(&["taint", "node", "node-a", "example.com/other-"]);
    node.install(&[]).await;
}
