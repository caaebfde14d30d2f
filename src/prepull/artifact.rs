//! CachedArtifacts, as far as a node looks at them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

use crate::oci::reference::Reference;
use crate::prepull::selector::Selector;

/// What an operator wants to be on nodes. Its fields are those of the chart's `templates/prepull.yaml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(in crate::prepull) struct CachedArtifact {
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: Spec,
    #[serde(default)]
    pub status: Status,
}

/// A CachedArtifact that is there, also when a later version has written what is not understood.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(in crate::prepull) enum Read {
    Understood(Box<CachedArtifact>),
    NotUnderstood { metadata: Metadata },
}

/// Of its metadata.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(in crate::prepull) struct Metadata {
    pub name: String,
    #[serde(default)]
    pub generation: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::prepull) struct Spec {
    reference: String,
    attributes: BTreeMap<String, String>,
    pub node_selector: Selector,
    pub node_label: bool,
    pull_secret: Option<String>,
    retention: Retention,
    spread_seconds: u64,
    pub suspend: bool,
}

/// Whether it is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
enum Retention {
    #[default]
    Pinned,
    BestEffort,
}

/// Of its status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::prepull) struct Status {
    reference: String,
    digest: Option<String>,
}

/// What of a CachedArtifact a node acts on: as long as that is the same, nothing begins anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::prepull) struct Wanted {
    /// The name of the CachedArtifact.
    pub name: String,
    /// Its generation, which the status says.
    pub generation: i64,
    /// Attributes of a volume, with `reference`.
    pub attributes: BTreeMap<String, String>,
    /// A secret in the plugin's namespace.
    pub pull_secret: Option<String>,
    /// Whether it is kept.
    pub is_pinned: bool,
    /// The time in which nodes begin.
    spread: Duration,
    /// Whether nothing more is pulled.
    pub is_suspended: bool,
}

/// The longest time in which nodes begin, as the definition has it.
const LONGEST_SPREAD: u64 = 3600;

impl Read {
    /// Its name, and what is understood of it.
    pub fn named(self) -> (String, Option<CachedArtifact>) {
        match self {
            Self::Understood(artifact) => (artifact.metadata.name.clone(), Some(*artifact)),
            Self::NotUnderstood { metadata } => (metadata.name, None),
        }
    }
}

impl CachedArtifact {
    /// What is wanted of a node that it is for.
    pub fn wanted(&self) -> Wanted {
        let Self { metadata, spec, .. } = self;
        let mut attributes = spec.attributes.clone();
        attributes.insert("reference".to_owned(), self.reference());
        Wanted {
            name: metadata.name.clone(),
            generation: metadata.generation,
            attributes,
            pull_secret: spec.pull_secret.clone().filter(|name| !name.is_empty()),
            is_pinned: spec.retention == Retention::Pinned,
            spread: Duration::from_secs(spec.spread_seconds.min(LONGEST_SPREAD)),
            is_suspended: spec.suspend,
        }
    }

    /// The reference, with the digest that somebody resolved it to for all nodes, if that was this reference.
    fn reference(&self) -> String {
        let Self { spec, status, .. } = self;
        let wants_digest = |reference: &Reference| reference.digest().is_none() && !reference.is_layout();
        match &status.digest {
            Some(digest)
                if status.reference == spec.reference
                    && spec.reference.parse::<Reference>().as_ref().is_ok_and(wants_digest) =>
            {
                format!("{}@{digest}", spec.reference)
            }
            _ => spec.reference.clone(),
        }
    }
}

impl Wanted {
    /// The reference that is pulled.
    pub fn reference(&self) -> &str {
        self.attributes.get("reference").map_or("", String::as_str)
    }

    /// The attributes but that.
    pub fn further_attributes(&self) -> BTreeMap<String, String> {
        let further = self.attributes.iter().filter(|(key, _)| *key != "reference");
        further.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// For how long the node `node` waits before it begins: the nodes of a cluster do not ask a registry in the same moment.
    pub fn delay(&self, node: &str) -> Duration {
        let share = xxh3_64(format!("{node} {}", self.name).as_bytes()) % 1_000_000;
        self.spread * u32::try_from(share).unwrap_or_default() / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(spec: &Value, status: &Value) -> CachedArtifact {
        let object = json!({"metadata": {"name": "llama", "generation": 3}, "spec": spec, "status": status});
        serde_json::from_value(object).expect("an artifact")
    }

    #[test]
    fn nodes_pull_the_digest_that_the_reference_was_resolved_to() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let of = |reference: &str, resolved: &str| {
            let status = json!({"reference": resolved, "digest": digest});
            read(&json!({"reference": reference}), &status).wanted().reference().to_owned()
        };
        let tag = "r.example/m:v1";
        assert_eq!(of(tag, tag), format!("{tag}@{digest}"));
        assert_eq!(of(tag, "r.example/m:v0"), tag, "it was another reference then");
        let own = format!("r.example/m@sha256:{}", "b".repeat(64));
        assert_eq!(of(&own, &own), own);
        assert_eq!(
            read(&json!({"reference": "r.example/m"}), &json!({})).wanted().reference(),
            "r.example/m"
        );
    }

    #[test]
    fn what_is_not_said_is_what_the_definition_says() {
        let wanted = read(&json!({"reference": "r.example/m"}), &json!({})).wanted();
        assert!(wanted.is_pinned && !wanted.is_suspended && wanted.pull_secret.is_none());
        assert_eq!((wanted.generation, wanted.delay("node-a")), (3, Duration::ZERO));
        let spec = json!({
            "reference": "r.example/m", "attributes": {"include": "*.json"}, "retention": "BestEffort",
            "pullSecret": "regcred", "suspend": true,
        });
        let wanted = read(&spec, &json!({})).wanted();
        assert!(!wanted.is_pinned && wanted.is_suspended);
        assert_eq!(wanted.attributes["include"], "*.json");
        assert_eq!(wanted.pull_secret.as_deref(), Some("regcred"));
    }

    #[test]
    fn nodes_begin_spread_over_the_time() {
        let wanted = read(&json!({"reference": "r.example/m", "spreadSeconds": 600}), &json!({})).wanted();
        let delays: Vec<u64> =
            (0..1000).map(|node| wanted.delay(&format!("node-{node}")).as_secs()).collect();
        assert_eq!(wanted.delay("node-7"), wanted.delay("node-7"));
        for minute in 0..10 {
            let begin = delays.iter().filter(|delay| **delay / 60 == minute).count();
            assert!((50..200).contains(&begin), "{begin} of 1000 in minute {minute}");
        }
    }
}
