//! Follows what operators want and which labels the node has, and sees to it that what is for this node is brought, and let go again.
//!
//! It goes by what is wanted now, and not by what has changed: after a restart, a list that was read anew, or a store that could not be
//! used, the same comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::kube::cluster::Cluster;
use crate::kube::object::{InvalidName, Object, Resource};
use crate::kube::watch::Seen;
use crate::prepull::artifact::{CachedArtifact, Read, Wanted};
use crate::prepull::board::Board;
use crate::prepull::bring::{Bringing, PULLS, Shared};
use crate::prepull::report::{self, NodeIdentity};
use crate::prepull::selector::Labels;
use crate::volume::volumes::Volumes;

/// Brings to this node what CachedArtifacts want.
pub struct Agent {
    shared: Shared,
    /// By their names; all there are, also those for other nodes and those that are not understood.
    artifacts: Option<BTreeMap<String, Option<CachedArtifact>>>,
    labels: Option<Labels>,
    identity: watch::Sender<Option<NodeIdentity>>,
    bringing: BTreeMap<String, Bringing>,
    /// Those of which the store knows that they are wanted.
    kept: Option<BTreeSet<String>>,
    is_told: bool,
}

/// A node, as far as it is looked at.
#[derive(Debug, Deserialize)]
struct Node {
    metadata: NodeMetadata,
}

#[derive(Debug, Deserialize)]
struct NodeMetadata {
    name: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    labels: Labels,
}

/// CachedArtifacts that are remembered, of all nodes.
const ARTIFACTS: usize = 1000;
/// Those of them that one node has: as many as the definition of NodeArtifacts holds.
const OF_A_NODE: usize = 256;
/// How often what the store keeps is compared with what is wanted.
const COMPARE: Duration = Duration::from_secs(60);

impl Agent {
    /// For the node of this name; asks nobody yet.
    pub fn new(volumes: Arc<Volumes>, cluster: Cluster, node: String) -> Self {
        let turns = Arc::new(Semaphore::new(PULLS));
        Self {
            shared: Shared { volumes, cluster, node, board: Board::default(), turns },
            artifacts: None,
            labels: None,
            identity: watch::Sender::new(None),
            bringing: BTreeMap::new(),
            kept: None,
            is_told: false,
        }
    }

