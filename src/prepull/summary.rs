//! What the nodes say of one CachedArtifact, summed up: its status. Pure.

use std::collections::BTreeMap;

use indicatif::BinaryBytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::failure::one_line;
use crate::oci::digest::Digest;
use crate::prepull::artifact::CachedArtifact;
use crate::prepull::nodes::{Nodes, Owner};

/// What a node says: its NodeArtifacts, as far as it is looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(in crate::prepull) struct Report {
    pub metadata: Metadata,
    status: Said,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::prepull) struct Metadata {
    pub name: String,
    owner_references: Vec<Owner>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Said {
    artifacts: Vec<SaidOf>,
}

/// What it says of one artifact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct SaidOf {
    name: String,
    generation: i64,
    phase: String,
    digest: Option<String>,
    bytes: u64,
    reason: String,
    message: String,
}

/// What its reference is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::prepull) enum Resolution {
    /// Nobody knows yet.
    Pending,
    /// This.
    Known(Digest),
    /// Its registry cannot be asked, or does not have it.
    Failed(String),
}

impl Report {
    /// Whether it is of the Node of this uid, and not of one before that had its name.
    fn is_of(&self, node: &str) -> bool {
        self.metadata.owner_references.iter().any(|owner| owner.uid == node)
    }

    /// The digest of an artifact that is on the Node of this uid, as this generation wants it.
    pub fn present(&self, node: &str, artifact: &str, generation: i64) -> Option<&str> {
        let mut said = self.status.artifacts.iter().filter(|_| self.is_of(node));
        let is_it =
            |said: &&SaidOf| said.name == artifact && said.generation == generation && said.phase == "Ready";
        said.find(is_it)?.digest.as_deref()
    }
}

/// Whether nodes are labelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::prepull) enum Labelling {
    Off,
    On,
    /// It is tried, and the API server takes no change of Nodes, for this reason.
    Refused(&'static str),
}

/// Nodes that are named with what they lack, as the definition has it.
const FAILING: usize = 10;
/// Bytes of what they lack. The definition has as many characters; but all nodes get this object.
const MESSAGE_LIMIT: usize = 256;

/// The status of `artifact`, as a merge patch: what is null is taken away. `before` is the one that it has; of the object itself it is left
/// out.
pub(in crate::prepull) fn status(
    artifact: &CachedArtifact,
    before: &Value,
    resolution: &Resolution,
    nodes: &Nodes,
    reports: &BTreeMap<String, Report>,
    labelling: &Labelling,
) -> Value {
    let generation = artifact.metadata.generation;
    let digest = match resolution {
        Resolution::Known(digest) => Some(digest.to_string()),
        _ => None,
    };
    let own = nodes.iter().filter(|(_, node)| artifact.spec.node_selector.matches(&node.metadata.labels));
    let (mut desired, mut ready, mut pulling, mut failed, mut bytes) = (0, 0, 0, 0, 0);
    let (mut failing, mut silent) = (Vec::new(), 0);
    for (name, node) in own {
        // Where nothing is said no plugin runs, or it has just begun.
        let Some(report) = reports.get(name).filter(|report| report.is_of(&node.metadata.uid)) else {
            silent += 1;
            continue;
        };
        desired += 1;
        let mut said = report.status.artifacts.iter();
        // What is said of an older generation is another reference's.
        let is_meant = |it: &&SaidOf| it.name == artifact.metadata.name && it.generation == generation;
        let Some(said) = said.find(is_meant) else { continue };
        match said.phase.as_str() {
            // Not where it is what the tag was before.
            "Ready" if digest.is_none() || said.digest == digest => {
                ready += 1;
                bytes = said.bytes.max(bytes);
            }
            "Pulling" => pulling += 1,
            "Failed" | "NoSpace" => {
                failed += 1;
                if failing.len() < FAILING {
                    let mut message = one_line(&said.message);
                    message.truncate(message.floor_char_boundary(MESSAGE_LIMIT));
                    failing.push(json!({"node": name, "reason": said.reason, "message": message}));
                }
            }
            _ => {}
        }
    }
    let is_ready = desired > 0 && ready == desired;
    let (reason, mut message) = match (desired, is_ready) {
        (0, _) if silent > 0 => {
            ("NoNodes", "no node that is chosen has a plugin that says something".to_owned())
        }
        (0, _) => ("NoNodes", "no node is chosen by nodeSelector".to_owned()),
        (_, true) => ("Everywhere", format!("all {desired} nodes have it")),
        _ => ("NotEverywhere", format!("{ready} of {desired} nodes have it")),
    };
    if desired > 0 && silent > 0 {
        message = format!("{message}; of {silent} more that are chosen no plugin says something");
    }
    let (is_resolved, why, what) = match resolution {
        Resolution::Pending => ("Unknown", "Pending", "the registry is asked what it is".to_owned()),
        Resolution::Known(digest) => ("True", "Resolved", format!("it is {digest}")),
        Resolution::Failed(text) => {
            ("False", "Failed", format!("{}; each node asks by itself", one_line(text)))
        }
    };
    let mut conditions = vec![
        condition(before, generation, "Ready", if is_ready { "True" } else { "False" }, reason, &message),
        condition(before, generation, "Resolved", is_resolved, why, &what),
    ];
    if artifact.spec.node_label {
        let (status, reason, message) = match labelling {
            Labelling::On => ("True", "Labelled", "nodes that have it have a label".to_owned()),
            Labelling::Off => (
                "False",
                "NotAllowed",
                "nodes are not labelled: set prepull.nodeLabels of the chart".to_owned(),
            ),
            Labelling::Refused(why) => ("False", "Refused", (*why).to_owned()),
        };
        conditions.push(condition(before, generation, "Labelled", status, reason, &message));
    }
    json!({
        "observedGeneration": generation,
        // Of which the digest is.
        "reference": digest.as_ref().map(|_| artifact.wanted().reference().to_owned()),
        "digest": digest,
        "size": (bytes > 0).then(|| BinaryBytes(bytes).to_string()),
        "nodes": {"desired": desired, "ready": ready, "pulling": pulling, "failed": failed},
        "failing": failing,
        "conditions": conditions,
    })
}

