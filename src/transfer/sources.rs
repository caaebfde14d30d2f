//! Where a blob can be fetched from: each asker brings the place that it named itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::host::tenants::Tenants;
use crate::registry::source::{Asker, Source};
use crate::tenant::Tenant;
use crate::transfer::counter::Counter;
use crate::transfer::error::Error;
use crate::transfer::race::SOONER;

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
    /// Was given up for another one, and would have taken so many seconds more; comes again when the others are no better.
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
            let slow = (0..known.len()).filter(own).filter_map(|at| Some((known[at].seconds_left()?, at)));
            let slowest = slow.max_by(|(one, _), (two, _)| one.total_cmp(two)).map(|(_, at)| at);
            let failed =
                || (0..known.len()).filter(own).find(|at| matches!(known[*at].state, State::Failed(_)));
            let Some(worst) = slowest.or_else(failed) else { return };
            known.remove(worst);
        }
        known.push(Known { asker: asker.clone(), distrusted, state: State::Untried });
        self.changed.notify_one();
    }

    /// The sources to begin with when none runs: those that were not tried, else those that were only slow, faster ones first.
    /// Those that are distrusted are no candidates while there are others.
    pub fn candidates(&self) -> Vec<Asker> {
        let known = self.lock();
        let untried = |distrusted| untried(&known, distrusted);
        let mut slow: Vec<(f64, Asker)> =
            known.iter().filter_map(|known| Some((known.seconds_left()?, known.asker.clone()))).collect();
        slow.sort_by(|(one, _), (two, _)| one.total_cmp(two));
        let slow: Vec<Asker> = slow.into_iter().map(|(_, asker)| asker).collect();
        [untried(false), slow, untried(true)].into_iter().find(|those| !those.is_empty()).unwrap_or_default()
    }

    /// The sources worth racing with one that runs, and takes `seconds_left`: those that were not tried, and those that were given up
    /// and are now clearly faster. None that is distrusted, and none of a repository that is being fetched from: it would be no
    /// faster, and its download is one.
    pub fn challengers(&self, seconds_left: f64) -> Vec<Asker> {
        let known = self.lock();
        let mut chosen = untried(&known, false);
        let faster = known.iter().filter(|one| {
            !one.distrusted
                && one.seconds_left().is_some_and(|slow| SOONER * slow < seconds_left)
                && !runs_there(one, &known)
        });
        chosen.extend(faster.map(|one| one.asker.clone()));
        chosen
    }

    /// Ends when a source came since this was last asked.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// It is being fetched from.
    pub fn start(&self, asker: &Asker) {
        self.set(asker, State::Running);
    }

    /// It was given up for another one, and would have taken so many seconds more.
    pub fn was_slow(&self, asker: &Asker, seconds_left: f64) {
        self.set(asker, State::Slow(seconds_left));
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

impl Known {
    /// How long it would take, if it was given up for another one.
    fn seconds_left(&self) -> Option<f64> {
        if let State::Slow(seconds_left) = self.state { Some(seconds_left) } else { None }
    }
}

/// The sources that were not tried, and in whose repositories none runs, of the tenant first of which fewest were tried.
fn untried(known: &[Known], distrusted: bool) -> Vec<Asker> {
    let mut tried: HashMap<&Tenant, usize> = HashMap::new();
    for known in known.iter().filter(|known| !matches!(known.state, State::Untried)) {
        *tried.entry(&known.asker.tenant).or_default() += 1;
    }
    let mut chosen: Vec<&Known> = known
        .iter()
        .filter(|one| matches!(one.state, State::Untried) && one.distrusted == distrusted)
        .filter(|one| !runs_there(one, known))
        .collect();
    chosen.sort_by_key(|known| tried.get(&known.asker.tenant).copied().unwrap_or_default());
    chosen.into_iter().map(|known| known.asker.clone()).collect()
}

/// Whether something is being fetched from the repository of `one`.
fn runs_there(one: &Known, known: &[Known]) -> bool {
    known.iter().any(|other| {
        matches!(other.state, State::Running) && other.asker.source.repository == one.asker.source.repository
    })
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
        sources.was_slow(&honest, 50.0);
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
        assert!(sources.challengers(1e6).is_empty());
        sources.add(&two, false);
        sources.add(&one, false);
        assert!(!sources.challengers(1e6).is_empty());
        sources.was_slow(&one, 50.0);
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
        assert_eq!(sources.challengers(100.0).len(), LIMIT + 1);
        sources.start(&asker("loud", "0"));
        assert_eq!(sources.challengers(100.0).first(), Some(&late), "the tenant of which none was tried");
        // One that did badly makes place.
        let last = asker("loud", "last");
        sources.add(&last, false);
        assert!(!sources.challengers(100.0).contains(&last));
        sources.was_slow(&asker("loud", "0"), 500.0);
        sources.add(&last, false);
        assert!(sources.challengers(100.0).contains(&last));
    }

    #[test]
    fn regression_who_was_given_up_is_raced_again_when_the_other_has_become_slower() {
        let (one, two) = (asker("a", "one"), asker("b", "two"));
        let sources = Sources::default();
        sources.add(&one, false);
        sources.add(&two, false);
        sources.start(&one);
        sources.start(&two);
        sources.was_slow(&one, 50.0);
        assert!(sources.challengers(40.0).is_empty() && sources.challengers(55.0).is_empty());
        assert_eq!(sources.challengers(f64::INFINITY), [one]);
    }

    #[test]
    fn a_repository_is_not_raced_with_itself() {
        let (one, two) = (asker("a", "host"), asker("b", "host"));
        let sources = Sources::default();
        sources.add(&one, false);
        sources.start(&one);
        sources.add(&two, false);
        assert!(sources.challengers(1e6).is_empty());
        sources.failed(&one, Arc::new(Error::Fault));
        assert_eq!(sources.candidates(), std::slice::from_ref(&two));
    }

    #[test]
    fn who_sent_wrong_bytes_is_the_last_resort() {
        let (bad, good) = (asker("a", "bad"), asker("b", "good"));
        let sources = Sources::default();
        sources.add(&bad, true);
        assert!(sources.challengers(1e6).is_empty());
        assert_eq!(sources.candidates(), std::slice::from_ref(&bad));
        sources.add(&good, false);
        assert_eq!(sources.candidates(), std::slice::from_ref(&good));
    }
}
