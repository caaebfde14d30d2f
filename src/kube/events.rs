//! Events of pods and of the node: what a person sees of volumes with `kubectl describe pod`, and an operator with `kubectl describe node`.
//!
//! They are written by the way: nobody waits for them, a node writes few, and one that cannot be written is counted and forgotten. They are
//! core/v1, and not events.k8s.io/v1: there an event's text cannot be changed, and the progress of a pull is one event whose text changes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use crate::failure::one_line;
use crate::host::metric::{Counts, Labels, Pairs};
use crate::kube::budget::Budget;
use crate::kube::cluster::Cluster;
use crate::kube::error::Error;
use crate::kube::object::{Change, InvalidName, Object, Resource};
use crate::kube::pull_secrets::Pod;

/// What is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Of whom.
    pub about: About,
    /// What it is about: of two with the same object, subject and reason the later one takes the place of the earlier.
    pub subject: String,
    /// Why it is told.
    pub reason: Reason,
    /// In words, without secrets.
    pub message: String,
}

/// Of whom something is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// A pod.
    Pod(Pod),
    /// The plugin's own node.
    Node,
}

/// Why something is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A pull takes long; the text is how far it is.
    Pulling,
    /// A pull that took long has ended well.
    Pulled,
    /// The registry wants something to be known.
    RegistryWarning,
    /// What the pod has mounted was found damaged on the disk.
    ContentDamaged,
    /// The store gets full with what is in use.
    StoreNearlyFull,
    /// Nothing more fits into the store.
    StoreFull,
}

/// Takes events and writes them by the way. Clones share it.
#[derive(Debug, Clone)]
pub struct Events {
    sender: mpsc::Sender<Event>,
    budget: Arc<Mutex<Budget>>,
    metrics: EventMetrics,
}

/// Who writes events, as people see it.
#[derive(Debug, Clone)]
pub struct Author {
    /// The driver's name.
    pub driver: String,
    /// The node's name.
    pub node: String,
}

/// Counters of this process. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct EventMetrics(Counts<Ending>);

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Sent,
    Dropped,
    Failed,
}

impl Labels for Ending {
    const ALL: &'static [(Self, Pairs)] = &[
        (Self::Sent, &[("result", "sent")]),
        (Self::Dropped, &[("result", "dropped")]),
        (Self::Failed, &[("result", "failed")]),
    ];
}

/// Events that wait to be written.
const WAITING: usize = 64;
/// Events that are remembered, so that the next one of the kind takes their place.
const REMEMBERED: usize = 256;
/// Characters of a message.
const MESSAGE_LIMIT: usize = 1000;
/// Bytes of a pod's name in the name of an event, which has at most 253.
const NAME_LIMIT: usize = 220;

impl Reason {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Pulling => ("Normal", "Pulling"),
            Self::Pulled => ("Normal", "Pulled"),
            Self::RegistryWarning => ("Warning", "RegistryWarning"),
            Self::ContentDamaged => ("Warning", "ContentDamaged"),
            Self::StoreNearlyFull => ("Warning", "StoreNearlyFull"),
            Self::StoreFull => ("Warning", "StoreFull"),
        }
    }
}

impl EventMetrics {
    fn count(&self, result: Ending) {
        self.0.inc(result);
    }

    /// Makes them part of what is served.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "ocivol_events",
            "Events of pods and the node, by what became of them",
            self.0.clone(),
        );
    }
}

impl Events {
    /// Starts to write events to `cluster`, until all clones of this are gone.
    pub fn start(cluster: Cluster, author: Author) -> Self {
        Self::counted(cluster, author, EventMetrics::default())
    }

    fn counted(cluster: Cluster, author: Author, metrics: EventMetrics) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        let writer = Writer {
            cluster,
            author,
            metrics: metrics.clone(),
            began: Timestamp::now().as_nanosecond(),
            written: VecDeque::new(),
            is_warned: false,
        };
        tokio::spawn(writer.run(receiver));
        Self { sender, budget: Arc::new(Mutex::new(Budget::new(Instant::now()))), metrics }
    }

    /// What became of events.
    pub fn metrics(&self) -> &EventMetrics {
        &self.metrics
    }

    /// Has `event` written, unless too many are. Whether it is.
    pub fn tell(&self, event: Event) -> bool {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let is_told =
            budget.take(event.about.namespace(), Instant::now()) && self.sender.try_send(event).is_ok();
        drop(budget);
        if !is_told {
            self.metrics.count(Ending::Dropped);
        }
        is_told
    }
}

impl About {
    /// Whose budget an event takes from; the node's own is nobody's.
    fn namespace(&self) -> &str {
        match self {
            Self::Pod(pod) => &pod.namespace,
            Self::Node => "",
        }
    }

