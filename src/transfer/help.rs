//! How many connections a slow source gets: more, as long as more bring more.
//!
//! An object store bounds what one connection gets, so more of them help. On a line that is full they only take from each other,
//! and what comes ahead of its turn of a layer is written twice. Nothing says which of the two it is, so it is tried. What all
//! transfers of the node receive counts, because what a connection takes from another blob is no gain. Connections that brought
//! nothing end, and it is tried again later: after twice as long each time.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::host::limits::CONNECTIONS;

/// A connection below this rate (bytes per second) is helped by another, and a source below it is compared with others. Object
/// stores give 50 to 90 MB/s to a connection, a local registry ten times as much.
pub const HELP_BELOW: f64 = 100e6;
/// The part of what more connections could bring, if each were as fast as those before, that they have to bring.
const GAIN: f64 = 0.25;
/// After connections that brought nothing it is tried again after so long, at first and at most.
const PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(160);

/// What all transfers receive.
#[derive(Debug, Default)]
pub struct Traffic {
    bytes: AtomicU64,
    /// Grows when a transfer of a large blob begins or ends: rates before and after that cannot be compared.
    changes: AtomicU64,
}

/// A transfer of a large blob, while it receives.
pub struct Receiving<'a>(&'a Traffic);

/// Decides for one fetch.
#[derive(Debug)]
pub struct Help {
    trial: Option<Trial>,
    /// What the last look saw.
    seen: Seen,
    /// When that was, and what all transfers had received by then.
    at: (Instant, u64),
    pause: Duration,
    not_before: Instant,
}

/// Rates, in bytes per second.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    /// Of all transfers.
    all: f64,
    /// Of this fetch.
    own: f64,
    connections: usize,
    changes: u64,
}

/// Connections that were added to see what they bring.
#[derive(Debug, Clone, Copy)]
struct Trial {
    added: usize,
    before: Seen,
    /// All of them received something during the last window.
    is_settled: bool,
}

/// What a fetch is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// As before.
    Keep,
    /// So many connections more, if they can be had. [`Help::added`] is told how many there were.
    Add(usize),
    /// So many connections less.
    Remove(usize),
}

impl Traffic {
    /// `length` bytes came.
    pub fn came(&self, length: u64) {
        self.bytes.fetch_add(length, Relaxed);
    }

    /// Notes that a transfer of a large blob receives, until what is returned is dropped.
    pub fn receive(&self) -> Receiving<'_> {
        self.changes.fetch_add(1, Relaxed);
        Receiving(self)
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.0.changes.fetch_add(1, Relaxed);
    }
}

impl Help {
    /// For a fetch that begins.
    pub fn new(traffic: &Traffic, now: Instant) -> Self {
        let at = (now, traffic.bytes.load(Relaxed));
        Self { trial: None, seen: Seen::default(), at, pause: PAUSE, not_before: now }
    }

    /// What to do when `connections` got `own` bytes per second together since the last look; `is_waiting` when some of them wait for
    /// the first byte of an answer.
    pub fn advise(
        &mut self,
        traffic: &Traffic,
        now: Instant,
        own: f64,
        connections: usize,
        is_waiting: bool,
    ) -> Advice {
        let received = traffic.bytes.load(Relaxed);
        let elapsed = now.duration_since(self.at.0).as_secs_f64().max(0.001);
        let all = received.saturating_sub(self.at.1) as f64 / elapsed;
        self.at = (now, received);
        self.seen = Seen { all, own, connections, changes: traffic.changes.load(Relaxed) };
        if let Some(trial) = self.trial.take() {
            if trial.has_gained(self.seen) {
                self.pause = PAUSE;
            } else if is_waiting || !trial.is_settled {
                self.trial = Some(Trial { is_settled: !is_waiting, ..trial });
                return Advice::Keep;
            } else {
                self.not_before = now + self.pause;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                return Advice::Remove(trial.added);
            }
        }
        let is_slow = (1..CONNECTIONS).contains(&connections) && own < HELP_BELOW * connections as f64;
        if is_slow && now >= self.not_before {
            // As many as it takes to be fast, if each is as fast as those that run; at least as many again.
            let more = connections.max(connections_for(own, connections));
            Advice::Add(more.min(CONNECTIONS - connections))
        } else {
            Advice::Keep
        }
    }

    /// So many connections were added.
    pub fn added(&mut self, added: usize) {
        self.trial = (added > 0).then_some(Trial { added, before: self.seen, is_settled: false });
    }

