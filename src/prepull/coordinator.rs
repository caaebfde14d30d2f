//! Of the controller: asks once what the reference of each CachedArtifact is, so that all nodes pull the same, and sums up what they say.
//!
//! All of it can be done again, and by two controllers at once: what is written follows from what was read.

use std::collections::{BTreeMap, BTreeSet};
use std::future::ready;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::kube::cluster::Cluster;
use crate::kube::object::{Change, Object, Resource};
use crate::kube::watch::Seen;
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use crate::prepull::artifact::{CachedArtifact, Wanted};
use crate::prepull::nodes::{CsiNode, Node, NodeMarks, Nodes, label};
use crate::prepull::selector::Labels;
use crate::prepull::summary::{Report, Resolution, changes, status};
use crate::pull::remote;
use crate::registry::client::Registry;
use crate::registry::credentials::keyring::Keyring;
use crate::tenant::Tenant;

/// Resolves and sums up.
pub struct Coordinator {
    cluster: Cluster,
    registry: Registry,
    /// Whether registries are asked without credentials.
    anonymous: bool,
    artifacts: BTreeMap<String, Artifact>,
    nodes: Nodes,
    /// What is changed of nodes.
    marks: NodeMarks,
    /// Nodes of which it has to be looked whether they are as they should be.
    unmarked: BTreeSet<String>,
    /// Nodes where the driver is registered, and since when the taint of those is seen that have it.
    registered: BTreeSet<String>,
    tainted: BTreeMap<String, Instant>,
    reports: BTreeMap<String, Report>,
    asking: JoinSet<(String, String, Result<Digest, String>)>,
    /// Which of the four were read.
    known: [bool; 4],
    is_told: bool,
}

/// A CachedArtifact, and what is known of it.
struct Artifact {
    object: CachedArtifact,
    /// Its status as it is in the API.
    status: Value,
    resolution: Resolution,
    /// When its registry may be asked again, and how long after that.
    next: Instant,
    retry: Duration,
    is_asked: bool,
}

/// How often it is summed up.
const EVERY: Duration = Duration::from_secs(30);
/// With more nodes it is summed up half as often: each of them sees each status.
const MANY_NODES: usize = 500;
/// Registries that are asked at a time.
const ASKED: usize = 8;
/// After a registry could not be asked; twice as long each time.
const FIRST_RETRY: Duration = Duration::from_secs(30);
const LAST_RETRY: Duration = Duration::from_secs(900);

impl Coordinator {
    /// Asks nobody yet; later, registries without credentials only if `anonymous`. Changes nodes as `marks` say.
    pub fn new(cluster: Cluster, registry: Registry, anonymous: bool, marks: NodeMarks) -> Self {
        Self {
            cluster,
            registry,
            anonymous,
            artifacts: BTreeMap::new(),
            nodes: Nodes::new(),
            unmarked: BTreeSet::new(),
            registered: BTreeSet::new(),
            tainted: BTreeMap::new(),
            reports: BTreeMap::new(),
            asking: JoinSet::new(),
            // Who takes no taint away does not look at CSINodes.
            known: [false, false, false, marks.taint.is_none()],
            marks,
            is_told: false,
        }
    }

