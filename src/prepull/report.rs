//! Writes how far this node is into its NodeArtifacts: what changes of a phase soon, how far a pull is now and then, and never more often
//! than a budget allows. What waits for its turn is written as it is then.

use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::kube::cluster::Cluster;
use crate::kube::error::Error;
use crate::kube::object::{Change, Object, Resource};
use crate::prepull::board::{Entries, status};

/// What is known of the own node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::prepull) struct NodeIdentity {
    pub name: String,
    pub uid: String,
}

/// Writes for what only says how far a pull is are so far apart.
const PROGRESS: Duration = Duration::from_secs(10);
/// Writes that are made at once when nothing was written for long.
const BURST: u32 = 10;
/// One more may be made after this time.
const EVERY: Duration = Duration::from_secs(10);
/// After a write that failed; twice as long each time.
const FIRST_RETRY: Duration = Duration::from_secs(10);
const LAST_RETRY: Duration = Duration::from_secs(300);
/// When what was written is written again: some time after it was written for a Node for the first time, and then now and then. The API
/// server keeps and tells nothing of what is the same.
const SOON: Duration = Duration::from_secs(120);
const AGAIN: Duration = Duration::from_secs(1800);

/// Writes whatever `board` shows, until nobody shows anything more. Waits for `node` to be known first.
pub(in crate::prepull) async fn run(
    cluster: Cluster,
    mut board: watch::Receiver<Entries>,
    mut node: watch::Receiver<Option<NodeIdentity>>,
) {
    let mut turns = Turns::new(Instant::now());
    // At the start also that there is nothing: what a process before wrote is no longer so.
    let mut written: Option<Entries> = None;
    let (mut retry, mut is_told) = (FIRST_RETRY, false);
    let mut again = Instant::now() + SOON;
    loop {
        let current = board.borrow_and_update().clone();
        let due = turns.due(written.as_ref(), &current, Instant::now());
        let Some(due) = due else {
            tokio::select! {
                changed = board.changed() => if changed.is_err() { return },
                // Another Node of the same name.
                changed = node.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    (written, again) = (None, Instant::now() + SOON);
                }
                // The object may have gone: with a Node that had the name before, or because somebody deleted it.
                () = sleep_until(again) => {
                    (written, again) = (None, Instant::now() + AGAIN.mul_f64(rand::random_range(0.75..1.25)));
                }
            }
            continue;
        };
        if due > Instant::now() {
            tokio::select! {
                () = sleep_until(due) => {}
                // It may have become urgent.
                changed = board.changed() => if changed.is_err() { return },
            }
            continue;
        }
        let Ok(identity) = node.wait_for(Option::is_some).await.map(|node| node.clone()) else { return };
        let Some(identity) = identity else { continue };
        // It may have changed while the node was waited for.
        let current = board.borrow_and_update().clone();
        turns.take(Instant::now());
        match write(&cluster, &identity, &current).await {
            Ok(()) => {
                written = Some(current);
                (retry, is_told) = (FIRST_RETRY, false);
            }
            Err(error) => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(%error, "cannot write how far this node is; it is tried again and again");
                }
                tracing::debug!(%error, ?retry, "cannot write how far this node is");
                // Nobody but this node writes it, so after a part of the time is as good as after all of it.
                tokio::time::sleep(retry.mul_f64(rand::random_range(0.5..1.0))).await;
                retry = (2 * retry).min(LAST_RETRY);
            }
        }
    }
}

/// Writes the status of the node's object, which is made where it is not there.
async fn write(cluster: &Cluster, node: &NodeIdentity, entries: &Entries) -> Result<(), Error> {
    let object = Object::of_cluster(Resource::NodeArtifacts, &node.name)?;
    let changed = json!({"status": status(entries)});
    match cluster.change(&object, Change::MergeStatus, &changed).await {
        Err(Error::NotFound { .. }) => {}
        written => return written,
    }
    let made = json!({
        "apiVersion": "ocivol.dev/v1alpha1",
        "kind": "NodeArtifacts",
        "metadata": {
            "name": node.name,
            // It goes with its node.
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}],
        },
    });
    match cluster.change(&object, Change::Create, &made).await {
        // Its answer came too late the last time.
        Ok(()) | Err(Error::Conflict { .. }) => {}
        error => return error,
    }
    cluster.change(&object, Change::MergeStatus, &changed).await
}

/// When something may be written.
struct Turns {
    left: u32,
    filled: Instant,
    last: Option<Instant>,
}

impl Turns {
    fn new(now: Instant) -> Self {
        Self { left: BURST, filled: now, last: None }
    }

