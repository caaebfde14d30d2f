//! Which of a registry's places is asked first, and when the next one is asked as well.
//!
//! Mirrors are asked in the operator's order, the registry last. For what is large the fastest is first, as soon as it is known. A
//! mirror that takes longer for an answer than nineteen of twenty before is raced by the next place. One that cannot be reached rests for some time, and
//! one that does not have something
//! is asked last for it, and one that has sent wrong bytes is not asked for those again for some time.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::failure::Kind;
use crate::oci::digest::Digest;
use crate::registry::error::Error;
use crate::registry::place::Place;
use crate::registry::source::Source;

/// What was learnt of places. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Mirrors {
    /// By the root of the API, and the registry: how a mirror is for one says nothing of another.
    seen: Arc<Mutex<HashMap<String, Seen>>>,
    /// Mirrors that have sent wrong content of a repository.
    wrong: Arc<Mutex<HashMap<Content, Instant>>>,
    /// Mirrors that do not have content, or broke off in it, for who asked.
    lacking: Arc<Mutex<HashMap<Lacking, Instant>>>,
    /// What a registry has said that it may be read.
    confirmed: Arc<Mutex<HashMap<(Source, Digest), Instant>>>,
}

/// Where a mirror is and for which registry, the repository, and a digest: what a mirror has wrong in one repository it may have right
/// in another.
type Content = (String, String, Digest);
/// The same, and who asked: what one may not see is there for others.
type Lacking = (String, Source, Digest);

/// What was learnt of one place.
#[derive(Default)]
struct Seen {
    /// The last waits for an answer.
    waits: VecDeque<Duration>,
    /// Bytes per second of one connection.
    rate: Option<f64>,
    failures: u32,
    rests_until: Option<Instant>,
}

/// What is large is asked for where it comes fastest.
const LARGE: u64 = 8 << 20;
/// Waits that are remembered of a place.
const WAITS: usize = 64;
/// A place of which fewer are known counts as one that answers in [`UNKNOWN_WAIT`].
const ENOUGH_WAITS: usize = 8;
/// How long a place of which little is known is waited for until the next one is asked as well.
const UNKNOWN_WAIT: Duration = Duration::from_secs(2);
/// Shorter waits are no sign of anything.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
/// Failures in a row after which a place rests.
const FAILURES: u32 = 3;
/// How long a place rests that could not be reached.
const REST: Duration = Duration::from_secs(30);
/// How long a mirror is not asked for what it had wrong.
const WRONG: Duration = Duration::from_secs(600);
/// How long a mirror is asked last for what it did not have, or broke off in.
const LACKING: Duration = Duration::from_secs(30);
/// How long a registry's word counts for which a mirror sends the content.
const CONFIRMED: Duration = Duration::from_secs(600);
/// What is remembered of each; beyond, it is learnt again.
const LIMIT: usize = 4096;
/// Bytes that say how fast a place is.
const MEASURED: u64 = 4 << 20;

impl Mirrors {
    /// `places` in the order in which they are asked for `size` bytes that `digest` names, or for what has no digest yet. Mirrors that rest,
    /// or did not have it, come last, after the registry itself; those that had it wrong are left out, but for those in its place.
    pub fn order(&self, mut places: Vec<Place>, digest: Option<&Digest>, size: u64) -> Vec<Place> {
        let now = Instant::now();
        let is_wrong =
            |place: &Place| digest.is_some_and(|digest| is_now(&self.wrong, &content(place, digest), now));
        let is_lacking = |place: &Place| {
            let key = |digest: &Digest| (key(place), place.source.clone(), digest.clone());
            digest.is_some_and(|digest| is_now(&self.lacking, &key(digest), now))
        };
        let late: Vec<bool> = places.iter().map(|place| is_wrong(place) || is_lacking(place)).collect();
        let mut late_of = late.iter();
        let mut kept: Vec<(Place, bool)> =
            places.drain(..).map(|place| (place, late_of.next().is_some_and(|late| *late))).collect();
        kept.retain(|(place, _)| place.endpoint.proves_rights() || !is_wrong(place));
        let seen = lock(&self.seen);
        let known = |place: &Place| seen.get(&key(place));
        let rests =
            |place: &Place| known(place).and_then(|seen| seen.rests_until).is_some_and(|until| until > now);
        if size >= LARGE {
            // Stable: those of which nothing is known keep their place, before those that are known, so that they become known.
            kept.sort_by(|(one, _), (two, _)| {
                let rate = |place: &Place| known(place).and_then(|seen| seen.rate).unwrap_or(f64::INFINITY);
                let both = one.endpoint.is_mirror() && two.endpoint.is_mirror();
                if both { rate(two).total_cmp(&rate(one)) } else { std::cmp::Ordering::Equal }
            });
        }
        kept.sort_by_key(|(place, is_late)| place.endpoint.is_mirror() && (*is_late || rests(place)));
        kept.into_iter().map(|(place, _)| place).collect()
    }

