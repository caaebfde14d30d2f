//! How far the artifacts are on this node: what its NodeArtifacts says.

use std::collections::BTreeMap;

use indicatif::BinaryBytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::failure::one_line;

/// How far they are. Clones share it.
#[derive(Debug, Clone)]
pub(in crate::prepull) struct Board(watch::Sender<Entries>);

/// By the names of the CachedArtifacts.
pub(in crate::prepull) type Entries = BTreeMap<String, Entry>;

/// How far an artifact is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::prepull) struct Entry {
    /// The generation of its CachedArtifact.
    pub generation: i64,
    pub state: State,
    /// When its phase changed, in seconds since the epoch.
    pub since: i64,
}

/// What is so of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::prepull) enum State {
    /// Its pull has not begun, for this reason.
    Waiting(&'static str),
    /// So many hundredths are here, in steps of ten.
    Pulling(u8),
    /// It is here.
    Ready(Present),
    /// It could not be brought, for this reason, in words; it is tried again.
    Failed(&'static str, String),
    /// There is no room for it. It is tried again now and then.
    NoSpace(String),
}

/// What is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::prepull) struct Present {
    /// What the reference is.
    pub digest: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether it is kept.
    pub is_pinned: bool,
}

/// Bytes of a message. The definition has as many characters.
const MESSAGE_LIMIT: usize = 256;

impl Default for Board {
    fn default() -> Self {
        Self(watch::Sender::new(Entries::new()))
    }
}

impl Board {
    /// Notes what is so of an artifact.
    pub fn set(&self, name: &str, generation: i64, state: State) {
        self.0.send_if_modified(|entries| {
            let before = entries.get(name);
            if before.is_some_and(|before| before.generation == generation && before.state == state) {
                return false;
            }
            let since = match before {
                Some(before) if before.state.phase() == state.phase() => before.since,
                _ => Timestamp::now().as_second(),
            };
            entries.insert(name.to_owned(), Entry { generation, state, since });
            true
        });
    }

    /// What was noted of an artifact last.
    pub fn get(&self, name: &str) -> Option<Entry> {
        self.0.borrow().get(name).cloned()
    }

    /// Forgets an artifact.
    pub fn remove(&self, name: &str) {
        self.0.send_if_modified(|entries| entries.remove(name).is_some());
    }

    /// Sees every change.
    pub fn subscribe(&self) -> watch::Receiver<Entries> {
        self.0.subscribe()
    }
}

impl State {
    /// The word for it.
    pub fn phase(&self) -> &'static str {
        match self {
            Self::Waiting(_) => "Waiting",
            Self::Pulling(_) => "Pulling",
            Self::Ready(_) => "Ready",
            Self::Failed(..) => "Failed",
            Self::NoSpace(_) => "NoSpace",
        }
    }
}

/// The status of the node's object.
pub(in crate::prepull) fn status(entries: &Entries) -> Value {
    let count =
        |phases: &[&str]| entries.values().filter(|entry| phases.contains(&entry.state.phase())).count();
    let pinned = entries.values().map(|entry| match &entry.state {
        State::Ready(Present { bytes, is_pinned: true, .. }) => *bytes,
        _ => 0,
    });
    json!({
        "ready": count(&["Ready"]),
        "pulling": count(&["Pulling"]),
        "failed": count(&["Failed", "NoSpace"]),
        "pinned": BinaryBytes(pinned.sum()).to_string(),
        "artifacts": entries.iter().map(|(name, entry)| described(name, entry)).collect::<Vec<_>>(),
    })
}

fn described(name: &str, entry: &Entry) -> Value {
    let since = Timestamp::from_second(entry.since).unwrap_or_default().to_string();
    let mut described = json!({
        "name": name, "generation": entry.generation, "phase": entry.state.phase(), "lastTransitionTime": since,
    });
    let message = |text: &str| {
        let mut text = one_line(text);
        text.truncate(text.floor_char_boundary(MESSAGE_LIMIT));
        Value::from(text)
    };
    let more = match &entry.state {
        State::Waiting(reason) => vec![("reason", Value::from(*reason))],
        State::Pulling(percent) => vec![("percent", Value::from(*percent))],
        State::Ready(Present { digest, bytes, .. }) => {
            vec![
                ("digest", Value::from(digest.as_str())),
                ("percent", 100.into()),
                ("bytes", (*bytes).into()),
            ]
        }
        State::Failed(reason, text) => vec![("reason", Value::from(*reason)), ("message", message(text))],
        State::NoSpace(text) => vec![("reason", "NoSpace".into()), ("message", message(text))],
    };
    for (key, value) in more {
        described[key] = value;
    }
    described
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;

    use super::*;

    #[test]
    fn the_status_has_the_fields_of_the_definition() {
        let board = Board::default();
        let digest = format!("sha256:{}", "a".repeat(64));
        let present = |is_pinned| Present { digest: digest.clone(), bytes: 3 << 30, is_pinned };
        for (name, state) in [
            ("a", State::Ready(present(true))),
            ("b", State::Ready(present(false))),
            ("c", State::Pulling(40)),
            ("d", State::Waiting("Spread")),
            ("e", State::Failed("NotFound", format!("gone\n{}", "x".repeat(1000)))),
            ("f", State::NoSpace("full".to_owned())),
        ] {
            board.set(name, 2, state);
        }
        let status = status(&board.subscribe().borrow());
        assert_eq!(
            (&status["ready"], &status["pulling"], &status["failed"]),
            (&2.into(), &1.into(), &2.into())
        );
        assert_eq!(status["pinned"], "3.00 GiB");
        let definition = definition("nodeartifacts.ocivol.dev");
        let properties = &definition["properties"]["status"]["properties"];
        let fields = &properties["artifacts"]["items"]["properties"];
        for key in status.as_object().expect("fields").keys() {
            assert!(properties[key].is_object(), "{key}");
        }
        for artifact in status["artifacts"].as_array().expect("artifacts") {
            for (key, value) in artifact.as_object().expect("fields") {
                let limit = fields[key]["maxLength"].as_u64().unwrap_or(u64::MAX);
                assert!(fields[key].is_object(), "{key}");
                assert!(value.as_str().unwrap_or_default().chars().count() as u64 <= limit, "{key}: {value}");
            }
            assert!(fields["phase"]["enum"].as_array().expect("words").contains(&artifact["phase"]));
        }
        assert_eq!(status["artifacts"][0]["digest"], digest);
    }

    /// The schema of the objects of a definition of the chart.
    fn definition(name: &str) -> Value {
        let rendered = include_str!("../../tests/packaging/rendered/prepull.yaml");
        let documents = serde_yaml_ng::Deserializer::from_str(rendered);
        let objects = documents.map(|document| Value::deserialize(document).expect("YAML"));
        let mut found = objects.filter(|object| object["metadata"]["name"] == name);
        found.next().expect("a definition")["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
    }

    #[test]
    fn a_phase_keeps_its_time_and_what_is_the_same_is_no_change() {
        let board = Board::default();
        let mut seen = board.subscribe();
        board.set("a", 1, State::Pulling(10));
        assert!(seen.has_changed().expect("open"));
        let before = seen.borrow_and_update()["a"].clone();
        board.set("a", 1, State::Pulling(10));
        assert!(!seen.has_changed().expect("open"));
        board.set("a", 1, State::Pulling(20));
        assert_eq!(seen.borrow_and_update()["a"].since, before.since);
        board.remove("a");
        board.remove("a");
        assert!(seen.borrow_and_update().is_empty() && board.get("a").is_none());
    }
}
