//! How fast a source is. Bytes are judged over whole windows of time, so that bursts do not hide a stall.

use std::time::{Duration, Instant};

/// A source below this rate (bytes per second) over [`Rate::DEAD_AFTER`] fails: it only holds others up.
const DEAD_BELOW: f64 = 10e3;

/// Rates over a short and a long window.
#[derive(Debug)]
pub struct Rate {
    short: (Instant, u64),
    long: (Instant, u64),
}

/// What the last window tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Judgement {
    /// No window is over.
    Unknown,
    /// Bytes per second over the short window.
    BytesPerSecond(f64),
    /// Next to nothing came in the long window.
    Dead,
}

impl Rate {
    /// The short window.
    pub const SHORT: Duration = Duration::from_millis(900);
    /// The long window.
    pub const DEAD_AFTER: Duration = Duration::from_secs(60);

    /// Nothing has come until `now`.
    pub fn new(now: Instant) -> Self {
        Self { short: (now, 0), long: (now, 0) }
    }

    /// Starts both windows anew: what held the transfer up was not the source.
    pub fn excuse(&mut self, now: Instant, bytes: u64) {
        self.short = (now, bytes);
        self.long = (now, bytes);
    }

    /// `bytes` have come until `now`.
    pub fn judge(&mut self, now: Instant, bytes: u64) -> Judgement {
        let rate = |(began, before): (Instant, u64)| {
            bytes.saturating_sub(before) as f64 / now.duration_since(began).as_secs_f64().max(0.001)
        };
        if now.duration_since(self.long.0) >= Self::DEAD_AFTER {
            let dead = rate(self.long) < DEAD_BELOW;
            self.long = (now, bytes);
            if dead {
                return Judgement::Dead;
            }
        }
        if now.duration_since(self.short.0) >= Self::SHORT {
            let judgement = Judgement::BytesPerSecond(rate(self.short));
            self.short = (now, bytes);
            return judgement;
        }
        Judgement::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_do_not_hide_a_stall() {
        let began = Instant::now();
        let mut rate = Rate::new(began);
        let mut dead = false;
        for second in 1..=61 {
            // Ten kilobytes at once, then nothing.
            let bytes = if second > 30 { 10_000 } else { 0 };
            dead |= rate.judge(began + Duration::from_secs(second), bytes) == Judgement::Dead;
        }
        assert!(dead);
        let at = |milliseconds| began + Duration::from_millis(milliseconds);
        let mut rate = Rate::new(began);
        assert_eq!(rate.judge(at(500), 1_000_000), Judgement::Unknown);
        assert_eq!(rate.judge(at(1000), 1_000_000), Judgement::BytesPerSecond(1e6));
        rate.excuse(at(1800), 5_000_000);
        assert_eq!(rate.judge(at(2600), 5_000_000), Judgement::Unknown);
    }
}