    /// Works until `stop` is true.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let cluster = self.cluster.clone();
        let mut artifacts = cluster.follow::<Value>(Object::all(Resource::CachedArtifact));
        let mut nodes = cluster.follow::<Node>(Object::all(Resource::Node));
        let mut reports = cluster.follow::<Report>(Object::all(Resource::NodeArtifacts));
        let mut registered = match self.marks.taint {
            Some(_) => cluster.follow::<CsiNode>(Object::all(Resource::CsiNode)),
            None => mpsc::channel(1).1,
        };
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0_u64;
        loop {
            tokio::select! {
                biased;
                () = ended(&mut stop) => return,
                Some(seen) = artifacts.recv() => {
                    self.see_artifacts(seen);
                    self.look_at(None);
                    self.known[0] = true;
                }
                Some(seen) = nodes.recv() => {
                    let changed = see(&mut self.nodes, seen, |node| node.metadata.name.clone());
                    self.look_at(changed);
                    self.known[1] = true;
                }
                Some(seen) = reports.recv() => {
                    let changed = see(&mut self.reports, seen, |report| report.metadata.name.clone());
                    self.look_at(changed);
                    self.known[2] = true;
                }
                Some(seen) = registered.recv() => {
                    let changed = self.see_registered(seen);
                    self.look_at(changed);
                    self.known[3] = true;
                }
                Some(asked) = self.asking.join_next() => {
                    if let Ok((name, reference, result)) = asked {
                        self.learn(&name, &reference, result);
                        self.look_at(None);
                        self.write(&name).await;
                    }
                }
                _ = ticks.tick() => {
                    count += 1;
                    self.look_at(None);
                    if self.nodes.len() <= MANY_NODES || count.is_multiple_of(2) {
                        for name in self.artifacts.keys().cloned().collect::<Vec<_>>() {
                            self.write(&name).await;
                        }
                    }
                }
                // After what is new: of a node only what was seen last counts.
                () = ready(()), if !self.unmarked.is_empty() && self.known == [true; 4] => {
                    if let Some(name) = self.unmarked.pop_first() {
                        self.mark(&name).await;
                    }
                }
            }
            self.ask();
        }
    }

    fn see_artifacts(&mut self, seen: Seen<Value>) {
        match seen {
            Seen::All(all) => {
                let before = std::mem::take(&mut self.artifacts);
                for object in all {
                    self.see_artifact(object, &before);
                }
            }
            Seen::Set(object) => {
                let before = std::mem::take(&mut self.artifacts);
                self.see_artifact(object, &before);
                for (name, artifact) in before {
                    self.artifacts.entry(name).or_insert(artifact);
                }
            }
            Seen::Gone(name) => drop(self.artifacts.remove(&name)),
        }
    }

    fn see_artifact(&mut self, mut object: Value, before: &BTreeMap<String, Artifact>) {
        let fields = object.as_object_mut();
        let status = fields.and_then(|fields| fields.remove("status")).unwrap_or_default();
        let Ok(mut object) = CachedArtifact::deserialize(object) else { return };
        let name = object.metadata.name.clone();
        object.status = Default::default();
        let own_reference = object.wanted().reference().to_owned();
        let own = || {
            let digest = status["digest"].as_str().filter(|_| status["reference"] == own_reference)?;
            Some(Resolution::Known(digest.parse().ok()?))
        };
        let now = Instant::now();
        // Another node selector is no other reference: what it was resolved to stays.
        let known = before.get(&name).filter(|known| known.object.wanted().reference() == own_reference);
        let (resolution, next, retry, is_asked) = match known {
            Some(known) => (known.resolution.clone(), known.next, known.retry, known.is_asked),
            // What was resolved before this process was started stays what it is.
            None => (own().unwrap_or(Resolution::Pending), now, FIRST_RETRY, false),
        };
        self.artifacts.insert(name, Artifact { object, status, resolution, next, retry, is_asked });
    }

    /// Asks the registries of those whose digest is not known, when it is time.
    fn ask(&mut self) {
        let now = Instant::now();
        for (name, artifact) in &mut self.artifacts {
            if self.asking.len() >= ASKED {
                return;
            }
            let is_due = !matches!(artifact.resolution, Resolution::Known(_)) && artifact.next <= now;
            if !is_due || artifact.is_asked {
                continue;
            }
            artifact.is_asked = true;
            let wanted = artifact.object.wanted();
            let (cluster, registry, anonymous) =
                (self.cluster.clone(), self.registry.clone(), self.anonymous);
            let (name, reference) = (name.clone(), wanted.reference().to_owned());
            self.asking.spawn(async move {
                let result = Box::pin(resolve(&cluster, &registry, &wanted, anonymous)).await;
                (name, reference, result)
            });
        }
    }

    fn learn(&mut self, name: &str, reference: &str, result: Result<Digest, String>) {
        let Some(artifact) = self.artifacts.get_mut(name) else { return };
        if artifact.object.wanted().reference() != reference {
            return;
        }
        artifact.is_asked = false;
        artifact.resolution = match result {
            Ok(digest) => Resolution::Known(digest),
            Err(reason) => {
                artifact.next = Instant::now() + artifact.retry;
                artifact.retry = (2 * artifact.retry).min(LAST_RETRY);
                Resolution::Failed(reason)
            }
        };
    }

    fn see_registered(&mut self, seen: Seen<CsiNode>) -> Option<String> {
        let Some(taint) = &self.marks.taint else { return None };
        match seen {
            Seen::All(all) => {
                let with_it = all.into_iter().filter(|node| node.has(&taint.driver));
                self.registered = with_it.map(|node| node.metadata.name).collect();
                None
            }
            Seen::Set(node) => {
                let name = node.metadata.name.clone();
                match node.has(&taint.driver) {
                    true => self.registered.insert(name.clone()),
                    false => self.registered.remove(&name),
                };
                Some(name)
            }
            Seen::Gone(name) => {
                self.registered.remove(&name);
                Some(name)
            }
        }
    }

    /// Sees to it that a node is looked at, or all of them.
    fn look_at(&mut self, node: Option<String>) {
        match node {
            Some(node) => drop(self.unmarked.insert(node)),
            None => self.unmarked.extend(self.nodes.keys().cloned()),
        }
    }

    /// Changes a node, if it does not show what it has.
    async fn mark(&mut self, name: &str) {
        let Some(node) = self.nodes.get(name) else {
            self.tainted.remove(name);
            return;
        };
        let (mut labels, mut lacks) = (Labels::new(), None);
        for (artifact, known) in &self.artifacts {
            let spec = &known.object.spec;
            if !spec.node_label || !spec.node_selector.matches(&node.metadata.labels) {
                continue;
            }
            let report = self.reports.get(name);
            let present = report.and_then(|report| report.present(&node.metadata.uid, artifact));
            let is_meant = |digest: &&str| match &known.resolution {
                Resolution::Known(known) => *digest == known.to_string(),
                _ => true,
            };
            match present.filter(is_meant) {
                Some(digest) => labels.extend([label(artifact, digest)]),
                None => lacks = Some(artifact.clone()),
            }
        }
        let mut taint = None;
        if let Some(startup) = &self.marks.taint {
            let key = startup.key();
            if node.has_taint(&key) {
                let since = *self.tainted.entry(name.to_owned()).or_insert_with(Instant::now);
                let is_patient = since.elapsed() < startup.longest;
                taint = (self.registered.contains(name) && !(lacks.is_some() && is_patient)).then_some(key);
            } else {
                self.tainted.remove(name);
            }
        }
        let Some(patch) = node.change(self.marks.labels.then_some(&labels), taint.as_deref()) else { return };
        let Ok(what) = Object::of_cluster(Resource::Node, name) else { return };
        match self.cluster.change(&what, Change::Merge, &patch).await {
            Ok(()) => match (taint, lacks) {
                (None, _) => {}
                (Some(taint), None) => tracing::info!(node = name, taint, "pods may come to the node"),
                (Some(taint), Some(lacks)) => {
                    tracing::warn!(
                        node = name,
                        taint,
                        lacks,
                        "pods may come to the node, which was waited for long enough"
                    );
                }
            },
            // It is looked at again when it is seen as it is now, and now and then.
            Err(error) => tracing::debug!(%error, node = name, "cannot change the node"),
        }
    }

    /// Writes the status of one, if it is another than it has. Not before all is read: nodes would be missing.
    async fn write(&mut self, name: &str) {
        let Some(artifact) = self.artifacts.get_mut(name).filter(|_| self.known[..3] == [true; 3]) else {
            return;
        };
        let Artifact { object, status: before, resolution, .. } = artifact;
        let now = status(object, before, resolution, &self.nodes, &self.reports, self.marks.labels);
        if !changes(before, &now) {
            return;
        }
        let Ok(what) = Object::of_cluster(Resource::CachedArtifact, name) else { return };
        match self.cluster.change(&what, Change::MergeStatus, &json!({"status": now})).await {
            Ok(()) => {
                artifact.status = now;
                self.is_told = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_told, true) {
                    tracing::warn!(%error, "cannot write what nodes have; it is tried again and again");
                }
                tracing::debug!(%error, name, "cannot write what nodes have");
            }
        }
    }
}

