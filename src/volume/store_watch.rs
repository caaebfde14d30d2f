//! Tells an operator, by events of the node, that the store gets full.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::BinaryBytes;
use tokio::time::Instant;

use crate::kube::events::Reason;
use crate::volume::announce::Announcements;
use crate::volume::census::Census;

/// The part of what may be used from which on the store is nearly full.
const NEARLY: f64 = 0.9;
/// Between two events that say the same.
const APART: Duration = Duration::from_secs(3600);

/// What was told of the store.
#[derive(Debug, Default)]
pub(in crate::volume) struct StoreWatch(Mutex<Told>);

/// When each was told last.
#[derive(Debug, Default)]
struct Told {
    nearly_full: Option<Instant>,
    full: Option<Instant>,
}

impl Told {
    /// Tells what is so at `now`, once an hour as long as it stays so. What was not told, as `tell` says, is told the next time.
    fn tell(&mut self, fill: f64, now: Instant, tell: impl FnOnce(Reason) -> bool) {
        let (told, reason) = match fill {
            full if full >= 1.0 => (&mut self.full, Reason::StoreFull),
            nearly if nearly >= NEARLY => (&mut self.nearly_full, Reason::StoreNearlyFull),
            _ => return,
        };
        let is_due = told.is_none_or(|told| now.saturating_duration_since(told) >= APART);
        if is_due && tell(reason) {
            *told = Some(now);
        }
    }
}

impl StoreWatch {
    /// Tells of `census`, if there is something to be told.
    pub(in crate::volume) fn look(&self, census: &Census, announcements: &Announcements) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.tell(census.fill(), Instant::now(), |reason| announcements.of_store(reason, sentence(census)));
    }
}

fn sentence(census: &Census) -> String {
    let Census { used, evictable, limit, .. } = census;
    let inodes = match limit.inodes {
        0 => String::new(),
        all => format!("; {} of {all} inodes", used.inodes.saturating_sub(evictable.inodes)),
    };
    format!(
        "{} of {} that may be used on the disk of the store are in use and cannot be collected{inodes}",
        BinaryBytes(used.bytes.saturating_sub(evictable.bytes)),
        BinaryBytes(limit.bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_once_an_hour_as_long_as_it_is_so() {
        let (mut told, now) = (Told::default(), Instant::now());
        let mut at = |minutes: u64, fill: f64| {
            let mut reason = None;
            told.tell(fill, now + Duration::from_secs(60 * minutes), |so| reason.replace(so).is_none());
            reason
        };
        assert_eq!(at(0, 0.0), None, "nothing is known yet");
        assert_eq!(at(1, 0.95), Some(Reason::StoreNearlyFull));
        assert_eq!(at(2, 0.96), None);
        assert_eq!(at(3, 1.0), Some(Reason::StoreFull), "at once");
        assert_eq!(at(4, 0.95), None, "it gets better");
        assert_eq!(at(5, 1.0), None, "within the hour");
        assert_eq!(at(63, 1.0), Some(Reason::StoreFull), "it still is");
        assert_eq!(at(64, 0.95), Some(Reason::StoreNearlyFull), "it still is");
        assert_eq!(at(200, 0.1), None);
    }

    #[test]
    fn what_could_not_be_told_is_told_the_next_time() {
        let (mut told, now) = (Told::default(), Instant::now());
        let mut reasons = Vec::new();
        for (seconds, is_taken) in [(0, false), (60, false), (120, true), (180, true)] {
            told.tell(1.0, now + Duration::from_secs(seconds), |reason| {
                reasons.push((seconds, reason));
                is_taken
            });
        }
        let full = Reason::StoreFull;
        assert_eq!(reasons, [(0, full), (60, full), (120, full)]);
    }
}