    /// What was seen since the last look says nothing of the source.
    pub fn excuse(&mut self, traffic: &Traffic, now: Instant) {
        self.at = (now, traffic.bytes.load(Relaxed));
        if let Some(trial) = &mut self.trial {
            trial.is_settled = false;
        }
    }
}

impl Trial {
    fn has_gained(self, now: Seen) -> bool {
        let before = self.before;
        let gained = if before.changes == now.changes { now.all - before.all } else { now.own - before.own };
        gained >= GAIN * before.own * self.added as f64 / before.connections.max(1) as f64
    }
}

/// Connections that `active` ones, which get `rate` together, lack of what is fast.
fn connections_for(rate: f64, active: usize) -> usize {
    let each = (rate / active.max(1) as f64).max(1.0);
    (1..CONNECTIONS).find(|more| (active + more) as f64 * each >= HELP_BELOW).unwrap_or(CONNECTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fetch, and other transfers beside it.
    struct World {
        traffic: Traffic,
        help: Help,
        now: Instant,
        began: Instant,
        connections: usize,
    }

    impl World {
        fn new() -> Self {
            let (traffic, now) = (Traffic::default(), Instant::now());
            Self { help: Help::new(&traffic, now), traffic, now, began: now, connections: 1 }
        }

        /// One second in which the fetch gets `own` bytes, and others get `others`; follows the advice.
        fn second(&mut self, own: f64, others: f64, is_waiting: bool) -> Advice {
            self.now += Duration::from_secs(1);
            self.traffic.came((own + others) as u64);
            let advice = self.help.advise(&self.traffic, self.now, own, self.connections, is_waiting);
            match advice {
                Advice::Keep => {}
                Advice::Add(more) => {
                    self.connections += more;
                    assert!(self.connections <= CONNECTIONS);
                    self.help.added(more);
                }
                Advice::Remove(less) => self.connections -= less,
            }
            advice
        }

        fn seconds(&self) -> u64 {
            self.now.duration_since(self.began).as_secs()
        }
    }

    #[test]
    fn connections_are_added_as_long_as_each_brings_more() {
        for (each, most) in [(20e6, CONNECTIONS), (60e6, CONNECTIONS), (110e6, 1)] {
            let mut world = World::new();
            for _ in 0..10 {
                let own = each * world.connections as f64;
                world.second(own, 50e6, false);
            }
            assert_eq!(world.connections, most, "{each}");
        }
        // Two are as fast as it gets: the third and the fourth bring nothing.
        let mut world = World::new();
        for _ in 0..9 {
            let own = 60e6 * world.connections.min(2) as f64;
            world.second(own, 0.0, false);
        }
        assert_eq!(world.connections, 2);
    }

    #[test]
    fn on_a_full_line_what_brings_nothing_ends_and_is_tried_again_ever_later() {
        let mut world = World::new();
        let mut tried = Vec::new();
        while world.seconds() < 200 {
            if let Advice::Add(_) = world.second(60e6, 0.0, false) {
                tried.push(world.seconds());
            }
        }
        assert_eq!((world.connections, tried), (1, vec![1, 13, 35, 77, 159]));
    }

    #[test]
    fn what_is_taken_from_others_is_no_gain() {
        let mut world = World::new();
        world.second(30e6, 90e6, false);
        assert_eq!(world.connections, 1 + 3);
        // Its connections get the same as each of the other transfers'.
        world.second(75e6, 45e6, false);
        assert_eq!(world.second(75e6, 45e6, false), Advice::Remove(3));
        // When one of these has ended, only its own rate says something.
        let mut world = World::new();
        world.second(30e6, 90e6, false);
        drop(world.traffic.receive());
        assert_ne!(world.second(75e6, 0.0, false), Advice::Remove(3));
        assert!(world.connections > 4);
    }

    #[test]
    fn what_has_not_begun_to_answer_is_waited_for() {
        let mut world = World::new();
        world.second(50e6, 0.0, false);
        assert_eq!(world.connections, 2);
        for _ in 0..20 {
            assert_eq!(world.second(50e6, 0.0, true), Advice::Keep);
        }
        // It began in the middle of this one.
        assert_eq!(world.second(55e6, 0.0, false), Advice::Keep);
        assert!(matches!(world.second(100e6, 0.0, false), Advice::Add(_)));
        // A disk that was slow, or a network that is held back, is no fault of theirs.
        let mut world = World::new();
        world.second(50e6, 0.0, false);
        world.second(50e6, 0.0, false);
        world.now += Duration::from_secs(5);
        world.help.excuse(&world.traffic, world.now);
        assert_eq!(world.second(50e6, 0.0, false), Advice::Keep);
        assert_eq!(world.second(50e6, 0.0, false), Advice::Remove(1));
    }
}
