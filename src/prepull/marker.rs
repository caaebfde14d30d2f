//! Changes Nodes so that they show what they have: labels of artifacts, and no startup taint any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::kube::cluster::Cluster;
use crate::kube::error::Error;
use crate::kube::object::{Change, Object, Resource};
use crate::kube::watch::Seen;
use crate::prepull::nodes::{CsiNode, Node, NodeMarks, Nodes, label};
use crate::prepull::resolved::Artifacts;
use crate::prepull::selector::Labels;
use crate::prepull::summary::{Labelling, Report, Resolution};

/// Knows which Nodes have to be looked at.
pub(in crate::prepull) struct Marker {
    marks: NodeMarks,
    /// Nodes of which it has to be looked whether they are as they should be.
    unmarked: BTreeSet<String>,
    /// Those that were not changed when it was tried, and those of them whose time has come again, after the others.
    failed: BTreeSet<String>,
    again: BTreeSet<String>,
    /// The uids of Nodes on which the driver is registered, by name.
    registered: BTreeMap<String, String>,
    /// The uids of Nodes that have the taint, and since when that is seen, by name.
    tainted: BTreeMap<String, (String, Instant)>,
    refusals: Refusals,
}

/// Changes of Nodes that the API server did not take.
#[derive(Default)]
struct Refusals {
    /// Pauses that were made, since it took one.
    pauses: u32,
    /// Of the last one, as long as they are of several Nodes.
    reason: Option<&'static str>,
    last: Option<Instant>,
    /// Until when those that were refused are not tried again.
    until: Option<Instant>,
}

/// What a Node is to be like.
struct Due {
    labels: Labels,
    /// An artifact that it lacks.
    lacks: Option<String>,
    /// The taint that goes.
    taint: Option<String>,
}

/// Refusals of so many Nodes are not about single Nodes.
const REFUSALS: usize = 3;
/// The pause then; twice as long after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LAST_PAUSE: Duration = Duration::from_secs(900);

impl Marker {
    pub fn new(marks: NodeMarks) -> Self {
        Self {
            marks,
            unmarked: BTreeSet::new(),
            failed: BTreeSet::new(),
            again: BTreeSet::new(),
            registered: BTreeMap::new(),
            tainted: BTreeMap::new(),
            refusals: Refusals::default(),
        }
    }

    /// Whether it takes a taint away, and so has to know of taints and drivers.
    pub fn takes_taint(&self) -> bool {
        self.marks.taint.is_some()
    }

    /// What the status of artifacts says of labels.
    pub fn labelling(&self) -> Labelling {
        match &self.refusals.reason {
            _ if !self.marks.labels => Labelling::Off,
            Some(reason) => Labelling::Refused(reason),
            None => Labelling::On,
        }
    }

    /// Notes on which Nodes the driver is registered. The Node of which something has changed, if it is one.
    pub fn see_registered(&mut self, seen: Seen<CsiNode>) -> Option<String> {
        let taint = self.marks.taint.as_ref()?;
        let on =
            |node: &CsiNode| Some((node.metadata.name.clone(), node.node_with(&taint.driver)?.to_owned()));
        match seen {
            Seen::All(all) => {
                self.registered = all.iter().filter_map(on).collect();
                None
            }
            Seen::Set(node) => {
                self.registered.remove(&node.metadata.name);
                self.registered.extend(on(&node));
                Some(node.metadata.name)
            }
            Seen::Gone(name) => {
                self.registered.remove(&name);
                Some(name)
            }
        }
    }

    /// Sees to it that a Node is looked at, or all of them.
    pub fn look_at(&mut self, node: Option<String>, all: &Nodes) {
        let is_new = |name: &String| !self.failed.contains(name) && !self.again.contains(name);
        match node {
            Some(node) => self.unmarked.extend(Some(node).filter(is_new)),
            None => self.unmarked.extend(all.keys().filter(|name| is_new(name)).cloned()),
        }
    }

    /// Sees to it that those are looked at for which the time may be over, or which could not be changed.
    pub fn look_again(&mut self) {
        self.again.append(&mut self.failed);
        let tainted = self.tainted.keys().filter(|name| !self.again.contains(*name));
        self.unmarked.extend(tainted.cloned());
    }

