//! Of the controller: sees to it that what the reference of each CachedArtifact is is asked once, so that all nodes pull the same, sums up
//! what they say, and has Nodes show what they have.
//!
//! All of it can be done again, and by two controllers at once: what is written follows from what was read.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::kube::cluster::Cluster;
use crate::kube::error::Error;
use crate::kube::object::{Change, Object, Resource};
use crate::kube::watch::Seen;
use crate::prepull::marker::Marker;
use crate::prepull::nodes::{CsiNode, Node, NodeMarks, Nodes};
use crate::prepull::resolved::{Artifact, Artifacts};
use crate::prepull::summary::{Changed, Report, changed, status};
use crate::registry::client::Registry;

/// Resolves and sums up.
pub struct Coordinator {
    cluster: Cluster,
    artifacts: Artifacts,
    nodes: Nodes,
    reports: BTreeMap<String, Report>,
    marker: Marker,
    /// Which of them were read: artifacts, nodes, reports, and where the driver is registered.
    known: [bool; 4],
    /// The artifact with which it is begun the next time.
    first: String,
    is_told: bool,
}

/// How often it is summed up.
const EVERY: Duration = Duration::from_secs(30);
/// With more nodes it is summed up half as often: each of them sees each status.
const MANY_NODES: usize = 500;
/// Every so many times also what is other in words alone.
const WORDS: u64 = 10;
/// So many objects whose status is not taken, one after the other, are enough for one time.
const REFUSALS: usize = 3;

impl Coordinator {
    /// Asks nobody yet; later, registries without credentials only if `anonymous`. Changes nodes as `marks` say.
    pub fn new(cluster: Cluster, registry: Registry, anonymous: bool, marks: NodeMarks) -> Self {
        let marker = Marker::new(marks);
        Self {
            artifacts: Artifacts::new(cluster.clone(), registry, anonymous),
            cluster,
            nodes: Nodes::new(),
            reports: BTreeMap::new(),
            // Who takes no taint away does not look where the driver is registered.
            known: [false, false, false, !marker.takes_taint()],
            marker,
            first: String::new(),
            is_told: false,
        }
    }

    /// Works until `stop` is true.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let cluster = self.cluster.clone();
        let mut artifacts = cluster.follow::<Value>(Object::all(Resource::CachedArtifact));
        // Of who takes no taint away the metadata is enough.
        let all = if self.marker.takes_taint() { Resource::WholeNode } else { Resource::Node };
        let mut nodes = cluster.follow::<Node>(Object::all(all));
        let mut reports = cluster.follow::<Report>(Object::all(Resource::NodeArtifacts));
        let mut registered = match self.marker.takes_taint() {
            true => cluster.follow::<CsiNode>(Object::all(Resource::CsiNode)),
            false => mpsc::channel(1).1,
        };
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0_u64;
        loop {
            let due = self.marker.due().filter(|_| self.known == [true; 4]);
            tokio::select! {
                biased;
                () = ended(&mut stop) => return,
                _ = ticks.tick() => {
                    count += 1;
                    self.marker.look_again();
                    if self.nodes.len() <= MANY_NODES || count.is_multiple_of(2) {
                        self.sum_up(count.is_multiple_of(WORDS)).await;
                    }
                }
                Some(seen) = artifacts.recv() => {
                    self.known[0] = true;
                    if self.artifacts.see(seen) {
                        self.marker.look_at(None, &self.nodes);
                    }
                }
                Some(seen) = nodes.recv() => {
                    self.known[1] = true;
                    let changed = see(&mut self.nodes, seen, |node| node.metadata.name.clone());
                    self.marker.look_at(changed, &self.nodes);
                }
                Some(seen) = reports.recv() => {
                    self.known[2] = true;
                    let changed = see(&mut self.reports, seen, |report| report.metadata.name.clone());
                    self.marker.look_at(changed, &self.nodes);
                }
                Some(seen) = registered.recv() => {
                    self.known[3] = true;
                    let changed = self.marker.see_registered(seen);
                    self.marker.look_at(changed, &self.nodes);
                }
                answered = self.artifacts.answered(), if self.artifacts.are_asked() => {
                    if let Some(name) = answered {
                        self.marker.look_at(None, &self.nodes);
                        // It is tried again with all.
                        let _: Result<(), Error> = self.write(&name, true).await;
                    }
                }
                // After what is new: of a node only what was seen last counts.
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.marker.mark(&self.cluster, &self.artifacts, &self.nodes, &self.reports).await;
                }
            }
            self.artifacts.ask();
        }
    }

    /// Writes what has changed since it was written, also `words` of others. One object that is not taken does not stand before the others:
    /// what is not done is begun with the next time.
    async fn sum_up(&mut self, words: bool) {
        let mut names = self.artifacts.names();
        let first = names.partition_point(|name| *name < self.first);
        names.rotate_left(first);
        let mut refused = 0;
        for (at, name) in names.iter().enumerate() {
            match self.write(name, words).await {
                Ok(()) => refused = 0,
                Err(error) => {
                    refused += 1;
                    if !is_of_object(&error) || refused >= REFUSALS {
                        self.first = names.get(at + 1).cloned().unwrap_or_default();
                        return;
                    }
                }
            }
            yield_now().await;
        }
    }

    /// Writes the status of one, if it is another than it has. Not before all is read: nodes would be missing.
    async fn write(&mut self, name: &str, words: bool) -> Result<(), Error> {
        if self.known[..3] != [true; 3] {
            return Ok(());
        }
        let Some(artifact) = self.artifacts.get_mut(name) else { return Ok(()) };
        let Artifact { object, status: before, resolution, .. } = artifact;
        let labelling = self.marker.labelling();
        let now = status(object, before, resolution, &self.nodes, &self.reports, &labelling);
        let least = if words { Changed::Words } else { Changed::Facts };
        if changed(before, &now) < least {
            return Ok(());
        }
        let what = Object::of_cluster(Resource::CachedArtifact, name)?;
        match self.cluster.change(&what, Change::MergeStatus, &json!({"status": now})).await {
            Ok(()) => {
                artifact.status = now;
                self.is_told = false;
                Ok(())
            }
            Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => {
                if !std::mem::replace(&mut self.is_told, true) {
                    tracing::warn!(%error, "cannot write what nodes have; it is tried again and again");
                }
                tracing::debug!(%error, name, "cannot write what nodes have");
                Err(error)
            }
        }
    }
}

/// Whether it may be the one object that was not taken, and not all of them.
fn is_of_object(error: &Error) -> bool {
    matches!(
        error,
        Error::Protocol { .. }
            | Error::Forbidden { .. }
            | Error::Conflict { .. }
            | Error::TooLarge { .. }
            | Error::Name(_)
    )
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