    /// When `current` is to be written, if it is not what was `written`.
    fn due(&mut self, written: Option<&Entries>, current: &Entries, now: Instant) -> Option<Instant> {
        let next = match written {
            Some(written) if written == current => return None,
            Some(written) if phases(written) == phases(current) => {
                self.last.map_or(now, |last| last + PROGRESS)
            }
            _ => now,
        };
        self.fill(now);
        let turn = if self.left > 0 { now } else { self.filled + EVERY };
        Some(next.max(turn))
    }

    /// *Caller:* something is due.
    fn take(&mut self, now: Instant) {
        self.fill(now);
        self.left = self.left.saturating_sub(1);
        self.last = Some(now);
    }

    fn fill(&mut self, now: Instant) {
        while self.left < BURST && now.saturating_duration_since(self.filled) >= EVERY {
            self.filled += EVERY;
            self.left += 1;
        }
        if self.left == BURST {
            self.filled = now;
        }
    }
}

/// What is written at once when it changes.
fn phases(entries: &Entries) -> Vec<(&str, i64, &str)> {
    entries.iter().map(|(name, entry)| (name.as_str(), entry.generation, entry.state.phase())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::connection::tests::{Fake, Reply};
    use crate::prepull::board::{Board, State};

    #[test]
    fn phases_are_written_at_once_and_progress_now_and_then_and_both_within_the_budget() {
        let now = Instant::now();
        let board = Board::default();
        let shown = |state| {
            board.set("a", 1, state);
            board.subscribe().borrow().clone()
        };
        let mut turns = Turns::new(now);
        assert_eq!(turns.due(None, &Entries::new(), now), Some(now), "at the start");
        let waiting = shown(State::Waiting("Queued"));
        assert_eq!(turns.due(Some(&Entries::new()), &waiting, now), Some(now));
        assert_eq!(turns.due(Some(&waiting), &waiting, now), None);
        let pulling = shown(State::Pulling(10));
        assert_eq!(turns.due(Some(&waiting), &pulling, now), Some(now));
        turns.take(now);
        let further = shown(State::Pulling(20));
        assert_eq!(turns.due(Some(&pulling), &further, now), Some(now + PROGRESS));
        // Phases that change again and again.
        for _ in 1..BURST {
            assert_eq!(turns.due(Some(&waiting), &further, now), Some(now));
            turns.take(now);
        }
        assert_eq!(turns.due(Some(&waiting), &further, now), Some(now + EVERY));
        let later = now + EVERY;
        assert_eq!(turns.due(Some(&waiting), &further, later), Some(later));
        turns.take(later);
        assert_eq!(turns.due(Some(&waiting), &further, later), Some(later + EVERY));
        let much_later = now + 100 * EVERY;
        for _ in 0..BURST {
            assert_eq!(turns.due(Some(&waiting), &further, much_later), Some(much_later));
            turns.take(much_later);
        }
        assert!(turns.due(Some(&waiting), &further, much_later) > Some(much_later));
    }

    #[tokio::test]
    async fn the_object_is_made_where_it_is_not_there_and_belongs_to_its_node() {
        let fake = Fake::start(|_, before| match before {
            0 => Reply::Status(404),
            _ => Reply::Object(json!({})),
        })
        .await;
        let board = Board::default();
        board.set("llama", 4, State::Pulling(30));
        let identity = NodeIdentity { name: "node-a".into(), uid: "node-uid".into() };
        let (_known, node) = watch::channel(Some(identity));
        let task = tokio::spawn(run(fake.cluster(), board.subscribe(), node));
        let base = "/apis/ocivol.dev/v1alpha1/nodeartifacts";
        let patch = format!("PATCH {base}/node-a/status");
        fake.until(&[&patch, &format!("POST {base}"), &patch]).await;
        let sent = fake.sent();
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "node-uid"}]);
        assert_eq!(sent[1].1["metadata"]["ownerReferences"], owner);
        let artifact = &sent[2].1["status"]["artifacts"][0];
        assert_eq!((&artifact["name"], &artifact["phase"]), (&json!("llama"), &json!("Pulling")));
        assert_eq!((&artifact["percent"], &artifact["generation"]), (&json!(30), &json!(4)));
        // What is gone is no longer said.
        board.remove("llama");
        fake.until(&[&patch, &format!("POST {base}"), &patch, &patch]).await;
        assert_eq!(fake.sent()[3].1["status"]["artifacts"], json!([]));
        drop(board);
        task.await.expect("it ends");
    }
}
