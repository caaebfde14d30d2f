//! The order of operations on one target: one at a time, and unpublish first.
//!
//! An unpublish makes every publish that came before it give up as soon as it waits for anything, then waits for
//! the one that is mounting. After it has answered, no mount can appear at the target but for a newer publish.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedMutexGuard, watch};

/// The lanes of all targets that somebody is at.
#[derive(Default)]
pub(super) struct Turns {
    lanes: Arc<Mutex<HashMap<PathBuf, Arc<Lane>>>>,
}

struct Lane {
    turn: Arc<tokio::sync::Mutex<()>>,
    unpublishes: watch::Sender<u64>,
}

/// A place in a target's lane. The lane goes when its last place does.
pub(super) struct Place {
    lanes: Arc<Mutex<HashMap<PathBuf, Arc<Lane>>>>,
    target: PathBuf,
    lane: Arc<Lane>,
    /// Unpublishes when this operation came.
    seen: u64,
}

/// The right to change what is mounted at the target. Not bound to the future that asked for it: blocking work
/// takes it along, and finishes although nobody waits any more.
pub(super) struct Turn {
    _guard: OwnedMutexGuard<()>,
    _place: Arc<Place>,
}

/// An unpublish came.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Preempted;

impl Turns {
    /// Comes to publish at `target`.
    pub fn publish(&self, target: &Path) -> Arc<Place> {
        self.place(target, false)
    }

    /// Comes to unpublish at `target`: everybody who came before gives up.
    pub fn unpublish(&self, target: &Path) -> Arc<Place> {
        self.place(target, true)
    }

    fn place(&self, target: &Path, preempt: bool) -> Arc<Place> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = lanes
            .entry(target.to_owned())
            .or_insert_with(|| Arc::new(Lane { turn: Arc::default(), unpublishes: watch::Sender::new(0) }));
        if preempt {
            lane.unpublishes.send_modify(|count| *count += 1);
        }
        let seen = *lane.unpublishes.borrow();
        Arc::new(Place {
            lanes: Arc::clone(&self.lanes),
            target: target.to_owned(),
            lane: Arc::clone(lane),
            seen,
        })
    }
}

impl Place {
    /// Waits for the turn, or for an unpublish that came later.
    pub async fn turn(self: &Arc<Self>) -> Result<Turn, Preempted> {
        tokio::select! {
            biased;
            () = self.preempted() => Err(Preempted),
            guard = Arc::clone(&self.lane.turn).lock_owned() => {
                Ok(Turn { _guard: guard, _place: Arc::clone(self) })
            }
        }
    }

    /// Ends when an unpublish came after this operation.
    pub async fn preempted(&self) {
        let mut unpublishes = self.lane.unpublishes.subscribe();
        if unpublishes.wait_for(|count| *count > self.seen).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether an unpublish came after this operation.
    pub fn is_preempted(&self) -> bool {
        *self.lane.unpublishes.borrow() > self.seen
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        // This place and the map hold the lane; new places are only made under this lock.
        if Arc::strong_count(&self.lane) == 2 {
            lanes.remove(&self.target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unpublish_goes_before_those_who_wait() {
        let turns = Turns::default();
        let target = Path::new("/t");
        let first = turns.publish(target);
        let held = first.turn().await.map_err(drop).expect("nobody is there");
        let second = turns.publish(target);
        let waiting = tokio::spawn(async move { second.turn().await.err() });
        let unpublish = turns.unpublish(target);
        assert_eq!(waiting.await.expect("no panic"), Some(Preempted));
        assert!(first.is_preempted() && !unpublish.is_preempted());
        first.preempted().await;
        let later = turns.publish(target);
        drop((held, first));
        let turn = unpublish.turn().await.map_err(drop).expect("its turn");
        assert!(!later.is_preempted());
        drop((turn, unpublish));
        assert!(later.turn().await.is_ok());
        drop(later);
        assert!(turns.lanes.lock().expect("no panic").is_empty());
    }

    #[tokio::test]
    async fn targets_do_not_wait_for_each_other() {
        let turns = Turns::default();
        let (one, two) = (turns.publish(Path::new("/1")), turns.publish(Path::new("/2")));
        let _held = one.turn().await.map_err(drop).expect("free");
        assert!(two.turn().await.is_ok());
    }
}
