//! Where a blob can be fetched from: each asker brings the place that it named itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::host::tenants::Tenants;
use crate::registry::source::{Asker, Source};
use crate::tenant::Tenant;
use crate::transfer::counter::Counter;
use crate::transfer::error::Error;

/// The sources of one transfer, in the order they came, and how each fared.
#[derive(Debug, Default)]
pub struct Sources {
    known: Mutex<Vec<Known>>,
    /// Another one came.
    changed: Notify,
    /// Who waits for the transfer.
    pub tenants: Tenants,
    /// How far the transfer is.
    pub counter: Arc<Counter>,
}

#[derive(Debug)]
struct Known {
    asker: Asker,
    /// Bytes of it were wrong before: it is tried when nothing else is left.
    distrusted: bool,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Untried,
    /// Being fetched from.
    Running,
    /// Was given up for another one, at this rate in bytes per second; comes again when the others are no better.
    Slow(f64),
    Failed(Arc<Error>),
}

/// Sources that one tenant may have in one transfer. Its own bound: no tenant keeps another's source from being tried. Beyond,
/// a new one takes the place of one that did badly; while there is none such, who comes waits for the outcome.
const LIMIT: usize = 16;

impl Sources {
    /// Adds an asker's source.
    pub fn add(&self, asker: &Asker, distrusted: bool) {
        let mut known = self.lock();
        if known.iter().any(|known| known.asker == *asker) {
            return;
        }
        if known.iter().filter(|known| known.asker.tenant == asker.tenant).count() >= LIMIT {
            let own = |at: &usize| known[*at].asker.tenant == asker.tenant;
            let rate = |at: &usize| if let State::Slow(rate) = known[*at].state { Some(rate) } else { None };
            let slow = (0..known.len()).filter(own).filter_map(|at| Some((rate(&at)?, at)));
            let slowest = slow.min_by(|(one, _), (two, _)| one.total_cmp(two)).map(|(_, at)| at);
            let failed =
                || (0..known.len()).filter(own).find(|at| matches!(known[*at].state, State::Failed(_)));
            let Some(worst) = slowest.or_else(failed) else { return };
            known.remove(worst);
        }
        known.push(Known { asker: asker.clone(), distrusted, state: State::Untried });
        self.changed.notify_one();
    }

    /// The sources to begin with when none runs: those that were not tried, else those that were only slow, faster ones first.
    pub fn candidates(&self) -> Vec<Asker> {
        if self.has_challenger() {
            return self.challengers();
        }
        let known = self.lock();
        let rate = |known: &Known| if let State::Slow(rate) = known.state { Some(rate) } else { None };
        let mut slow: Vec<(f64, Asker)> =
            known.iter().filter_map(|known| Some((rate(known)?, known.asker.clone()))).collect();
        slow.sort_by(|(one, _), (two, _)| two.total_cmp(one));
        if slow.is_empty() {
            drop(known);
            return self.challengers();
        }
        slow.into_iter().map(|(_, asker)| asker).collect()
    }

    /// The sources to compare with one that runs: those that were not tried, of the tenant first of which fewest were. Those
    /// that are distrusted are no candidates while there are others, and those of a repository that is being fetched from are
    /// none at all: it would be no faster, and its download is one.
    pub fn challengers(&self) -> Vec<Asker> {
        let known = self.lock();
        let mut tried: HashMap<&Tenant, usize> = HashMap::new();
        for known in known.iter().filter(|known| !matches!(known.state, State::Untried)) {
            *tried.entry(&known.asker.tenant).or_default() += 1;
        }
        let of_those = |distrusted| {
            let mut chosen: Vec<&Known> =
                known.iter().filter(|one| one.distrusted == distrusted && may_start(one, &known)).collect();
            chosen.sort_by_key(|known| tried.get(&known.asker.tenant).copied().unwrap_or_default());
            chosen.into_iter().map(|known| known.asker.clone()).collect::<Vec<_>>()
        };
        let trusted = of_those(false);
        if trusted.is_empty() { of_those(true) } else { trusted }
    }

    /// Whether a source is worth racing with one that runs.
    pub fn has_challenger(&self) -> bool {
        let known = self.lock();
        known.iter().any(|one| !one.distrusted && may_start(one, &known))
    }

    /// Ends when a source came since this was last asked.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// It is being fetched from.
    pub fn start(&self, asker: &Asker) {
        self.set(asker, State::Running);
    }

    /// It was given up for another one.
    pub fn was_slow(&self, asker: &Asker, rate: f64) {
        self.set(asker, State::Slow(rate));
    }

