//! Of the controller: asks once what the reference of each CachedArtifact is, so that all nodes pull the same, and sums up what they say.
//!
//! All of it can be done again, and by two controllers at once: what is written follows from what was read.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::kube::cluster::Cluster;
use crate::kube::object::{Change, Object, Resource};
use crate::kube::watch::Seen;
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use crate::prepull::artifact::{CachedArtifact, Wanted};
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
    artifacts: BTreeMap<String, Artifact>,
    nodes: BTreeMap<String, Labels>,
    reports: BTreeMap<String, Report>,
    asking: JoinSet<(String, String, Result<Digest, String>)>,
    /// Which of the three were read.
    known: [bool; 3],
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

/// Any object.
#[derive(Deserialize)]
struct Labelled {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    labels: Labels,
}

/// What a node says, with its name.
#[derive(Deserialize)]
struct Named {
    metadata: Metadata,
    #[serde(flatten)]
    report: Report,
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
    /// Asks nobody yet.
    pub fn new(cluster: Cluster, registry: Registry) -> Self {
        Self {
            cluster,
            registry,
            artifacts: BTreeMap::new(),
            nodes: BTreeMap::new(),
            reports: BTreeMap::new(),
            asking: JoinSet::new(),
            known: [false; 3],
            is_told: false,
        }
    }

    /// Works until `stop` is true.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let cluster = self.cluster.clone();
        let mut artifacts = cluster.follow::<Value>(Object::all(Resource::CachedArtifact));
        let mut nodes = cluster.follow::<Labelled>(Object::all(Resource::Node));
        let mut reports = cluster.follow::<Named>(Object::all(Resource::NodeArtifacts));
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0_u64;
        loop {
            tokio::select! {
                biased;
                () = ended(&mut stop) => return,
                Some(seen) = artifacts.recv() => {
                    self.see_artifacts(seen);
                    self.known[0] = true;
                }
                Some(seen) = nodes.recv() => {
                    let labelled = |Labelled { metadata }| (metadata.name, metadata.labels);
                    see(&mut self.nodes, seen, labelled);
                    self.known[1] = true;
                }
                Some(seen) = reports.recv() => {
                    see(&mut self.reports, seen, |Named { metadata, report }| (metadata.name, report));
                    self.known[2] = true;
                }
                Some(asked) = self.asking.join_next() => {
                    if let Ok((name, reference, result)) = asked {
                        self.learn(&name, &reference, result);
                        self.write(&name).await;
                    }
                }
                _ = ticks.tick() => {
                    count += 1;
                    if self.nodes.len() <= MANY_NODES || count.is_multiple_of(2) {
                        for name in self.artifacts.keys().cloned().collect::<Vec<_>>() {
                            self.write(&name).await;
                        }
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
            let (cluster, registry) = (self.cluster.clone(), self.registry.clone());
            let (name, reference) = (name.clone(), wanted.reference().to_owned());
            self.asking.spawn(async move {
                let result = Box::pin(resolve(&cluster, &registry, &wanted)).await;
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

    /// Writes the status of one, if it is another than it has. Not before all is read: nodes would be missing.
    async fn write(&mut self, name: &str) {
        let Some(artifact) = self.artifacts.get_mut(name).filter(|_| self.known == [true; 3]) else { return };
        let Artifact { object, status: before, resolution, .. } = artifact;
        let now = status(object, before, resolution, &self.nodes, &self.reports);
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

/// Notes what was seen.
fn see<T, V>(known: &mut BTreeMap<String, V>, seen: Seen<T>, named: impl Fn(T) -> (String, V)) {
    match seen {
        Seen::All(all) => *known = all.into_iter().map(named).collect(),
        Seen::Set(one) => {
            let (name, value) = named(one);
            known.insert(name, value);
        }
        Seen::Gone(name) => drop(known.remove(&name)),
    }
}

/// What the reference is, of several platforms the index.
async fn resolve(cluster: &Cluster, registry: &Registry, wanted: &Wanted) -> Result<Digest, String> {
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
    let found = remote::find(registry, &reference, &keyring, &Tenant::PrePull).await;
    found.map(|(_, fetched)| fetched.digest).map_err(|failure| failure.message)
}
