//! Single flight: work under a key runs once, whoever asks, and goes on for a while without those who stop waiting, unless the last
//! of them says that nobody wants it any more.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::host::interleaving::{Mutex, lock, moment, spawn, within};

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
    wanted: Arc<watch::Sender<Wanted>>,
    outcome: watch::Receiver<Option<T>>,
}

/// Who wants a flight.
#[derive(Debug, Default)]
struct Wanted {
    /// How many wait.
    waiting: usize,
    /// How many do not wait and are going to come back.
    coming_back: usize,
    /// The last of them has said that it will not.
    given_up: bool,
}

/// One who waits. Dropped, it no longer counts.
pub struct Waiter<S, T> {
    state: Arc<S>,
    wanted: Arc<watch::Sender<Wanted>>,
    outcome: watch::Receiver<Option<T>>,
}

/// One who no longer waits and may come back. Dropped, it may as well not.
#[derive(Debug)]
pub struct Interest {
    wanted: Arc<watch::Sender<Wanted>>,
    gives_up: bool,
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
        let wanted = Arc::new(watch::Sender::new(Wanted::default()));
        let flight = Flight { state, wanted, outcome };
        let waiter = flight.waiter();
        let mut landing = Landing {
            running: Arc::clone(&self.running),
            key: key.clone(),
            wanted: Arc::clone(&flight.wanted),
            landed: false,
        };
        let (mut wanted, grace) = (flight.wanted.subscribe(), self.grace);
        let mut stopped = self.stopped.subscribe();
        running.insert(key, flight);
        drop(running);
        spawn(async move {
            tokio::pin!(work);
            let outcome = loop {
                tokio::select! {
                    biased;
                    // Without a sender nobody can ask for it any more.
                    Ok(_) = stopped.wait_for(|stopped| *stopped) => break None,
                    outcome = &mut work => break Some(outcome),
                    left = nobody(&mut wanted, grace) => if landing.leave_if_unwanted(left) { break None },
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
        change(&self.wanted, |wanted| {
            wanted.waiting += 1;
            wanted.given_up = false;
        });
        Waiter {
            state: Arc::clone(&self.state),
            wanted: Arc::clone(&self.wanted),
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

impl<S, T> Waiter<S, T> {
    /// Stops waiting, and is going to come back.
    pub fn leave(self) -> Interest {
        change(&self.wanted, |wanted| wanted.coming_back += 1);
        Interest { wanted: Arc::clone(&self.wanted), gives_up: false }
    }
}

impl<S, T> Drop for Waiter<S, T> {
    fn drop(&mut self) {
        change(&self.wanted, |wanted| wanted.waiting -= 1);
    }
}

impl Interest {
    /// Does not come back. If nobody else waits or is going to, the work ends at once.
    pub fn give_up(mut self) {
        self.gives_up = true;
    }

    /// Whether the work has ended.
    pub fn is_over(&self) -> bool {
        self.wanted.receiver_count() == 0
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let gives_up = self.gives_up;
        // At once: of two who give up, one is the last.
        change(&self.wanted, |wanted| {
            wanted.coming_back -= 1;
            wanted.given_up |= gives_up && wanted.waiting == 0 && wanted.coming_back == 0;
        });
    }
}

/// Removes the flight when its task ends, however it ends.
struct Landing<K: Eq + Hash, S, T> {
    running: Arc<Mutex<HashMap<K, Flight<S, T>>>>,
    key: K,
    wanted: Arc<watch::Sender<Wanted>>,
    landed: bool,
}

impl<K: Eq + Hash, S, T> Landing<K, S, T> {
    /// Ends the flight unless somebody joined meanwhile; joining takes the same lock.
    fn leave_if_unwanted(&mut self, left: Left) -> bool {
        let mut running = lock(&self.running);
        let is_unwanted = {
            let wanted = self.wanted.borrow();
            // Somebody may have joined, and gone to come back.
            wanted.waiting == 0 && (wanted.given_up || left == Left::ForLong)
        };
        if is_unwanted {
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

/// Why nobody waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// The last has said that nobody will come back.
    ForGood,
    /// Nobody has come for long.
    ForLong,
}

/// Ends when nobody has waited for `grace`, or nobody wants it any more.
async fn nobody(wanted: &mut watch::Receiver<Wanted>, grace: Duration) -> Left {
    loop {
        if wanted.wait_for(|wanted| wanted.waiting == 0).await.is_err() {
            return Left::ForGood;
        }
        let changed = wanted.wait_for(|wanted| wanted.waiting > 0 || wanted.given_up);
        match within(grace, changed).await {
            Some(Ok(wanted)) if wanted.waiting > 0 => {}
            Some(_) => return Left::ForGood,
            None => return Left::ForLong,
        }
    }
}

/// Changes who wants it, at once.
fn change(wanted: &watch::Sender<Wanted>, how: impl FnOnce(&mut Wanted)) {
    moment();
    wanted.send_modify(how);
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

    #[tokio::test(start_paused = true)]
    async fn work_that_nobody_will_come_back_for_ends_at_once() {
        let flights: Flights<u8, (), ()> = Flights::new(Duration::from_secs(600));
        let join = || flights.join(1, || (Arc::new(()), std::future::pending::<()>()));
        let (one, two) = (join(), join());
        one.leave().give_up();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(flights.len(), 1, "another waits");
        let (two, three) = (two.leave(), join().leave());
        three.give_up();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!((flights.len(), two.is_over()), (1, false), "another will come back");
        two.give_up();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(flights.len(), 0);
        // Who comes back in time starts it anew, or finds it going on.
        let back = join();
        let interest = join().leave();
        interest.give_up();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(flights.len(), 1);
        drop(back);
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

#[cfg(all(test, feature = "interleavings"))]
mod interleavings {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use shuttle::future::block_on;
    use shuttle::thread;

    use super::*;

    type Numbers = Flights<u8, (), usize>;

    /// Work that notes when it begins and when it is dropped.
    struct Work {
        begun: AtomicUsize,
        running: AtomicUsize,
        dropped: shuttle::sync::Mutex<shuttle::sync::mpsc::Sender<()>>,
    }

    struct Running(Arc<Work>);

    impl Drop for Running {
        fn drop(&mut self) {
            self.0.running.fetch_sub(1, Ordering::SeqCst);
            let _ = lock(&self.0.dropped).send(());
        }
    }

    impl Work {
        fn new() -> (Arc<Self>, shuttle::sync::mpsc::Receiver<()>) {
            let (sender, receiver) = shuttle::sync::mpsc::channel();
            let (begun, running) = (AtomicUsize::new(0), AtomicUsize::new(0));
            (Arc::new(Self { begun, running, dropped: shuttle::sync::Mutex::new(sender) }), receiver)
        }

        fn begin(self: &Arc<Self>) -> (usize, Running) {
            self.running.fetch_add(1, Ordering::SeqCst);
            (self.begun.fetch_add(1, Ordering::SeqCst) + 1, Running(Arc::clone(self)))
        }
    }

    /// Work that is `alone` must not find the same work running.
    fn work_of_several_steps(
        work: &Arc<Work>,
        alone: bool,
    ) -> (Arc<()>, impl Future<Output = usize> + use<>) {
        let work = Arc::clone(work);
        let steps = async move {
            let (number, _running) = work.begin();
            for _ in 0..3 {
                assert!(!alone || work.running.load(Ordering::SeqCst) == 1, "it runs twice at a time");
                shuttle::future::yield_now().await;
            }
            number
        };
        (Arc::default(), steps)
    }

    fn work_without_end(work: &Arc<Work>) -> (Arc<()>, impl Future<Output = usize> + use<>) {
        let running = work.begin();
        let endless = async move {
            let _running = running;
            std::future::pending().await
        };
        (Arc::default(), endless)
    }

    /// Three join at any time, and one goes away at once.
    fn three_join(grace: Duration) {
        let flights = Arc::new(Numbers::new(grace));
        let alone = grace == Duration::MAX;
        let (work, _dropped) = Work::new();
        let waiting = (0..3).map(|number| {
            let (flights, work) = (Arc::clone(&flights), Arc::clone(&work));
            thread::spawn(move || {
                let mut waiter = flights.join(1, || work_of_several_steps(&work, alone));
                if number > 0 {
                    assert!(block_on(waiter.wait()).is_some());
                }
            })
        });
        for thread in waiting.collect::<Vec<_>>() {
            thread.join().expect("no panic");
        }
    }

    fn one_works_for_all() {
        three_join(Duration::MAX);
    }

    /// The time that work goes on without anybody may be over at any moment.
    fn whoever_waits_has_an_outcome() {
        three_join(Duration::ZERO);
    }

    /// Whoever does not come back says so; then nothing goes on, whoever was the last.
    fn what_all_have_given_up_ends() {
        let flights = Arc::new(Numbers::new(Duration::MAX));
        let (work, dropped) = Work::new();
        let giving_up = (0..3).map(|_| {
            let (flights, work) = (Arc::clone(&flights), Arc::clone(&work));
            thread::spawn(move || flights.join(1, || work_without_end(&work)).leave().give_up())
        });
        for thread in giving_up.collect::<Vec<_>>() {
            thread.join().expect("no panic");
        }
        for _ in 0..work.begun.load(Ordering::SeqCst) {
            dropped.recv().expect("it is dropped in the end");
        }
        assert!(flights.is_empty());
    }

    /// One gives up while another has gone to come back.
    fn what_somebody_comes_back_for_goes_on() {
        let flights = Arc::new(Numbers::new(Duration::MAX));
        let (work, _dropped) = Work::new();
        let other = {
            let (flights, work) = (Arc::clone(&flights), Arc::clone(&work));
            thread::spawn(move || flights.join(1, || work_without_end(&work)).leave().give_up())
        };
        let interest = flights.join(1, || work_without_end(&work)).leave();
        other.join().expect("no panic");
        for _ in 0..10 {
            thread::yield_now();
        }
        assert!(!interest.is_over(), "it will come back");
        interest.give_up();
    }

    fn in_many_orders(scenario: fn()) {
        shuttle::check_random(scenario, 10_000);
        shuttle::check_pct(scenario, 10_000, 3);
    }

    #[test]
    fn flights_keep_their_promises() {
        in_many_orders(one_works_for_all);
        in_many_orders(whoever_waits_has_an_outcome);
        in_many_orders(what_all_have_given_up_ends);
        in_many_orders(what_somebody_comes_back_for_goes_on);
    }
}