    /// Works until `stop` is true.
    ///
    /// # Errors
    /// [`InvalidName`] when the node's name is none that a node can have.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), InvalidName> {
        let cluster = self.shared.cluster.clone();
        let mut nodes = cluster.follow::<Node>(Object::of_cluster(Resource::Node, &self.shared.node)?);
        let mut artifacts = cluster.follow::<Read>(Object::all(Resource::CachedArtifact));
        let (board, identity) = (self.shared.board.subscribe(), self.identity.subscribe());
        let mut reporting = None;
        let mut compare = interval(COMPARE);
        compare.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                Some(seen) = nodes.recv() => self.see_node(seen),
                Some(seen) = artifacts.recv() => self.see_artifact(seen),
                _ = compare.tick() => self.kept = None,
            }
            self.reconcile().await;
            if self.artifacts.is_some() && self.labels.is_some() {
                // Before, it would say that there is nothing.
                reporting.get_or_insert_with(|| {
                    tokio::spawn(report::run(cluster.clone(), board.clone(), identity.clone()))
                });
            }
        }
        for (_, bringing) in std::mem::take(&mut self.bringing) {
            bringing.end().await;
        }
        if let Some(reporting) = reporting {
            reporting.abort();
        }
        Ok(())
    }

    fn see_node(&mut self, seen: Seen<Node>) {
        let node = match seen {
            Seen::All(nodes) => nodes.into_iter().next(),
            Seen::Set(node) => Some(node),
            // Its pods go with it; until then nothing changes here.
            Seen::Gone(_) => None,
        };
        if let Some(Node { metadata: NodeMetadata { name, uid, labels } }) = node {
            self.labels = Some(labels);
            self.identity.send_if_modified(|known| {
                let identity = Some(NodeIdentity { name, uid });
                let is_new = *known != identity;
                *known = identity;
                is_new
            });
        }
    }

    /// Notes what was seen. Of what is not understood, what was known before counts.
    fn see_artifact(&mut self, seen: Seen<Read>) {
        let known = self.artifacts.get_or_insert_default();
        match seen {
            Seen::All(all) => {
                let mut before = std::mem::take(known);
                for (name, artifact) in all.into_iter().map(Read::named).take(ARTIFACTS) {
                    let before = before.remove(&name).flatten();
                    known.insert(name, artifact.or(before));
                }
            }
            Seen::Set(artifact) => {
                let (name, artifact) = artifact.named();
                if known.len() < ARTIFACTS || known.contains_key(&name) {
                    let before = known.remove(&name).flatten();
                    known.insert(name, artifact.or(before));
                } else {
                    tracing::warn!(
                        name,
                        "there are more than {ARTIFACTS} CachedArtifacts: this one is not looked at"
                    );
                }
            }
            Seen::Gone(name) => drop(known.remove(&name)),
        }
    }

    async fn reconcile(&mut self) {
        let (Some(artifacts), Some(labels)) = (&self.artifacts, &self.labels) else { return };
        let (wanted, left_out) = wanted(artifacts, labels);
        if let Some(first) = left_out
            && !std::mem::replace(&mut self.is_told, true)
        {
            tracing::warn!(
                first,
                "more than {OF_A_NODE} CachedArtifacts are for this node: those from this name on are not brought"
            );
        }
        let is_other = |name: &String, bringing: &mut Bringing| wanted.get(name) != Some(&bringing.wanted);
        let others: Vec<(String, Bringing)> = self.bringing.extract_if(.., is_other).collect();
        let mut gone = Vec::new();
        for (name, bringing) in others {
            bringing.end().await;
            if !wanted.contains_key(&name) {
                gone.push(name);
            }
        }
        // What is not understood may be for this node: what is kept for its sake stays.
        let unclear = artifacts.iter().filter(|(_, artifact)| artifact.is_none()).map(|(name, _)| name);
        let names: BTreeSet<String> = wanted.keys().chain(unclear).cloned().collect();
        if self.kept.as_ref() != Some(&names) {
            match self.shared.volumes.keep_only(names.clone()).await {
                Ok(()) => self.kept = Some(names),
                Err(error) => {
                    tracing::debug!(%error, "cannot let go what is no longer wanted; it is tried again");
                }
            }
        }
        for name in gone {
            self.shared.board.remove(&name);
        }
        let new: Vec<Wanted> =
            wanted.into_values().filter(|wanted| !self.bringing.contains_key(&wanted.name)).collect();
        if new.is_empty() {
            return;
        }
        // A store that cannot be used says so when something is pulled.
        let mut pins = self.shared.volumes.kept().await.unwrap_or_default();
        for wanted in new {
            let at = pins.iter().position(|pin| pin.artifact == wanted.name);
            let pin = at.map(|at| pins.swap_remove(at));
            let name = wanted.name.clone();
            self.bringing.insert(name, Bringing::start(&self.shared, wanted, pin).await);
        }
    }
}

/// What is wanted of a node with these labels, and the first name for which there is no more room.
fn wanted(
    artifacts: &BTreeMap<String, Option<CachedArtifact>>,
    labels: &Labels,
) -> (BTreeMap<String, Wanted>, Option<String>) {
    let own = artifacts.values().flatten().filter(|artifact| artifact.spec.node_selector.matches(labels));
    let mut wanted: BTreeMap<String, Wanted> =
        own.map(|artifact| (artifact.metadata.name.clone(), artifact.wanted())).collect();
    let left_out = wanted.keys().nth(OF_A_NODE).cloned();
    if let Some(first) = &left_out {
        wanted.split_off(first);
    }
    (wanted, left_out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn artifact(name: &str, zone: &str) -> (String, Option<CachedArtifact>) {
        let spec = json!({"reference": "r.example/m:v1", "nodeSelector": {"matchLabels": {"zone": zone}}});
        let read = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}));
        (name.to_owned(), read.expect("an artifact"))
    }

    #[test]
    fn what_matches_is_wanted_up_to_what_the_status_holds() {
        let labels: Labels = [("zone".to_owned(), "a".to_owned())].into();
        let some = [artifact("one", "a"), artifact("two", "b"), artifact("three", "a")].into();
        let (few, left_out) = wanted(&some, &labels);
        assert_eq!(few.keys().collect::<Vec<_>>(), ["one", "three"]);
        assert_eq!((few["one"].name.as_str(), left_out), ("one", None));
        assert!(wanted(&some, &Labels::new()).0.is_empty());
        let all = (0..OF_A_NODE + 2).map(|number| artifact(&format!("m{number:03}"), "a")).collect();
        let (many, left_out) = wanted(&all, &labels);
        assert_eq!((many.len(), left_out.as_deref()), (OF_A_NODE, Some("m256")));
    }
}