    /// When the next Node may be changed, if one has to be looked at.
    pub fn due(&self) -> Option<Instant> {
        let pause = self.refusals.until.unwrap_or_else(Instant::now);
        if !self.unmarked.is_empty() {
            // What was refused is of other Nodes, it may be.
            let after_last = self.refusals.last.map(|last| last + FIRST_PAUSE);
            return Some(after_last.map_or(pause, |after_last| pause.min(after_last)));
        }
        (!self.again.is_empty()).then_some(pause)
    }

    /// Changes the next Node, if it does not show what it has.
    pub async fn mark(
        &mut self,
        cluster: &Cluster,
        artifacts: &Artifacts,
        nodes: &Nodes,
        reports: &BTreeMap<String, Report>,
    ) {
        let Some(name) = self.unmarked.pop_first().or_else(|| self.again.pop_first()) else { return };
        match nodes.get(&name) {
            Some(node) => self.change(cluster, artifacts, node, reports.get(&name)).await,
            None => drop(self.tainted.remove(&name)),
        }
        if self.failed.len() + self.again.len() < REFUSALS {
            self.refusals = Refusals::default();
        }
    }

    async fn change(
        &mut self,
        cluster: &Cluster,
        artifacts: &Artifacts,
        node: &Node,
        report: Option<&Report>,
    ) {
        let name = &node.metadata.name;
        let Due { labels, lacks, taint } = self.due_of(node, artifacts, report);
        let Some(patch) = node.change(self.marks.labels.then_some(&labels), taint.as_deref()) else { return };
        let Ok(what) = Object::of_cluster(Resource::Node, name) else { return };
        match cluster.change(&what, Change::Merge, &patch).await {
            Ok(()) => {
                self.refusals.taken();
                match (taint, lacks) {
                    (None, _) => {}
                    (Some(taint), None) => tracing::info!(node = name, taint, "pods may come to the node"),
                    (Some(taint), Some(lacks)) => tracing::warn!(
                        node = name,
                        taint,
                        lacks,
                        "pods may come to the node: it was waited for long enough"
                    ),
                }
            }
            // It is looked at again when it is seen as it is now.
            Err(Error::Conflict { .. } | Error::NotFound { .. }) => {}
            Err(error) => {
                tracing::debug!(%error, node = name, "cannot change the node");
                self.refused(name, &error);
            }
        }
    }

    /// Notes that a Node could not be changed.
    fn refused(&mut self, name: &str, error: &Error) {
        self.failed.insert(name.to_owned());
        if self.failed.len() + self.again.len() >= REFUSALS {
            self.refusals.note(error);
        }
    }

    fn due_of(&mut self, node: &Node, artifacts: &Artifacts, report: Option<&Report>) -> Due {
        let uid = &node.metadata.uid;
        let (mut labels, mut lacks) = (Labels::new(), None);
        for (name, artifact) in artifacts.iter() {
            let spec = &artifact.object.spec;
            if !spec.node_label || !spec.node_selector.matches(&node.metadata.labels) {
                continue;
            }
            let generation = artifact.object.metadata.generation;
            let present = report.and_then(|report| report.present(uid, name, generation));
            let is_meant = |digest: &&str| match &artifact.resolution {
                Resolution::Known(known) => *digest == known.to_string(),
                _ => true,
            };
            match present.filter(is_meant) {
                Some(digest) => labels.extend([label(name, digest)]),
                // What nobody brings is not waited for.
                None if spec.suspend => {}
                None => lacks = Some(name.clone()),
            }
        }
        // What is not understood is as it was.
        for name in artifacts.unclear() {
            let (key, _) = label(name, "");
            if let Some(value) = node.metadata.labels.get(&key) {
                labels.insert(key, value.clone());
            }
        }
        let taint = self.taint_of(node, lacks.is_some());
        Due { labels, lacks, taint }
    }

