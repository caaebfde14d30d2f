//! The order of operations on one target: one at a time, and unpublish first.
//!
//! An unpublish makes every publish that came before it give up as soon as it waits for anything, then waits for
//! the one that is mounting. After it has answered, no mount can appear at the target but for a newer publish.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedMutexGuard, watch};

/// The operations on all targets.
#[derive(Clone, Default)]
pub(in crate::volume) struct Order {
    targets: Arc<Mutex<HashMap<PathBuf, Operations>>>,
}

/// The operations on one target.
struct Operations {
    lock: Arc<tokio::sync::Mutex<()>>,
    unpublishes: Arc<watch::Sender<u64>>,
    /// How many there are.
    count: usize,
}

/// One operation on a target, from when it came.
pub(in crate::volume) struct Operation {
    order: Order,
    target: PathBuf,
    lock: Arc<tokio::sync::Mutex<()>>,
    unpublishes: Arc<watch::Sender<u64>>,
    /// Unpublishes when it came.
    seen: u64,
}

/// The right to change what is mounted at the target. Not bound to the future that asked for it: blocking work
/// takes it along, and finishes although nobody waits any more.
pub(in crate::volume) struct TargetGuard {
    _guard: OwnedMutexGuard<()>,
    _operation: Arc<Operation>,
}

/// An unpublish came.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::volume) struct Preempted;

impl Order {
    /// Comes to publish at `target`.
    pub fn publish(&self, target: &Path) -> Arc<Operation> {
        self.operation(target, false)
    }

    /// Comes to unpublish at `target`: everybody who came before gives up.
    pub fn unpublish(&self, target: &Path) -> Arc<Operation> {
        self.operation(target, true)
    }

    fn operation(&self, target: &Path, preempts: bool) -> Arc<Operation> {
        let mut targets = self.lock();
        let operations = targets.entry(target.to_owned()).or_insert_with(|| Operations {
            lock: Arc::default(),
            unpublishes: Arc::new(watch::Sender::new(0)),
            count: 0,
        });
        operations.count += 1;
        if preempts {
            operations.unpublishes.send_modify(|count| *count += 1);
        }
        Arc::new(Operation {
            order: self.clone(),
            target: target.to_owned(),
            lock: Arc::clone(&operations.lock),
            seen: *operations.unpublishes.borrow(),
            unpublishes: Arc::clone(&operations.unpublishes),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Operations>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Operation {
    /// Waits for the right to change the target, or for an unpublish that came later.
    pub async fn guard(self: &Arc<Self>) -> Result<TargetGuard, Preempted> {
        tokio::select! {
            biased;
            () = self.preempted() => Err(Preempted),
            guard = Arc::clone(&self.lock).lock_owned() => {
                Ok(TargetGuard { _guard: guard, _operation: Arc::clone(self) })
            }
        }
    }

    /// Waits for the right to change the target, whatever comes later: an unpublish is not done because another wants the same.
    pub async fn turn(self: &Arc<Self>) -> TargetGuard {
        TargetGuard { _guard: Arc::clone(&self.lock).lock_owned().await, _operation: Arc::clone(self) }
    }

    /// The right to change the target, if nobody else has it.
    pub fn try_guard(self: &Arc<Self>) -> Option<TargetGuard> {
        let guard = Arc::clone(&self.lock).try_lock_owned().ok()?;
        Some(TargetGuard { _guard: guard, _operation: Arc::clone(self) })
    }

    /// Ends when an unpublish came after this operation.
    pub async fn preempted(&self) {
        let mut unpublishes = self.unpublishes.subscribe();
        if unpublishes.wait_for(|count| *count > self.seen).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether an unpublish came after this operation.
    pub fn is_preempted(&self) -> bool {
        *self.unpublishes.borrow() > self.seen
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        let mut targets = self.order.lock();
        if let Some(operations) = targets.get_mut(&self.target) {
            operations.count -= 1;
            if operations.count == 0 {
                targets.remove(&self.target);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unpublish_goes_before_those_who_wait() {
        let order = Order::default();
        let target = Path::new("/t");
        let first = order.publish(target);
        let held = first.guard().await.map_err(drop).expect("nobody is there");
        let second = order.publish(target);
        let waiting = tokio::spawn(async move { second.guard().await.err() });
        let unpublish = order.unpublish(target);
        assert_eq!(waiting.await.expect("no panic"), Some(Preempted));
        assert!(first.is_preempted() && !unpublish.is_preempted());
        first.preempted().await;
        let later = order.publish(target);
        drop((held, first));
        let guard = unpublish.turn().await;
        assert!(!later.is_preempted() && later.try_guard().is_none());
        drop((guard, unpublish));
        assert!(later.guard().await.is_ok());
        drop(later);
        assert!(order.lock().is_empty());
    }

    #[tokio::test]
    async fn targets_do_not_wait_for_each_other() {
        let order = Order::default();
        let (one, two) = (order.publish(Path::new("/1")), order.publish(Path::new("/2")));
        let _held = one.guard().await.map_err(drop).expect("free");
        assert!(two.guard().await.is_ok());
        assert_eq!(order.lock().len(), 2);
    }

    #[test]
    fn regression_operations_that_end_at_once_leave_nothing() {
        let order = Order::default();
        for _ in 0..200 {
            let (one, two) = (order.publish(Path::new("/t")), order.publish(Path::new("/t")));
            let other = std::thread::spawn(move || drop(two));
            drop(one);
            other.join().expect("no panic");
            assert!(order.lock().is_empty());
        }
    }
}
