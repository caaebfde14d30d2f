//! How many connections a slow source gets: more, as long as more bring more.
//!
//! An object store bounds what one connection gets, so more of them help. On a line that is full they only take from each other,
//! and what comes ahead of its turn of a layer is written twice. Nothing says which of the two it is, so it is tried, and what the
//! fetch receives is compared. What brought next to nothing ends; what brought less than most of what it could have stays, and may
//! have taken that from other transfers. Either way it is tried again later: after twice as long each time. Only the fetch's own rate
//! counts: another tenant's transfers decide nothing here.

use std::time::{Duration, Instant};

use crate::host::limits::CONNECTIONS;

/// A connection below this rate (bytes per second) is helped by another, and a source below it is compared with others. Object
/// stores give 50 to 90 MB/s to a connection, a local registry ten times as much.
pub const HELP_BELOW: f64 = 100e6;
/// More connections could bring this much, if each were as fast as those before: 1. Below the first part of it they end, and from
/// the second part on still more are tried at once.
const USELESS_BELOW: f64 = 0.25;
const USEFUL_FROM: f64 = 0.7;
/// After connections that were not that useful it is tried again after so long, at first and at most.
const PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(160);

/// Decides for one fetch.
#[derive(Debug)]
pub struct Help {
    trial: Option<Trial>,
    /// Bytes per second in the last two windows: one that was slow by chance is nothing to compare with.
    rates: [f64; 2],
    connections: usize,
    pause: Duration,
    not_before: Instant,
}

/// Connections that were added to see what they bring.
#[derive(Debug, Clone, Copy)]
struct Trial {
    added: usize,
    /// Bytes per second without them.
    before: f64,
    /// What they bring if each is as fast as those before.
    expected: f64,
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

impl Help {
    /// For a fetch that begins.
    pub fn new(now: Instant) -> Self {
        Self { trial: None, rates: [0.0; 2], connections: 1, pause: PAUSE, not_before: now }
    }

    /// What to do when `connections` got `rate` bytes per second together since the last look; `is_waiting` when some of them wait for
    /// the first byte of an answer, or until they may ask again.
    pub fn advise(&mut self, now: Instant, rate: f64, connections: usize, is_waiting: bool) -> Advice {
        self.rates = [self.rates[1], rate];
        self.connections = connections;
        if let Some(trial) = self.trial.take() {
            let part = (rate - trial.before) / trial.expected.max(1.0);
            if part >= USEFUL_FROM {
                self.pause = PAUSE;
            } else if is_waiting || !trial.is_settled {
                self.trial = Some(Trial { is_settled: !is_waiting, ..trial });
                return Advice::Keep;
            } else {
                self.not_before = now + self.pause;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                return if part < USELESS_BELOW { Advice::Remove(trial.added) } else { Advice::Keep };
            }
        }
        let is_slow = (1..CONNECTIONS).contains(&connections) && rate < HELP_BELOW * connections as f64;
        if is_slow && !is_waiting && now >= self.not_before {
            // As many as it takes to be fast, if each is as fast as those that run; at least as many again.
            let more = connections.max(connections_for(rate, connections));
            Advice::Add(more.min(CONNECTIONS - connections))
        } else {
            Advice::Keep
        }
    }

    /// So many connections were added.
    pub fn added(&mut self, added: usize) {
        let before = self.rates[0].max(self.rates[1]);
        let expected = before * added as f64 / self.connections.max(1) as f64;
        self.trial = (added > 0).then_some(Trial { added, before, expected, is_settled: false });
    }

    /// What was seen since the last look says nothing of the source.
    pub fn excuse(&mut self) {
        if let Some(trial) = &mut self.trial {
            trial.is_settled = false;
        }
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

    /// A fetch that follows the advice, a second at a time.
    struct World {
        help: Help,
        now: Instant,
        began: Instant,
        connections: usize,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            Self { help: Help::new(now), now, began: now, connections: 1 }
        }

        fn second(&mut self, rate: f64, is_waiting: bool) -> Advice {
            self.now += Duration::from_secs(1);
            let advice = self.help.advise(self.now, rate, self.connections, is_waiting);
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

        /// When connections were added within so many seconds, and how many there are in the end.
        fn run(&mut self, seconds: u64, rate: impl Fn(usize) -> f64) -> (Vec<u64>, usize) {
            let mut added = Vec::new();
            while self.now.duration_since(self.began).as_secs() < seconds {
                if let Advice::Add(_) = self.second(rate(self.connections), false) {
                    added.push(self.now.duration_since(self.began).as_secs());
                }
            }
            (added, self.connections)
        }
    }

    #[test]
    fn connections_are_added_as_long_as_each_brings_more() {
        for (each, most) in [(20e6, CONNECTIONS), (60e6, CONNECTIONS), (110e6, 1)] {
            let (_, connections) = World::new().run(10, |connections| each * connections as f64);
            assert_eq!(connections, most, "{each}");
        }
        // Two are as fast as it gets: the third and the fourth bring nothing.
        let (_, connections) = World::new().run(9, |connections| 60e6 * connections.min(2) as f64);
        assert_eq!(connections, 2);
        // Six are. Where three are, half of the third and the fourth is useful: they stay, and there are no more for a while.
        let (added, connections) = World::new().run(9, |connections| 40e6 * connections.min(6) as f64);
        assert_eq!((added, connections), (vec![1, 2, 3], 6));
        let (added, connections) = World::new().run(9, |connections| 60e6 * connections.min(3) as f64);
        assert_eq!((added, connections), (vec![1, 2], 4));
    }

    #[test]
    fn on_a_full_line_what_brings_nothing_ends_and_is_tried_again_ever_later() {
        let tried = World::new().run(200, |_| 60e6);
        assert_eq!(tried, (vec![1, 13, 35, 77, 159], 1));
        // Three others have a connection each: what a second one gets is theirs.
        let (added, connections) =
            World::new().run(9, |connections| 200e6 * connections as f64 / (connections + 3) as f64);
        assert_eq!((added, connections), (vec![1], 2));
    }

    #[test]
    fn what_was_slow_by_chance_is_nothing_to_compare_with() {
        let mut world = World::new();
        world.second(120e6, false);
        assert_eq!(world.second(60e6, false), Advice::Add(1));
        assert_eq!(world.second(120e6, false), Advice::Keep);
        assert_eq!(world.second(120e6, false), Advice::Remove(1));
        // Nor is one in which nothing came.
        let mut world = World::new();
        world.second(60e6, false);
        world.second(0.0, false);
        assert_eq!(world.second(60e6, true), Advice::Keep);
        assert_eq!(world.second(60e6, false), Advice::Keep);
        assert!(matches!(world.second(60e6, false), Advice::Remove(_)));
    }

    #[test]
    fn what_has_not_begun_to_answer_is_waited_for() {
        let mut world = World::new();
        assert_eq!(world.second(50e6, true), Advice::Keep);
        world.second(50e6, false);
        assert_eq!(world.connections, 2);
        for _ in 0..20 {
            assert_eq!(world.second(50e6, true), Advice::Keep);
        }
        // It began in the middle of this one.
        assert_eq!(world.second(55e6, false), Advice::Keep);
        assert!(matches!(world.second(100e6, false), Advice::Add(_)));
        // A disk that was slow is no fault of theirs.
        let mut world = World::new();
        world.second(50e6, false);
        world.second(50e6, false);
        world.help.excuse();
        assert_eq!(world.second(50e6, false), Advice::Keep);
        assert_eq!(world.second(50e6, false), Advice::Remove(1));
    }
}