    /// How long the answer of `place` is waited for until the next one is asked as well.
    pub fn patience(&self, place: &Place) -> Duration {
        let seen = lock(&self.seen);
        let Some(seen) = seen.get(&key(place)).filter(|seen| seen.waits.len() >= ENOUGH_WAITS) else {
            return UNKNOWN_WAIT;
        };
        let mut waits: Vec<Duration> = seen.waits.iter().copied().collect();
        waits.sort_unstable();
        // The 95th percentile.
        let wait = waits.get(waits.len() * 95 / 100).or(waits.last()).copied().unwrap_or(UNKNOWN_WAIT);
        wait.max(SHORTEST_WAIT)
    }

    /// Notes that `place` has answered after `wait`.
    pub fn answered(&self, place: &Place, wait: Duration) {
        self.note(place, |seen| {
            (seen.failures, seen.rests_until) = (0, None);
            if seen.waits.len() >= WAITS {
                seen.waits.pop_front();
            }
            seen.waits.push_back(wait);
        });
    }

    /// Notes that `place` failed with `error` when it was asked for `digest`.
    pub fn failed(&self, place: &Place, digest: Option<&Digest>, error: &Error) {
        if !place.endpoint.is_mirror() {
            return;
        }
        tracing::debug!(mirror = place.host(), registry = place.registry, %error, "going on without a mirror");
        match (error, digest) {
            // Not what a mirror answers of one repository, which may be anybody's.
            (Error::Unreachable { .. } | Error::Stalled { .. }, _) => self.note(place, |seen| {
                seen.failures += 1;
                if seen.failures >= FAILURES {
                    seen.rests_until = Some(Instant::now() + REST);
                }
            }),
            (error, Some(digest)) if error.kind() != Kind::Unavailable => self.lacks(place, digest),
            _ => {}
        }
    }

    /// Notes that a mirror has something else than `digest` names.
    pub fn is_wrong(&self, place: &Place, digest: &Digest) {
        remember(&self.wrong, content(place, digest), WRONG);
    }

    /// Notes that a mirror does not have `digest` for who asked, or broke off in it.
    pub fn lacks(&self, place: &Place, digest: &Digest) {
        remember(&self.lacking, (key(place), place.source.clone(), digest.clone()), LACKING);
    }

    /// Whether the registry has said lately that `source` may read `digest`.
    pub fn is_confirmed(&self, source: &Source, digest: &Digest) -> bool {
        lock(&self.confirmed)
            .get(&(source.clone(), digest.clone()))
            .is_some_and(|until| *until > Instant::now())
    }

    /// Notes that the registry has said so.
    pub fn confirm(&self, source: &Source, digest: &Digest) {
        remember(&self.confirmed, (source.clone(), digest.clone()), CONFIRMED);
    }

    /// Measures what comes of `digest` from `place`.
    pub fn meter(&self, place: &Place, digest: &Digest) -> Meter {
        Meter {
            mirrors: self.clone(),
            place: place.clone(),
            digest: digest.clone(),
            bytes: 0,
            time: Duration::ZERO,
        }
    }

