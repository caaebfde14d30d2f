//! Is a transfer fast enough? Bytes are judged over whole windows of time, so that bursts do not hide a stall.

use std::time::{Duration, Instant};

/// A source below this rate (bytes per second) over [`Watch::DEAD_AFTER`] fails: it only holds others up.
const DEAD_BELOW: f64 = 10e3;

/// Rates over a short and a long window.
#[derive(Debug)]
pub(super) struct Watch {
    short: (Instant, u64),
    long: (Instant, u64),
}

/// What the last window tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pace {
    /// No window is over.
    Unknown,
    /// Bytes per second over the short window.
    Rate(f64),
    /// Next to nothing came in the long window.
    Dead,
}

impl Watch {
    /// The short window.
    pub const SHORT: Duration = Duration::from_secs(5);
    /// The long window.
    pub const DEAD_AFTER: Duration = Duration::from_secs(60);

    pub fn new(now: Instant) -> Self {
        Self { short: (now, 0), long: (now, 0) }
    }

    /// Starts both windows anew: what held the transfer up was not the source.
    pub fn excuse(&mut self, now: Instant, bytes: u64) {
        self.short = (now, bytes);
        self.long = (now, bytes);
    }

    /// `bytes` have come until `now`.
    pub fn look(&mut self, now: Instant, bytes: u64) -> Pace {
        let rate = |(began, before): (Instant, u64)| {
            bytes.saturating_sub(before) as f64 / now.duration_since(began).as_secs_f64().max(0.001)
        };
        if now.duration_since(self.long.0) >= Self::DEAD_AFTER {
            let dead = rate(self.long) < DEAD_BELOW;
            self.long = (now, bytes);
            if dead {
                return Pace::Dead;
            }
        }
        if now.duration_since(self.short.0) >= Self::SHORT {
            let pace = Pace::Rate(rate(self.short));
            self.short = (now, bytes);
            return pace;
        }
        Pace::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_do_not_hide_a_stall() {
        let began = Instant::now();
        let mut watch = Watch::new(began);
        let mut dead = false;
        for second in 1..=61 {
            // Ten kilobytes at once, then nothing.
            let bytes = if second > 30 { 10_000 } else { 0 };
            dead |= watch.look(began + Duration::from_secs(second), bytes) == Pace::Dead;
        }
        assert!(dead);
        let mut watch = Watch::new(began);
        assert_eq!(watch.look(began + Duration::from_secs(4), 1_000_000), Pace::Unknown);
        assert_eq!(watch.look(began + Duration::from_secs(5), 5_000_000), Pace::Rate(1e6));
        watch.excuse(began + Duration::from_secs(9), 5_000_000);
        assert_eq!(watch.look(began + Duration::from_secs(13), 5_000_000), Pace::Unknown);
    }
}
