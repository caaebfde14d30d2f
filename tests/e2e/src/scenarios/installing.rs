//! What an administrator does with the chart.

use serde_json::{Value, json};

use super::Shared;
use crate::node::{Node, run};
use crate::pod::{DRIVER, inline, job, pod};
use crate::registry::{REGISTRY, push_model};

pub async fn what_helms_notes_say_works_in_its_order(node: Shared) {
    let node = node.lock().await;
    node.cluster.namespace("default", json!({})).await;
    let notes = run(node.as_admin("helm").args(["get", "notes", "ocivol", "--namespace", "ocivol"]));
    assert!(!notes.contains("WARNING"), "{notes}");
    // Neither image is here; what they are is not what is tried.
    let here = format!("{REGISTRY}/e2e/pod:v1");
    let notes = notes.replace("busybox", &here).replace("alpine:3", &here);
    let [waited, hello, uninstall] = &blocks(&notes)[..] else { panic!("three blocks of commands: {notes}") };
    let tested = shell(&node, waited);
    assert!(tested.contains("successfully rolled out"), "{tested}");
    assert!(tested.lines().any(|line| line.starts_with("Phase:") && line.contains("Succeeded")), "{tested}");
    let (hello, removed) = hello.rsplit_once('\n').expect("several commands");
    let listed = shell(&node, hello);
    assert!(listed.contains(" bin") && listed.contains(" etc"), "{listed}");
    // While the pod is there nothing is uninstalled, and it is named.
    assert!(uninstall.contains("helm uninstall ocivol"), "{uninstall}");
    let users = shell(&node, &format!("if {uninstall}; then exit 1; fi"));
    assert!(users.lines().any(|line| line.contains("ocivol-hello") && line.contains(DRIVER)), "{users}");
    run(node.as_admin("helm").args(["status", "ocivol", "--namespace", "ocivol"]));
    assert!(removed.starts_with("kubectl delete"), "{removed}");
    shell(&node, removed);
    // The test's pod is gone as well.
    assert!(node.cluster.pods("ocivol").list().await.len() == 1);
}

/// The commands of a text: lines of four spaces that stand together.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks = vec![Vec::new()];
    for line in text.lines() {
        match line.strip_prefix("    ") {
            Some(command) => blocks.last_mut().expect("one").push(command),
            // Within a block there may be an empty line.
            None if line.is_empty() => {}
            None => blocks.push(Vec::new()),
        }
    }
    blocks.into_iter().filter(|block| !block.is_empty()).map(|block| block.join("\n")).collect()
}

/// Runs commands until one fails; returns what they print.
fn shell(node: &Node, commands: &str) -> String {
    run(node.as_admin("sh").args(["-ec", commands]))
}

pub async fn a_labelled_node_has_the_daemon_set_of_its_label_alone(node: Shared) {
    let node = node.lock().await;
    let pods = node.cluster.namespace("sets", json!({})).await;
    let model = push_model("sets/model", "v1", vec![6; 1 << 20]).await;
    // Two at once, of one name: kubelet would take one.
    node.upgrade(&["additionalDaemonSets.other.log.verbosity=1"]).await;
    node.cluster.daemon_set_has("ocivol", 1).await;
    node.cluster.daemon_set_has("ocivol-other", 0).await;
    node.cluster.label_node("ocivol.dev/daemonset", json!("other")).await;
    node.cluster.daemon_set_has("ocivol", 0).await;
    node.cluster.daemon_set_has("ocivol-other", 1).await;
    let (status, printed) = pods.outcome(pod("reads", inline(&model), &job("cat /m/config.json"))).await;
    assert!(status == 0 && printed.contains("model_type"), "{status}: {printed}");
    pods.clear().await;
    node.cluster.label_node("ocivol.dev/daemonset", Value::Null).await;
    node.install(&[]).await;
}
