//! How many events this node writes: a bucket of tokens that namespaces share.
//!
//! A namespace may have taken at most as many tokens as are left, and one of them is given back to who has taken most with each that comes
//! in: so a namespace whose pods start by the hundred leaves some for every other one, whenever that comes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Tokens that the bucket holds. client-go's for events, which API servers are used to.
const BURST: u32 = 25;
/// A token comes in this time.
const EVERY: Duration = Duration::from_secs(2);

/// A bucket, full at first.
#[derive(Debug)]
pub struct Budget {
    filled: Instant,
    /// What namespaces have taken and has not come in again.
    taken: HashMap<Arc<str>, u32>,
}

impl Budget {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        Self { filled: now, taken: HashMap::new() }
    }

    /// Takes a token for `namespace`, if it may have one.
    pub fn take(&mut self, namespace: &str, now: Instant) -> bool {
        self.fill(now);
        let left = BURST - self.taken.values().sum::<u32>();
        let own = self.taken.get(namespace).copied().unwrap_or_default();
        if own >= left {
            return false;
        }
        *self.taken.entry(namespace.into()).or_default() += 1;
        true
    }

    fn fill(&mut self, now: Instant) {
        while let Some(largest) = self.taken.iter_mut().max_by_key(|(_, taken)| **taken) {
            if now.saturating_duration_since(self.filled) < EVERY {
                return;
            }
            self.filled += EVERY;
            *largest.1 -= 1;
            self.taken.retain(|_, taken| *taken > 0);
        }
        // A full bucket saves up nothing.
        self.filled = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_takes_all_it_can_leaves_some_to_each_that_comes() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        let mut takes = |namespace: &str, now| (0..100).filter(|_| budget.take(namespace, now)).count();
        assert_eq!(takes("loud", now), 13);
        assert_eq!(takes("second", now), 6);
        assert_eq!(takes("third", now), 3);
        assert_eq!(takes("fourth", now), 2);
        assert_eq!(takes("fifth", now), 1);
        assert_eq!(takes("sixth", now), 0);
        // What comes in was taken by who took most.
        assert_eq!(takes("sixth", now + EVERY), 1);
        assert_eq!(takes("loud", now + EVERY * 3), 0);
        let later = now + Duration::from_secs(3600);
        assert_eq!(takes("loud", later), 13, "it fills up, and no further");
    }
}
