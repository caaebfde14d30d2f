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

#[derive(Debug, Default)]
struct Told {
    is_nearly_full: bool,
    is_full: bool,
    nearly_full: Option<Instant>,
    full: Option<Instant>,
}

impl Told {
    /// What is to be told: a change for the worse, and each at most once an hour.
    fn next(&mut self, fill: f64, now: Instant) -> Option<Reason> {
        let was = (self.is_nearly_full, self.is_full);
        (self.is_nearly_full, self.is_full) = (fill >= NEARLY, fill >= 1.0);
        let (told, reason) = match (self.is_nearly_full, self.is_full) {
            (_, true) if !was.1 => (&mut self.full, Reason::StoreFull),
            (true, false) if was == (false, false) => (&mut self.nearly_full, Reason::StoreNearlyFull),
            _ => return None,
        };
        if told.is_some_and(|told| now.saturating_duration_since(told) < APART) {
            return None;
        }
        *told = Some(now);
        Some(reason)
    }
}

impl StoreWatch {
    pub(in crate::volume) fn look(&self, census: &Census, announcements: &Announcements) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = told.next(census.fill(), Instant::now()) {
            announcements.of_store(reason, sentence(census));
        }
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
    fn a_change_for_the_worse_is_told_and_once_an_hour() {
        let (mut told, now) = (Told::default(), Instant::now());
        let minutes = |count: u64| now + Duration::from_secs(60 * count);
        assert_eq!(told.next(0.0, now), None, "nothing is known yet");
        assert_eq!(told.next(0.95, minutes(1)), Some(Reason::StoreNearlyFull));
        assert_eq!(told.next(0.96, minutes(2)), None);
        assert_eq!(told.next(1.0, minutes(3)), Some(Reason::StoreFull));
        assert_eq!(told.next(0.95, minutes(4)), None, "it gets better");
        assert_eq!(told.next(1.0, minutes(5)), None, "within the hour");
        assert_eq!(told.next(0.1, minutes(70)), None);
        assert_eq!(told.next(1.1, minutes(71)), Some(Reason::StoreFull), "at once");
    }
}
