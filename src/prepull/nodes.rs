//! What a node shows of what it has: a label for each artifact that wants one, and no longer the taint with which it began. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::prepull::selector::Labels;

/// What the controller changes of nodes.
#[derive(Debug, Clone, Default)]
pub struct NodeMarks {
    /// Whether it labels those that have an artifact with `nodeLabel`.
    pub labels: bool,
    /// The taint that it takes away, if any.
    pub taint: Option<StartupTaint>,
}

/// A taint that nodes have from their beginning, so that no pod comes before what it needs.
#[derive(Debug, Clone)]
pub struct StartupTaint {
    /// The driver, which has to be registered first. The taint's key is of it, too.
    pub driver: String,
    /// For how long artifacts are waited for, since the taint was seen.
    pub longest: Duration,
}

/// A node, as far as it is looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(in crate::prepull) struct Node {
    pub metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::prepull) struct Metadata {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub labels: Labels,
    owner_references: Vec<Owner>,
}

/// To what an object belongs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(in crate::prepull) struct Owner {
    pub uid: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Spec {
    taints: Vec<Value>,
}

/// Which drivers are registered on the node of the same name.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::prepull) struct CsiNode {
    pub metadata: Metadata,
    spec: CsiNodeSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CsiNodeSpec {
    /// `null` where there is none.
    drivers: Option<Vec<Driver>>,
}

#[derive(Debug, Deserialize)]
struct Driver {
    name: String,
}

/// The beginning of the labels.
const PREFIX: &str = "artifact.ocivol.dev/";
/// Digits of the digest that are a label's value.
const DIGITS: usize = 12;

impl StartupTaint {
    /// The taint's key. It is also in `templates/prepull.yaml`, and in the configuration of whoever adds nodes.
    pub fn key(&self) -> String {
        format!("{}/agent-not-ready", self.driver)
    }
}

impl Node {
    /// Whether it has a taint of this key.
    pub fn has_taint(&self, key: &str) -> bool {
        self.spec.taints.iter().any(|taint| taint["key"] == key)
    }

    /// How it is to be changed, if at all, so that of all labels for artifacts it has `labels`, and no taint `taint`. A merge patch that
    /// fails (409) if somebody else was faster: taints are one list, which it sets as a whole.
    pub fn change(&self, labels: Option<&Labels>, taint: Option<&str>) -> Option<Value> {
        let has = &self.metadata.labels;
        let gone = has.keys().filter(|key| key.starts_with(PREFIX));
        let gone = gone.filter(|key| labels.is_some_and(|labels| !labels.contains_key(*key)));
        let new = labels.into_iter().flatten().filter(|(key, value)| has.get(*key) != Some(value));
        let new = new.map(|(key, value)| (key.clone(), Value::from(value.as_str())));
        let labels: Map<String, Value> = gone.map(|key| (key.clone(), Value::Null)).chain(new).collect();
        let taint = taint.filter(|key| self.has_taint(key));
        if labels.is_empty() && taint.is_none() {
            return None;
        }
        let mut patch = json!({"metadata": {"resourceVersion": self.metadata.resource_version}});
        if !labels.is_empty() {
            patch["metadata"]["labels"] = Value::Object(labels);
        }
        if let Some(key) = taint {
            let others = self.spec.taints.iter().filter(|taint| taint["key"] != key);
            patch["spec"] = json!({"taints": others.collect::<Vec<_>>()});
        }
        Some(patch)
    }
}

impl CsiNode {
    /// The uid of the Node on which `driver` is registered, if it is.
    pub fn node_with(&self, driver: &str) -> Option<&str> {
        self.spec.drivers.iter().flatten().find(|it| it.name == driver)?;
        Some(self.metadata.owner_references.first()?.uid.as_str())
    }
}

/// The label of an artifact that is there.
pub(in crate::prepull) fn label(artifact: &str, digest: &str) -> (String, String) {
    let digits = digest.split_once(':').map_or(digest, |(_, digits)| digits);
    (format!("{PREFIX}{artifact}"), digits.chars().take(DIGITS).collect())
}

/// Nodes by their names.
pub(in crate::prepull) type Nodes = BTreeMap<String, Node>;

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        let node = json!({
            "metadata": {
                "name": "node-a", "uid": "u", "resourceVersion": "7",
                "labels": {"zone": "a", "artifact.ocivol.dev/old": "000000000000", "artifact.ocivol.dev/llama": "bbbbbbbbbbbb"},
            },
            "spec": {"podCIDR": "10.0.0.0/24", "taints": [
                {"key": "csi.ocivol.dev/agent-not-ready", "effect": "NoSchedule"},
                {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
            ]},
        });
        serde_json::from_value(node).expect("a node")
    }

    #[test]
    fn labels_are_what_is_there_and_others_stay() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let wanted = Labels::from([label("llama", &digest), label("new", &digest)]);
        let patch = node().change(Some(&wanted), None).expect("a change");
        let expected = json!({"metadata": {"resourceVersion": "7", "labels": {
            "artifact.ocivol.dev/old": null,
            "artifact.ocivol.dev/llama": "aaaaaaaaaaaa",
            "artifact.ocivol.dev/new": "aaaaaaaaaaaa",
        }}});
        assert_eq!(patch, expected);
        assert_eq!(node().change(None, None), None, "who may not label leaves labels alone");
        let same = Labels::from([
            ("artifact.ocivol.dev/old".to_owned(), "000000000000".to_owned()),
            ("artifact.ocivol.dev/llama".to_owned(), "bbbbbbbbbbbb".to_owned()),
        ]);
        assert_eq!(node().change(Some(&same), None), None);
    }

    #[test]
    fn the_taint_goes_and_others_stay() {
        let taint = StartupTaint { driver: "csi.ocivol.dev".to_owned(), longest: Duration::ZERO };
        let patch = node().change(None, Some(&taint.key())).expect("a change");
        let left = json!([{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]);
        assert_eq!(patch, json!({"metadata": {"resourceVersion": "7"}, "spec": {"taints": left}}));
        assert!(node().has_taint(&taint.key()) && !node().has_taint("agent-not-ready"));
        assert_eq!(node().change(None, Some("another.dev/agent-not-ready")), None);
    }

    #[test]
    fn a_driver_is_registered_under_its_name() {
        let of = |drivers: Value| -> CsiNode {
            let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "u"});
            let metadata = json!({"name": "node-a", "ownerReferences": [owner]});
            serde_json::from_value(json!({"metadata": metadata, "spec": {"drivers": drivers}}))
                .expect("a CSINode")
        };
        let node = of(json!([{"name": "csi.ocivol.dev", "nodeID": "node-a", "topologyKeys": null}]));
        assert_eq!((node.node_with("csi.ocivol.dev"), node.node_with("other.dev")), (Some("u"), None));
        // As kubelet makes it.
        assert_eq!(of(Value::Null).node_with("csi.ocivol.dev"), None);
    }
}