    /// The taint of `node`, if it is to go.
    fn taint_of(&mut self, node: &Node, lacks: bool) -> Option<String> {
        let startup = self.marks.taint.as_ref()?;
        let (key, name, uid) = (startup.key(), &node.metadata.name, &node.metadata.uid);
        if !node.has_taint(&key) {
            self.tainted.remove(name);
            return None;
        }
        let new = || (uid.clone(), Instant::now());
        let seen = self.tainted.entry(name.clone()).or_insert_with(new);
        if seen.0 != *uid {
            *seen = new(); // Another one of that name.
        }
        let is_patient = seen.1.elapsed() < startup.longest;
        let is_registered = self.registered.get(name) == Some(uid);
        (is_registered && !(lacks && is_patient)).then_some(key)
    }
}

impl Refusals {
    /// A change was taken: the pauses are short again. What was said stays until those that were refused are as they should be.
    fn taken(&mut self) {
        (self.pauses, self.last, self.until) = (0, None, None);
    }

    /// One more was refused.
    fn note(&mut self, error: &Error) {
        if self.reason.is_none() {
            tracing::warn!(%error, "cannot change nodes; it is tried again and again");
        }
        // Of the status of objects that all nodes see: the same for every Node.
        self.reason = Some(match error {
            Error::Forbidden { .. } => {
                "the API server does not let the controller change nodes, of which its log says more"
            }
            _ => "the API server does not take changes of nodes, of which the controller's log says more",
        });
        let now = Instant::now();
        self.last = Some(now);
        self.until = Some(now + (FIRST_PAUSE * 2_u32.pow(self.pauses.min(5))).min(LAST_PAUSE));
        self.pauses += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_and_pause_all_when_they_are_about_more_than_one_node() {
        let refused = |marker: &mut Marker, name: &str| {
            let what = Object::of_cluster(Resource::Node, name).expect("a name");
            marker.unmarked.remove(name);
            marker.again.remove(name);
            marker.refused(name, &Error::Timeout { what, limit: Duration::from_secs(4) });
        };
        let mut marker = Marker::new(NodeMarks { labels: true, taint: None });
        assert_eq!((marker.labelling(), marker.due()), (Labelling::On, None));
        let nodes: Nodes = ["a", "b", "c"].map(|name| (name.to_owned(), Node::default())).into();
        marker.look_at(None, &nodes);
        for name in ["a", "b", "a", "b", "a", "b"] {
            refused(&mut marker, name); // Of the others it is not known.
            marker.look_again();
            assert!(marker.due().is_some_and(|due| due <= Instant::now()));
            assert_eq!(marker.labelling(), Labelling::On);
        }
        let mut before = Duration::ZERO;
        for name in ["c", "a", "b", "c", "a", "a", "a", "a", "a"] {
            refused(&mut marker, name);
            marker.look_again();
            let pause = marker.due().expect("a node").duration_since(Instant::now());
            assert!(pause > before / 2 && pause <= LAST_PAUSE, "{pause:?}");
            before = pause;
        }
        assert!(before > FIRST_PAUSE && matches!(marker.labelling(), Labelling::Refused(_)));
        // Another Node does not wait for so long, and when it was changed that is still said of the others.
        marker.look_at(Some("d".to_owned()), &nodes);
        assert!(marker.due().is_some_and(|due| due <= Instant::now() + FIRST_PAUSE));
        marker.refusals.taken();
        assert!(marker.due().is_some_and(|due| due <= Instant::now()));
        assert!(matches!(marker.labelling(), Labelling::Refused(_)));
        assert_eq!(Marker::new(NodeMarks::default()).labelling(), Labelling::Off);
    }

    #[test]
    fn nodes_that_could_not_be_changed_come_after_the_others() {
        let mut marker = Marker::new(NodeMarks { labels: true, taint: None });
        let nodes: Nodes = ["a", "b"].map(|name| (name.to_owned(), Node::default())).into();
        marker.failed.insert("a".to_owned());
        marker.look_at(None, &nodes);
        marker.look_at(Some("a".to_owned()), &nodes);
        assert_eq!(marker.unmarked.iter().collect::<Vec<_>>(), ["b"]);
        marker.look_again();
        marker.look_at(Some("a".to_owned()), &nodes);
        assert_eq!(marker.unmarked.iter().collect::<Vec<_>>(), ["b"]);
        assert_eq!(marker.again.iter().collect::<Vec<_>>(), ["a"]);
        marker.unmarked.clear();
        assert!(marker.due().is_some());
    }
}