    /// What the API has of it: the namespace in which its events are, its name and UID, and its reference.
    fn object(&self, node: &str) -> (String, String, String, Value) {
        match self {
            Self::Pod(Pod { namespace, name, uid }) => {
                let pod = json!({"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid});
                (namespace.clone(), name.clone(), uid.clone(), pod)
            }
            // As kubelet's: in the namespace of what has none, and with its name as its UID.
            Self::Node => {
                let own = json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": node});
                ("default".to_owned(), node.to_owned(), node.to_owned(), own)
            }
        }
    }
}

/// Writes events, one after the other.
struct Writer {
    cluster: Cluster,
    author: Author,
    metrics: EventMetrics,
    /// When, so that no other process gives an event the same name.
    began: i128,
    written: VecDeque<Written>,
    is_warned: bool,
}

/// An event that was written.
#[derive(Default)]
struct Written {
    name: String,
    count: u32,
}

impl Writer {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            match self.write(&event).await {
                Ok(()) => self.metrics.count(Ending::Sent),
                Err(error) => {
                    self.metrics.count(Ending::Failed);
                    // What an operator has to do is said once.
                    if matches!(error, Error::Forbidden { .. })
                        && !std::mem::replace(&mut self.is_warned, true)
                    {
                        tracing::warn!(%error, "events are not written");
                    }
                    tracing::debug!(%error, "an event is not written");
                }
            }
        }
    }

    /// Changes the event of this kind that there is, or makes one.
    async fn write(&mut self, event: &Event) -> Result<(), Error> {
        let object = self.object(event)?;
        let now = now();
        let message: String = one_line(&event.message).chars().take(MESSAGE_LIMIT).collect();
        if let Some(known) = self.written.iter().position(|written| written.name == object.name) {
            // What was written last is forgotten last.
            let known = self.written.remove(known).unwrap_or_default();
            match self.patch(&object, known.count, &message).await {
                // They are kept for an hour.
                Err(Error::NotFound { .. }) => {}
                patched => {
                    let count = known.count + u32::from(patched.is_ok());
                    self.remember(Written { name: object.name, count });
                    return patched;
                }
            }
        }
        let (kind, reason) = event.reason.words();
        let Author { driver, node } = &self.author;
        let (namespace, _, _, about) = event.about.object(node);
        let made = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": namespace, "name": object.name},
            "involvedObject": about,
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": driver, "host": node},
            "reportingComponent": driver,
            "reportingInstance": node,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        let made = match self.cluster.change(&object, Change::Create, &made).await {
            // It was made, but its answer came too late, or it was forgotten here.
            Err(Error::Conflict { .. }) => self.patch(&object, 1, &message).await,
            made => made,
        };
        if made.is_ok() {
            self.remember(Written { name: object.name, count: 1 });
        }
        made
    }

    /// Changes the text of the event that was written `count` times.
    async fn patch(&self, object: &Object, count: u32, message: &str) -> Result<(), Error> {
        let patch = json!({"count": count.saturating_add(1), "lastTimestamp": now(), "message": message});
        self.cluster.change(object, Change::Merge, &patch).await
    }

    fn remember(&mut self, written: Written) {
        self.written.truncate(REMEMBERED - 1);
        self.written.push_front(written);
    }

    /// The event's own name: that of the pod or the node, and what tells one from others of it.
    fn object(&self, event: &Event) -> Result<Object, InvalidName> {
        let (namespace, name, uid, _) = event.about.object(&self.author.node);
        let (_, reason) = event.reason.words();
        let what = format!("{} {uid} {reason} {}", self.began, event.subject);
        let begin = name.get(..NAME_LIMIT).unwrap_or(&name).trim_end_matches(['-', '.']);
        Object::new(Resource::Event, &namespace, &format!("{begin}.{:016x}", xxh3_64(what.as_bytes())))
    }
}