/// Waits until it is true, or nobody can say so any more.
async fn ended(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Notes what was seen. Of which it was, if not of all.
fn see<T>(known: &mut BTreeMap<String, T>, seen: Seen<T>, name: impl Fn(&T) -> String) -> Option<String> {
    match seen {
        Seen::All(all) => {
            *known = all.into_iter().map(|one| (name(&one), one)).collect();
            None
        }
        Seen::Set(one) => {
            let name = name(&one);
            known.insert(name.clone(), one);
            Some(name)
        }
        Seen::Gone(name) => {
            known.remove(&name);
            Some(name)
        }
    }
}

/// What the reference is, of several platforms the index.
async fn resolve(
    cluster: &Cluster,
    registry: &Registry,
    wanted: &Wanted,
    anonymous: bool,
) -> Result<Digest, String> {
    let reference = wanted.reference().parse::<Reference>().map_err(|error| error.to_string())?;
    if let Some(digest) = reference.digest() {
        return Ok(digest.clone());
    }
    if reference.is_layout() {
        return Err("it lies on the nodes".to_owned());
    }
    let keyring = match &wanted.pull_secret {
        None => Keyring::default(),
        Some(name) => cluster.own_pull_secret(name).await.map_err(|error| crate::failure::chain(&error))?,
    };
    let found = remote::find(registry, &reference, &keyring, &Tenant::PrePull, anonymous).await;
    found.map(|(_, fetched)| fetched.digest).map_err(|failure| failure.message)
}