/// A condition, with the time of the one before where that says the same.
fn condition(
    before: &Value,
    generation: i64,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
) -> Value {
    let mut known = before["conditions"].as_array().into_iter().flatten();
    let known = known.find(|it| it["type"] == kind && it["status"] == status);
    let now = || Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string();
    let since = known.and_then(|it| it["lastTransitionTime"].as_str()).map_or_else(now, str::to_owned);
    json!({
        "type": kind, "status": status, "observedGeneration": generation, "lastTransitionTime": since,
        "reason": reason, "message": message,
    })
}

/// What is other in a status that is to be written. The more of it there is, the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::prepull) enum Changed {
    Nothing,
    /// Only what a registry or a node said, whose words can be others each time: all nodes see each status that is written.
    Words,
    Facts,
}

/// What an object with the status `before` gets by `patch`.
pub(in crate::prepull) fn changed(before: &Value, patch: &Value) -> Changed {
    let fields = patch.as_object().into_iter().flatten();
    let of_field = |(key, value): (&String, &Value)| {
        let before = before.get(key).unwrap_or(&Value::Null);
        match before == value {
            true => Changed::Nothing,
            false if wordless(before) == wordless(value) => Changed::Words,
            false => Changed::Facts,
        }
    };
    fields.map(of_field).max().unwrap_or(Changed::Nothing)
}