/// As `metav1.Time` is written: RFC 3339, in whole seconds.
fn now() -> String {
    let seconds = Timestamp::now().as_second();
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kube::connection::tests::{Fake, Reply, SHORT};

    fn event(reason: Reason, message: &str) -> Event {
        let pod = Pod { namespace: "shop".into(), name: "web-0".into(), uid: "pod-uid".into() };
        Event { about: About::Pod(pod), subject: "volume".into(), reason, message: message.into() }
    }

    async fn started(fake: &Fake) -> (Events, EventMetrics) {
        let metrics = EventMetrics::default();
        let author = Author { driver: "csi.ocivol.dev".into(), node: "node-a".into() };
        let cluster = Cluster::for_tests(fake.config(), SHORT);
        (Events::counted(cluster, author, metrics.clone()), metrics)
    }

    async fn until(metrics: &EventMetrics, sent: u64, failed: u64) {
        let count = |result| metrics.0.get(result);
        let all = async {
            while (count(Ending::Sent), count(Ending::Failed)) != (sent, failed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("they are written");
    }

    #[tokio::test]
    async fn the_progress_of_a_pull_is_one_event_whose_text_changes() {
        let fake = Fake::start(|_, _| Reply::Object(json!({}))).await;
        let (events, metrics) = started(&fake).await;
        events.tell(event(Reason::Pulling, "1 of 3"));
        events.tell(event(Reason::Pulling, "2 of 3\nlines"));
        events.tell(event(Reason::Pulled, "all"));
        until(&metrics, 3, 0).await;
        let sent: Vec<(String, Value)> = fake.sent();
        let (methods, bodies): (Vec<String>, Vec<Value>) = sent.into_iter().unzip();
        let path = "/api/v1/namespaces/shop/events";
        let name = bodies[0]["metadata"]["name"].as_str().expect("a name").to_owned();
        assert_eq!(methods, [format!("POST {path}"), format!("PATCH {path}/{name}"), format!("POST {path}")]);
        assert!(name.starts_with("web-0."), "{name}");
        assert_eq!(bodies[0]["involvedObject"]["uid"], "pod-uid");
        assert_eq!(bodies[0]["source"], json!({"component": "csi.ocivol.dev", "host": "node-a"}));
        assert_eq!(
            (bodies[0]["type"].as_str(), bodies[0]["reason"].as_str()),
            (Some("Normal"), Some("Pulling"))
        );
        assert_eq!(bodies[1]["count"], 2);
        assert_eq!(bodies[1]["message"], "2 of 3\\nlines");
        assert_eq!(bodies[2]["reason"], "Pulled");
        // As the API server's types read it.
        let read: k8s_openapi::api::core::v1::Event =
            serde_json::from_value(bodies[0].clone()).expect("an event");
        assert!(read.first_timestamp.is_some() && read.count == Some(1));
    }

    #[tokio::test]
    async fn what_is_told_of_the_node_is_where_kubelets_own_events_are() {
        let fake = Fake::start(|_, _| Reply::Object(json!({}))).await;
        let (events, metrics) = started(&fake).await;
        let about = About::Node;
        events.tell(Event {
            about,
            subject: "store".into(),
            reason: Reason::StoreFull,
            message: "full".into(),
        });
        until(&metrics, 1, 0).await;
        let (method, body) = fake.sent().remove(0);
        assert_eq!(method, "POST /api/v1/namespaces/default/events");
        let node = json!({"apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "node-a"});
        assert_eq!((&body["involvedObject"], &body["type"]), (&node, &json!("Warning")));
    }

    #[tokio::test]
    async fn an_event_that_is_gone_is_made_again_and_one_that_is_refused_is_forgotten() {
        let fake = Fake::start(|path, before| match (path.ends_with("/events"), before) {
            (false, 1) => Reply::Status(404),
            (false, _) => Reply::Status(403),
            _ => Reply::Object(json!({})),
        });
        let fake = fake.await;
        let (events, metrics) = started(&fake).await;
        for text in ["one", "two", "three"] {
            events.tell(event(Reason::Pulling, text));
        }
        until(&metrics, 2, 1).await;
        let methods: Vec<String> = fake
            .sent()
            .into_iter()
            .map(|(method, _)| method.split(' ').next().expect("a method").to_owned())
            .collect();
        assert_eq!(methods, ["POST", "PATCH", "POST", "PATCH"]);
    }

    #[tokio::test]
    async fn a_namespace_that_tells_much_is_cut_and_an_api_that_does_not_answer_holds_nobody_up() {
        let fake = Fake::start(|_, _| Reply::Silence).await;
        let (events, metrics) = started(&fake).await;
        for number in 0..100 {
            events.tell(event(Reason::RegistryWarning, &number.to_string()));
        }
        assert_eq!(metrics.0.get(Ending::Dropped), 87);
        // Each is given up, and then the next one is written.
        until(&metrics, 0, 13).await;
    }

    #[tokio::test]
    async fn regression_an_event_that_was_made_although_nobody_heard_of_it_is_changed() {
        let fake = Fake::start(|path, before| match (path.ends_with("/events"), before) {
            (true, 0) => Reply::Silence,
            (true, _) => Reply::Status(409),
            (false, _) => Reply::Object(json!({})),
        });
        let fake = fake.await;
        let (events, metrics) = started(&fake).await;
        for text in ["one", "two", "three"] {
            events.tell(event(Reason::Pulling, text));
        }
        until(&metrics, 2, 1).await;
        let (methods, bodies): (Vec<String>, Vec<Value>) = fake.sent().into_iter().unzip();
        let verbs: Vec<_> = methods.iter().filter_map(|method| method.split(' ').next()).collect();
        assert_eq!(verbs, ["POST", "POST", "PATCH", "PATCH"]);
        assert_eq!(
            (bodies[2]["message"].as_str(), bodies[3]["message"].as_str()),
            (Some("two"), Some("three"))
        );
    }
}