    fn note(&self, place: &Place, change: impl FnOnce(&mut Seen)) {
        let (mut seen, key) = (lock(&self.seen), key(place));
        if seen.len() >= LIMIT && !seen.contains_key(&key) {
            seen.clear();
        }
        change(seen.entry(key).or_default());
    }
}

/// Measures how fast a place sends.
pub struct Meter {
    mirrors: Mirrors,
    place: Place,
    digest: Digest,
    bytes: u64,
    time: Duration,
}

impl Meter {
    /// So many bytes came after such a wait. Time in which nobody waited for them is not counted: the disk may be what is slow.
    pub fn add(&mut self, bytes: usize, wait: Duration) {
        self.bytes += bytes as u64;
        self.time += wait;
    }

    /// What was to come did not: other places are asked before this one.
    pub fn broke_off(&self) {
        if let Some(mirror) = self.mirror() {
            self.mirrors.lacks(mirror, &self.digest);
        }
    }

    /// The place, if it is a mirror.
    pub fn mirror(&self) -> Option<&Place> {
        Some(&self.place).filter(|place| place.endpoint.is_mirror())
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.bytes < MEASURED {
            return;
        }
        let rate = self.bytes as f64 / self.time.as_secs_f64().max(1e-3);
        self.mirrors.note(&self.place, |seen| {
            seen.rate = Some(seen.rate.map_or(rate, |old| 0.5 * old + 0.5 * rate));
        });
    }
}

/// The root of a place's API, and the registry it is asked for.
fn key(place: &Place) -> String {
    format!("{} {}", place.endpoint.base, place.registry)
}

fn content(place: &Place, digest: &Digest) -> Content {
    (key(place), place.source.repository.name.clone(), digest.clone())
}

fn is_now<K: Hash + Eq>(map: &Mutex<HashMap<K, Instant>>, key: &K, now: Instant) -> bool {
    lock(map).get(key).is_some_and(|until| *until > now)
}

