//! Failures that were logged, so that the same one is not logged each time that somebody tries again.
//!
//! Tenants share what is remembered: who has much of it makes room for who has little, and the failures of the others stay remembered.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::tenant::Tenant;

/// Failures that were logged lately, by their hashes: what is remembered of each is as small however long its names are.
#[derive(Debug, Default)]
pub struct Repeats {
    hasher: RandomState,
    known: Mutex<HashMap<u64, Known>>,
}

#[derive(Debug)]
struct Known {
    tenant: Tenant,
    logged: Instant,
    /// How many were not logged since.
    left_out: u64,
}

/// The same failure is logged once in this time: kubelet tries again every few seconds.
const APART: Duration = Duration::from_secs(60);
/// Failures that are remembered; of more, each is logged.
const REMEMBERED: usize = 1024;

impl Repeats {
    /// How many like `failure` of `tenant` were left out before this one, which is to be logged; `None` when it is to be left out.
    pub fn next(&self, tenant: &Tenant, failure: &impl Hash) -> Option<u64> {
        self.next_at(tenant, failure, Instant::now())
    }

    fn next_at(&self, tenant: &Tenant, failure: &impl Hash, now: Instant) -> Option<u64> {
        let hash = self.hasher.hash_one((tenant, failure));
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get_mut(&hash) {
            if is_recent(known, now) {
                known.left_out += 1;
                return None;
            }
            known.logged = now;
            return Some(std::mem::take(&mut known.left_out));
        }
        if has_room(&mut all, tenant, now) {
            all.insert(hash, Known { tenant: tenant.clone(), logged: now, left_out: 0 });
        }
        Some(0)
    }
}

fn is_recent(known: &Known, now: Instant) -> bool {
    now.saturating_duration_since(known.logged) < APART
}

/// Whether one more failure of `tenant` can be remembered. Where all room is taken, the tenant that has most of it, and more than this
/// one would have, gives up its oldest.
fn has_room(all: &mut HashMap<u64, Known>, tenant: &Tenant, now: Instant) -> bool {
    if all.len() < REMEMBERED {
        return true;
    }
    all.retain(|_, known| is_recent(known, now));
    if all.len() < REMEMBERED {
        return true;
    }
    let mut shares: HashMap<&Tenant, usize> = HashMap::new();
    for known in all.values() {
        *shares.entry(&known.tenant).or_default() += 1;
    }
    let own = shares.get(tenant).copied().unwrap_or_default();
    let largest = shares.into_iter().max_by_key(|(_, share)| *share).filter(|(_, share)| *share > own + 1);
    let oldest = largest.and_then(|(largest, _)| {
        let theirs = all.iter().filter(|(_, known)| known.tenant == *largest);
        theirs.min_by_key(|(_, known)| known.logged).map(|(hash, _)| *hash)
    });
    oldest.is_some_and(|oldest| all.remove(&oldest).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::of_namespace(Some(name))
    }

    #[test]
    fn the_same_failure_is_logged_once_a_minute_and_then_with_how_often() {
        let (repeats, now, one) = (Repeats::default(), Instant::now(), tenant("one"));
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(repeats.next_at(&one, &("v", 5), at(0)), Some(0));
        assert_eq!(repeats.next_at(&one, &("v", 5), at(10)), None);
        assert_eq!(repeats.next_at(&one, &("v", 5), at(59)), None);
        assert_eq!(repeats.next_at(&one, &("v", 6), at(59)), Some(0), "another failure");
        assert_eq!(repeats.next_at(&tenant("two"), &("v", 5), at(59)), Some(0), "another tenant");
        assert_eq!(repeats.next_at(&one, &("v", 5), at(60)), Some(2));
        assert_eq!(repeats.next_at(&one, &("v", 5), at(61)), None);
        for number in 0..2 * REMEMBERED {
            assert_eq!(repeats.next_at(&one, &number, at(61)), Some(0), "it was not logged before");
        }
        let count = || repeats.known.lock().expect("no panic").len();
        assert_eq!(count(), REMEMBERED);
        assert_eq!(repeats.next_at(&one, &"new", at(200)), Some(0));
        assert_eq!(count(), 1, "the others are long ago");
    }

    #[test]
    fn a_tenant_whose_failures_are_many_does_not_push_out_those_of_others() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        let (loud, quiet, late) = (tenant("loud"), tenant("quiet"), tenant("late"));
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(repeats.next_at(&quiet, &"q", at(0)), Some(0));
        for number in 0..2 * REMEMBERED {
            repeats.next_at(&loud, &number, at(1));
        }
        assert_eq!(repeats.next_at(&quiet, &"q", at(2)), None, "it is remembered");
        assert_eq!(repeats.next_at(&late, &"l", at(2)), Some(0));
        assert_eq!(repeats.next_at(&late, &"l", at(3)), None, "who comes late has room as well");
        assert_eq!(repeats.next_at(&quiet, &"q", at(3)), None);
        for number in 0..2 * REMEMBERED {
            repeats.next_at(&late, &("l", number), at(4));
        }
        let all = repeats.known.lock().expect("no panic");
        let share = |tenant: &Tenant| all.values().filter(|known| known.tenant == *tenant).count();
        assert_eq!((all.len(), share(&quiet)), (REMEMBERED, 1));
        assert!(share(&loud).abs_diff(share(&late)) <= 1, "{} and {}", share(&loud), share(&late));
    }
}