    /// It cannot deliver.
    pub fn failed(&self, asker: &Asker, error: Arc<Error>) {
        self.set(asker, State::Failed(error));
    }

    /// Why the source of `asker` failed, if it was tried.
    pub fn error(&self, source: &Source) -> Option<Arc<Error>> {
        let known = self.lock();
        known.iter().filter(|known| known.asker.source == *source).find_map(|known| match &known.state {
            State::Failed(error) => Some(Arc::clone(error)),
            _ => None,
        })
    }

    fn set(&self, asker: &Asker, state: State) {
        if let Some(known) = self.lock().iter_mut().find(|known| known.asker == *asker) {
            known.state = state;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a source was not tried, and no other runs in its repository.
fn may_start(one: &Known, all: &[Known]) -> bool {
    let runs_there = |other: &Known| {
        matches!(other.state, State::Running) && other.asker.source.repository == one.asker.source.repository
    };
    matches!(one.state, State::Untried) && !all.iter().any(runs_there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::repository::Repository;

    fn asker(tenant: &str, host: &str) -> Asker {
        let repository = Repository { host: host.into(), name: "r".into() };
        Asker { source: Source { repository, credential: None }, tenant: Tenant::of_namespace(Some(tenant)) }
    }

    #[test]
    fn a_distrusted_source_comes_after_one_that_was_only_slow() {
        let (honest, liar) = (asker("a", "one"), asker("a", "two"));
        let sources = Sources::default();
        sources.add(&honest, false);
        sources.add(&liar, true);
        sources.start(&honest);
        sources.was_slow(&honest, 9e5);
        assert_eq!(sources.candidates(), std::slice::from_ref(&honest));
        sources.start(&honest);
        sources.failed(&honest, Arc::new(Error::Fault));
        assert_eq!(sources.candidates(), [liar]);
    }

    #[test]
    fn a_slow_source_comes_again_when_the_others_failed() {
        let (one, two) = (asker("a", "one"), asker("a", "two"));
        let sources = Sources::default();
        sources.add(&one, false);
        assert_eq!(sources.candidates(), std::slice::from_ref(&one));
        sources.start(&one);
        assert!(!sources.has_challenger());
        sources.add(&two, false);
        sources.add(&one, false);
        assert!(sources.has_challenger());
        sources.was_slow(&one, 9e5);
        assert_eq!(sources.candidates(), std::slice::from_ref(&two));
        sources.start(&two);
        sources.failed(&two, Arc::new(Error::Fault));
        assert_eq!(sources.candidates(), std::slice::from_ref(&one));
        sources.failed(&one, Arc::new(Error::Fault));
        assert!(sources.candidates().is_empty() && sources.error(&two.source).is_some());
    }

    #[test]
    fn regression_no_tenant_keeps_anothers_source_from_being_tried() {
        let sources = Sources::default();
        for number in 0..LIMIT + 4 {
            sources.add(&asker("loud", &number.to_string()), false);
        }
        let late = asker("quiet", "late");
        sources.add(&late, false);
        assert_eq!(sources.challengers().len(), LIMIT + 1);
        sources.start(&asker("loud", "0"));
        assert_eq!(sources.challengers().first(), Some(&late), "the tenant of which none was tried");
        // One that did badly makes place.
        let last = asker("loud", "last");
        sources.add(&last, false);
        assert!(!sources.challengers().contains(&last));
        sources.was_slow(&asker("loud", "0"), 1e4);
        sources.add(&last, false);
        assert!(sources.challengers().contains(&last));
    }

    #[test]
    fn a_repository_is_not_raced_with_itself() {
        let (one, two) = (asker("a", "host"), asker("b", "host"));
        let sources = Sources::default();
        sources.add(&one, false);
        sources.start(&one);
        sources.add(&two, false);
        assert!(!sources.has_challenger() && sources.challengers().is_empty());
        sources.failed(&one, Arc::new(Error::Fault));
        assert_eq!(sources.candidates(), std::slice::from_ref(&two));
    }

    #[test]
    fn who_sent_wrong_bytes_is_the_last_resort() {
        let (bad, good) = (asker("a", "bad"), asker("b", "good"));
        let sources = Sources::default();
        sources.add(&bad, true);
        assert!(!sources.has_challenger());
        assert_eq!(sources.candidates(), std::slice::from_ref(&bad));
        sources.add(&good, false);
        assert_eq!(sources.candidates(), std::slice::from_ref(&good));
    }
}
