//! What collections of a store remember.

use std::time::{Duration, Instant};

/// How often leftovers are looked for when nobody asks.
const LEFTOVERS_EVERY: Duration = Duration::from_secs(3600);

/// What collections of a store remember.
#[derive(Debug, Default)]
pub(in crate::store) struct Past {
    leftovers: Option<Instant>,
}

impl Past {
    /// Whether it is time to look for leftovers again; from now on it is not for a while.
    pub(in crate::store) fn is_time_for_leftovers(&mut self) -> bool {
        let is_time = self.leftovers.is_none_or(|last| last.elapsed() > LEFTOVERS_EVERY);
        if is_time {
            self.leftovers = Some(Instant::now());
        }
        is_time
    }
}