/// A list of conditions or nodes, without what others say in words.
fn wordless(field: &Value) -> Value {
    let mut field = field.clone();
    for item in field.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        if item.get("type").is_none_or(|kind| kind == "Resolved") {
            item.remove("message");
        }
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepull::nodes::Node;

    fn report(phase: &str, generation: i64, digest: &str) -> Report {
        let said = json!({
            "name": "llama", "generation": generation, "phase": phase, "digest": digest, "bytes": 2 << 20,
            "reason": "Network", "message": "x".repeat(1000),
        });
        let owner = json!({"uid": "u"});
        let report = json!({"metadata": {"ownerReferences": [owner]}, "status": {"artifacts": [said]}});
        serde_json::from_value(report).expect("a report")
    }

    #[test]
    fn nodes_are_counted_that_are_meant_and_say_it_of_this_generation_and_digest() {
        let digest = Digest::sha256(b"x");
        let (good, other) = (digest.to_string(), Digest::sha256(b"y").to_string());
        let artifact = json!({
            "metadata": {"name": "llama", "generation": 2},
            "spec": {"reference": "r/m:v1", "nodeSelector": {"matchLabels": {"gpu": "y"}}},
        });
        let artifact: CachedArtifact = serde_json::from_value(artifact).expect("an artifact");
        let labels = |gpu: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"uid": "u", "labels": {"gpu": gpu}}})).expect("a node")
        };
        let mut nodes: Nodes =
            ["a", "b", "c", "d", "e", "f"].map(|name| (name.to_owned(), labels("y"))).into();
        nodes.insert("elsewhere".to_owned(), labels("n"));
        let mut reports: BTreeMap<String, Report> = [
            ("a", report("Ready", 2, &good)),
            ("b", report("Ready", 2, &other)),
            ("c", report("Ready", 1, &good)),
            ("d", report("Pulling", 2, "")),
            ("e", report("NoSpace", 2, "")),
            ("elsewhere", report("Ready", 2, &good)),
            ("gone", report("Failed", 2, "")),
        ]
        .map(|(name, report)| (name.to_owned(), report))
        .into();
        let known = Resolution::Known(digest);
        let sum = status(&artifact, &Value::Null, &known, &nodes, &reports, &Labelling::Off);
        assert_eq!(sum["nodes"], json!({"desired": 5, "ready": 1, "pulling": 1, "failed": 1}));
        assert_eq!((&sum["digest"], &sum["size"]), (&json!(good), &json!("2.00 MiB")));
        assert_eq!(sum["reference"], "r/m:v1");
        assert_eq!(sum["failing"].as_array().map(Vec::len), Some(1));
        assert_eq!(sum["failing"][0]["message"].as_str().map(str::len), Some(MESSAGE_LIMIT));
        assert_eq!(
            (&sum["conditions"][0]["status"], &sum["conditions"][0]["message"]),
            (
                &json!("False"),
                &json!("1 of 5 nodes have it; of 1 more that are chosen no plugin says something")
            )
        );
        // Of many failures some are named.
        for number in 0..20 {
            nodes.insert(format!("n{number}"), labels("y"));
            reports.insert(format!("n{number}"), report("Failed", 2, ""));
        }
        let many = status(&artifact, &Value::Null, &known, &nodes, &reports, &Labelling::Off);
        assert_eq!(
            (&many["nodes"]["failed"], many["failing"].as_array().map(Vec::len)),
            (&json!(21), Some(FAILING))
        );
        assert!(many.to_string().len() < 8000, "an object that nodes watch is small");
        // What is the same is not written again, and keeps its time.
        let mut before = many;
        before["conditions"][0]["lastTransitionTime"] = "2020-01-01T00:00:00Z".into();
        let again = status(&artifact, &before, &known, &nodes, &reports, &Labelling::Off);
        assert_eq!(
            (changed(&before, &again), changed(&json!({}), &again)),
            (Changed::Nothing, Changed::Facts)
        );
        // The words of others are not facts; its own are of the numbers.
        for (pointer, expected) in [
            ("/failing/0/message", Changed::Words),
            ("/failing/0/reason", Changed::Facts),
            ("/conditions/1/message", Changed::Words),
            ("/conditions/0/message", Changed::Facts),
        ] {
            let mut other = again.clone();
            *other.pointer_mut(pointer).expect(pointer) = "other".into();
            assert_eq!(changed(&before, &other), expected, "{pointer}");
        }
        // Without a digest every node's own counts.
        let failed = Resolution::Failed("down".to_owned());
        let sum = status(&artifact, &before, &failed, &nodes, &reports, &Labelling::Off);
        assert_eq!((&sum["nodes"]["ready"], &sum["digest"]), (&json!(2), &Value::Null));
        assert_eq!(changed(&before, &sum), Changed::Facts);
    }

    #[test]
    fn it_is_ready_when_all_nodes_that_are_meant_have_it() {
        let artifact =
            json!({"metadata": {"name": "llama", "generation": 1}, "spec": {"reference": "r/m:v1"}});
        let artifact: CachedArtifact = serde_json::from_value(artifact).expect("an artifact");
        let node: Node = serde_json::from_value(json!({"metadata": {"uid": "u"}})).expect("a node");
        let ready = |count: usize| {
            let nodes = (0..count).map(|number| (number.to_string(), node.clone())).collect();
            let reports = (0..count).map(|number| (number.to_string(), report("Ready", 1, "d"))).collect();
            status(&artifact, &Value::Null, &Resolution::Pending, &nodes, &reports, &Labelling::Off)["conditions"][0]
                .clone()
        };
        assert_eq!((&ready(3)["status"], &ready(3)["reason"]), (&json!("True"), &json!("Everywhere")));
        assert_eq!((&ready(0)["status"], &ready(0)["reason"]), (&json!("False"), &json!("NoNodes")));
        // What an older node of that name has said is not counted, nor is its label given.
        let other: Nodes = [("0".to_owned(), Node::default())].into();
        let reports: BTreeMap<String, Report> = [("0".to_owned(), report("Ready", 1, "d"))].into();
        let sum = status(&artifact, &Value::Null, &Resolution::Pending, &other, &reports, &Labelling::On);
        assert_eq!(sum["nodes"]["desired"], 0);
        let report = &reports["0"];
        assert_eq!(report.present("u", "llama", 1), Some("d"));
        assert_eq!((report.present("other", "llama", 1), report.present("u", "llama", 2)), (None, None));
    }
}
