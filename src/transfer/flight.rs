//! Single flight: work under a key runs once, whoever asks, and goes on without those who stop waiting.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// Work that is running, by key. `S` is state that waiters and work share, `T` the outcome.
pub struct Flights<K, S, T> {
    running: Arc<Mutex<HashMap<K, Flight<S, T>>>>,
    /// How long work goes on when nobody waits.
    grace: Duration,
    /// Becomes true when all work is to end.
    stopped: watch::Sender<bool>,
}

struct Flight<S, T> {
    state: Arc<S>,
    waiting: Arc<watch::Sender<usize>>,
    outcome: watch::Receiver<Option<T>>,
}

/// One who waits. Dropped, it no longer counts.
pub struct Waiter<S, T> {
    state: Arc<S>,
    waiting: Arc<watch::Sender<usize>>,
    outcome: watch::Receiver<Option<T>>,
}

impl<K, S, T> Flights<K, S, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    S: Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// No flights yet; work is dropped when nobody has waited for `grace`.
    pub fn new(grace: Duration) -> Self {
        Self { running: Arc::default(), grace, stopped: watch::Sender::new(false) }
    }

    /// Ends all work, also what begins later, without an outcome.
    pub fn stop(&self) {
        self.stopped.send_replace(true);
    }

    /// How many are running.
    pub fn len(&self) -> usize {
        lock(&self.running).len()
    }

    /// Whether none is running.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Joins the flight of `key`; `start` makes its state and its work if there is none.
    pub fn join<F>(&self, key: K, start: impl FnOnce() -> (Arc<S>, F)) -> Waiter<S, T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut running = lock(&self.running);
        if let Some(flight) = running.get(&key) {
            return flight.waiter();
        }
        let (state, work) = start();
        let (sender, outcome) = watch::channel(None);
        let waiting = Arc::new(watch::Sender::new(0));
        let flight = Flight { state, waiting, outcome };
        let waiter = flight.waiter();
        let mut landing = Landing {
            running: Arc::clone(&self.running),
            key: key.clone(),
            waiting: Arc::clone(&flight.waiting),
            landed: false,
        };
        let (mut waiters, grace) = (flight.waiting.subscribe(), self.grace);
        let mut stopped = self.stopped.subscribe();
        running.insert(key, flight);
        drop(running);
        tokio::spawn(async move {
            tokio::pin!(work);
            let outcome = loop {
                tokio::select! {
                    biased;
                    // Without a sender nobody can ask for it any more.
                    Ok(_) = stopped.wait_for(|stopped| *stopped) => break None,
                    outcome = &mut work => break Some(outcome),
                    () = nobody(&mut waiters, grace) => if landing.leave_if_unwanted() { break None },
                }
            };
            drop(landing); // Who comes now starts a new flight.
            if let Some(outcome) = outcome {
                sender.send_replace(Some(outcome));
            }
        });
        waiter
    }
}

impl<S, T> Flight<S, T> {
    fn waiter(&self) -> Waiter<S, T> {
        self.waiting.send_modify(|count| *count += 1);
        Waiter {
            state: Arc::clone(&self.state),
            waiting: Arc::clone(&self.waiting),
            outcome: self.outcome.clone(),
        }
    }
}

impl<S, T: Clone> Waiter<S, T> {
    /// What the waiters and the work share.
    pub fn state(&self) -> &Arc<S> {
        &self.state
    }

    /// The outcome; `None` when the work ended without one (it panicked, or the program ends).
    pub async fn wait(&mut self) -> Option<T> {
        self.outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone())
    }
}

impl<S, T> Drop for Waiter<S, T> {
    fn drop(&mut self) {
        self.waiting.send_modify(|count| *count -= 1);
    }
}

/// Removes the flight when its task ends, however it ends.
struct Landing<K: Eq + Hash, S, T> {
    running: Arc<Mutex<HashMap<K, Flight<S, T>>>>,
    key: K,
    waiting: Arc<watch::Sender<usize>>,
    landed: bool,
}

impl<K: Eq + Hash, S, T> Landing<K, S, T> {
    /// Ends the flight unless somebody joined meanwhile; joining takes the same lock.
    fn leave_if_unwanted(&mut self) -> bool {
        let mut running = lock(&self.running);
        if *self.waiting.borrow() == 0 {
            running.remove(&self.key);
            self.landed = true;
        }
        self.landed
    }
}

impl<K: Eq + Hash, S, T> Drop for Landing<K, S, T> {
    fn drop(&mut self) {
        if !self.landed {
            lock(&self.running).remove(&self.key);
        }
    }
}

/// Ends when nobody has waited for `grace`.
async fn nobody(waiting: &mut watch::Receiver<usize>, grace: Duration) {
    loop {
        if waiting.wait_for(|count| *count == 0).await.is_err() {
            return;
        }
        if tokio::time::timeout(grace, waiting.wait_for(|count| *count > 0)).await.is_err() {
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn many_ask_and_one_works() {
        let flights: Flights<&str, (), usize> = Flights::new(Duration::from_secs(60));
        let (runs, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let join = || {
            let (runs, go) = (Arc::clone(&runs), Arc::clone(&go));
            flights.join("key", || {
                let work = async move {
                    go.notified().await;
                    runs.fetch_add(1, Ordering::SeqCst) + 1
                };
                (Arc::new(()), work)
            })
        };
        let waiters: Vec<_> = (0..50).map(|_| join()).collect();
        assert_eq!(flights.len(), 1);
        go.notify_one();
        for mut waiter in waiters {
            assert_eq!(waiter.wait().await, Some(1));
        }
        assert!(flights.is_empty());
        let mut again = join();
        go.notify_one();
        assert_eq!(again.wait().await, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn work_outlives_those_who_leave_until_the_grace_is_over() {
        let flights: Flights<&str, (), u8> = Flights::new(Duration::from_secs(600));
        let dropped = Arc::new(());
        let start = |held: Arc<()>| {
            let work = async move {
                let _held = held;
                std::future::pending::<u8>().await
            };
            (Arc::new(()), work)
        };
        drop(flights.join("key", || start(Arc::clone(&dropped))));
        tokio::time::sleep(Duration::from_secs(590)).await;
        let back = flights.join("key", || start(Arc::clone(&dropped)));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!((flights.len(), Arc::strong_count(&dropped)), (1, 2));
        drop(back);
        tokio::time::sleep(Duration::from_secs(601)).await;
        assert_eq!((flights.len(), Arc::strong_count(&dropped)), (0, 1));
    }

    #[tokio::test]
    async fn told_to_stop_all_work_is_dropped() {
        let flights: Flights<u8, (), ()> = Flights::new(Duration::from_secs(600));
        let held = Arc::new(());
        let start = || {
            let held = Arc::clone(&held);
            let work = async move {
                let _held = held;
                std::future::pending::<()>().await;
            };
            (Arc::new(()), work)
        };
        let mut before = flights.join(1, start);
        flights.stop();
        assert_eq!(before.wait().await, None);
        assert_eq!(flights.join(2, start).wait().await, None);
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn a_panic_ends_the_flight_without_an_outcome() {
        let flights: Flights<&str, (), u8> = Flights::new(Duration::from_secs(60));
        let mut waiter = flights.join("key", || (Arc::new(()), async { panic!("in the test") }));
        assert_eq!(waiter.wait().await, None);
        assert!(flights.is_empty());
    }
}