fn remember<K: Hash + Eq>(map: &Mutex<HashMap<K, Instant>>, key: K, span: Duration) {
    let (mut map, now) = (lock(map), Instant::now());
    if map.len() >= LIMIT {
        map.retain(|_, until| *until > now);
    }
    if map.len() >= LIMIT {
        map.clear();
    }
    map.insert(key, now + span);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderMap;

    use super::*;
    use crate::oci::repository::Repository;
    use crate::registry::credentials::secret::{Credential, Secret};
    use crate::registry::hosts::endpoint::{Endpoint, Role};
    use crate::registry::hosts::tls::HostTls;
    use crate::registry::source::Asker;
    use crate::tenant::Tenant;

    fn place(host: &str, role: Role) -> Place {
        let endpoint = Endpoint {
            name: host.to_owned(),
            base: format!("https://{host}/v2/").parse().expect("a URL"),
            role,
            pulls: true,
            resolves: true,
            namespace: None,
            headers: HeaderMap::new(),
            tls: HostTls::default(),
            is_named: true,
        };
        let repository = Repository { host: "r".into(), name: "x".into() };
        let source = Source { repository, credential: None };
        Place::new(&Arc::new(endpoint), &Asker { source, tenant: Tenant::Unnamed })
    }

    fn places() -> Vec<Place> {
        let mirror = Role::Mirror { authoritative: false };
        vec![place("one", mirror), place("two", mirror), place("r", Role::Server)]
    }

    fn order(mirrors: &Mirrors, size: u64) -> Vec<String> {
        let digest = Digest::sha256(b"x");
        mirrors.order(places(), Some(&digest), size).iter().map(|place| place.endpoint.name.clone()).collect()
    }

    fn unreachable() -> Error {
        Error::Unreachable { host: "h".into(), reason: "refused".into() }
    }

    #[test]
    fn mirrors_are_asked_in_their_order_and_the_fastest_first_for_what_is_large() {
        let mirrors = Mirrors::default();
        assert_eq!(order(&mirrors, 1), ["one", "two", "r"]);
        let sent = |at: usize, seconds: f64| {
            let mut meter = mirrors.meter(&places()[at], &Digest::sha256(b"x"));
            meter.add(100 << 20, Duration::from_secs_f64(seconds));
        };
        sent(0, 4.0);
        assert_eq!(order(&mirrors, LARGE), ["two", "one", "r"], "it becomes known");
        sent(1, 1.0);
        // The registry itself is asked last, however fast it is: the operator wants it to be spared.
        sent(2, 0.1);
        assert_eq!(order(&mirrors, LARGE), ["two", "one", "r"]);
        assert_eq!(order(&mirrors, 1), ["one", "two", "r"]);
        mirrors.meter(&places()[1], &Digest::sha256(b"x")).add(1, Duration::from_secs(100));
        assert_eq!(order(&mirrors, LARGE), ["two", "one", "r"], "too little to say anything");
    }

    #[test]
    fn one_that_cannot_be_reached_rests_and_one_without_the_content_is_left_out() {
        let mirrors = Mirrors::default();
        let digest = Digest::sha256(b"x");
        for _ in 0..FAILURES {
            assert_eq!(order(&mirrors, 1), ["one", "two", "r"]);
            mirrors.failed(&places()[0], Some(&digest), &unreachable());
        }
        assert_eq!(order(&mirrors, 1), ["two", "r", "one"]);
        mirrors.answered(&places()[0], Duration::ZERO);
        assert_eq!(order(&mirrors, 1), ["one", "two", "r"]);
        let missing = Error::NotFound { host: "h".into(), what: "x".into(), detail: String::new() };
        mirrors.failed(&places()[1], Some(&digest), &missing);
        mirrors.failed(&places()[2], Some(&digest), &missing);
        assert_eq!(order(&mirrors, 1), ["one", "r", "two"], "it is asked last, and only for who asked");
        let mut alice = places();
        let alices = Credential::of_user("alice", Secret::new("x"));
        alice.iter_mut().for_each(|place| place.source.credential = Some(Arc::new(alices.clone())));
        assert_eq!(mirrors.order(alice, Some(&digest), 1)[1].endpoint.name, "two");
        mirrors.is_wrong(&places()[1], &digest);
        assert_eq!(order(&mirrors, 1), ["one", "r"], "what is wrong is wrong for all");
        let other = mirrors.order(places(), Some(&Digest::sha256(b"y")), 1);
        assert_eq!(other.len(), 3, "it may have other content");
        let status =
            Error::Status { host: "h".into(), status: 500, retry_after: None, detail: String::new() };
        for _ in 0..FAILURES {
            mirrors.failed(&places()[0], Some(&digest), &status);
        }
        assert_eq!(order(&mirrors, 1), ["one", "r"], "one request says nothing of others");
    }

    #[test]
    fn a_mirror_is_waited_for_as_long_as_it_usually_takes() {
        let mirrors = Mirrors::default();
        let place = &places()[0];
        assert_eq!(mirrors.patience(place), UNKNOWN_WAIT);
        for milliseconds in 0..100 {
            mirrors.answered(place, Duration::from_millis(10 * milliseconds));
        }
        // Of the last 64: 360 to 990 ms.
        assert_eq!(mirrors.patience(place), Duration::from_millis(960));
        for _ in 0..WAITS {
            mirrors.answered(place, Duration::from_millis(1));
        }
        assert_eq!(mirrors.patience(place), SHORTEST_WAIT);
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mirrors = Mirrors::default();
        for number in 0..3 * LIMIT {
            let place = place(&format!("h{number}"), Role::Server);
            mirrors.is_wrong(&place, &Digest::sha256(b"x"));
            mirrors.lacks(&place, &Digest::sha256(b"x"));
            mirrors.note(&place, |seen| seen.failures += 1);
        }
        let sizes = [lock(&mirrors.wrong).len(), lock(&mirrors.lacking).len(), lock(&mirrors.seen).len()];
        assert!(sizes.iter().all(|size| *size <= LIMIT), "{sizes:?}");
    }
}
