//! What the askers of a blob bring to its download: places to fetch it from.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::pull::error::Error;
use crate::pull::progress::Counter;
use crate::registry::source::Source;

/// The sources of one download, in the order they came, and how each fared.
#[derive(Debug, Default)]
pub(super) struct Offers {
    sources: Mutex<Vec<Offer>>,
    /// Somebody offered another one.
    changed: Notify,
    replaced: AtomicUsize,
    returns: AtomicUsize,
    /// How far the download is.
    pub counter: Arc<Counter>,
}

#[derive(Debug)]
struct Offer {
    source: Source,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    New,
    /// Being fetched from.
    Current,
    /// Was given up for another one, at this rate in bytes per second; comes again when the others are no better.
    Slow(f64),
    Failed(Arc<Error>),
}

/// Sources of one download. Beyond, a new one takes the place of one that did badly; while there is none such, who comes
/// waits for the outcome and starts another.
const LIMIT: usize = 16;

impl Offers {
    /// The first asker's source.
    pub fn new(source: &Source) -> Self {
        let offers = Self::default();
        offers.add(source);
        offers
    }

    /// Another asker's source.
    pub fn add(&self, source: &Source) {
        let mut sources = self.lock();
        if sources.iter().any(|known| known.source == *source) {
            return;
        }
        if sources.len() >= LIMIT {
            // The slowest, or else one that failed.
            let rate = |offer: &Offer| if let State::Slow(rate) = offer.state { Some(rate) } else { None };
            let slow = (0..sources.len()).filter(|at| rate(&sources[*at]).is_some());
            let slowest = slow.min_by(|one, two| {
                rate(&sources[*one]).partial_cmp(&rate(&sources[*two])).unwrap_or(std::cmp::Ordering::Equal)
            });
            let failed = || sources.iter().position(|offer| matches!(offer.state, State::Failed(_)));
            let Some(worst) = slowest.or_else(failed) else { return };
            sources.remove(worst);
        }
        sources.push(Offer { source: source.clone(), state: State::New });
        self.changed.notify_one();
    }

    /// The sources to fetch from: those that were not tried, else those that were only slow, faster ones first.
    pub fn candidates(&self) -> Vec<Source> {
        let sources = self.lock();
        let new = |offer: &&Offer| matches!(offer.state, State::New);
        let untried: Vec<Source> = sources.iter().filter(new).map(|offer| offer.source.clone()).collect();
        if !untried.is_empty() {
            return untried;
        }
        let rate = |offer: &Offer| if let State::Slow(rate) = offer.state { Some(rate) } else { None };
        let mut slow: Vec<(f64, Source)> =
            sources.iter().filter_map(|offer| Some((rate(offer)?, offer.source.clone()))).collect();
        slow.sort_by(|(one, _), (two, _)| two.total_cmp(one));
        slow.into_iter().map(|(_, source)| source).collect()
    }

    /// Ends when a source was offered since this was last asked.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// `source` is being fetched from.
    pub fn start(&self, source: &Source) {
        if let Some(State::Slow(_)) = self.set(source, State::Current) {
            self.returns.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether there is a source that was not tried yet.
    pub fn has_untried(&self) -> bool {
        self.lock().iter().any(|offer| matches!(offer.state, State::New))
    }

    /// Whether another source is worth trying for one that delivers `rate` bytes per second.
    pub fn has_better_than(&self, rate: f64) -> bool {
        self.lock().iter().any(|offer| match offer.state {
            State::New => true,
            // By a factor, so that two slow sources do not take turns without end.
            State::Slow(other) => other > 2.0 * rate,
            State::Current | State::Failed(_) => false,
        })
    }

    /// How often a source was given up for another one.
    pub fn replaced(&self) -> usize {
        self.replaced.load(Ordering::Relaxed)
    }

    /// How often a source was tried again that was given up before.
    pub fn returns(&self) -> usize {
        self.returns.load(Ordering::Relaxed)
    }

    /// `source` was given up for another one.
    pub fn was_slow(&self, source: &Source, rate: f64) {
        self.replaced.fetch_add(1, Ordering::Relaxed);
        self.set(source, State::Slow(rate));
    }

    /// `source` cannot deliver.
    pub fn failed(&self, source: &Source, error: Arc<Error>) {
        self.set(source, State::Failed(error));
    }

    /// Why `source` failed, if it was tried.
    pub fn error(&self, source: &Source) -> Option<Arc<Error>> {
        let sources = self.lock();
        let offer = sources.iter().find(|offer| offer.source == *source)?;
        if let State::Failed(error) = &offer.state { Some(Arc::clone(error)) } else { None }
    }

    /// Returns what was before.
    fn set(&self, source: &Source, state: State) -> Option<State> {
        let mut sources = self.lock();
        let offer = sources.iter_mut().find(|offer| offer.source == *source)?;
        Some(std::mem::replace(&mut offer.state, state))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Offer>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(host: &str) -> Source {
        Source { host: host.into(), repository: "r".into(), credential: None }
    }

    #[test]
    fn a_slow_source_comes_again_when_the_others_failed() {
        let (one, two) = (source("one"), source("two"));
        let offers = Offers::new(&one);
        assert_eq!(offers.candidates(), std::slice::from_ref(&one));
        offers.start(&one);
        assert!(!offers.has_better_than(0.0));
        offers.add(&two);
        offers.add(&one);
        assert!(offers.has_better_than(1e9));
        offers.was_slow(&one, 9e5);
        assert_eq!(offers.candidates(), std::slice::from_ref(&two));
        offers.start(&two);
        assert!(offers.has_better_than(1e4) && !offers.has_better_than(8e5));
        offers.failed(&two, Arc::new(Error::Stopped));
        assert_eq!(offers.candidates(), std::slice::from_ref(&one));
        offers.failed(&one, Arc::new(Error::Stopped));
        assert!(offers.candidates().is_empty() && offers.error(&two).is_some());
    }

    #[test]
    fn regression_an_untried_source_is_tried_however_many_were_slow() {
        let offers = Offers::new(&source("0"));
        for number in 1..LIMIT {
            offers.add(&source(&number.to_string()));
        }
        let late = source("late");
        offers.add(&late);
        assert!(!offers.candidates().contains(&late), "nobody has done badly yet");
        for number in 0..LIMIT {
            let it = source(&number.to_string());
            offers.start(&it);
            offers.was_slow(&it, 1e4 + number as f64);
        }
        assert_eq!(offers.returns(), 0);
        offers.add(&late);
        assert!(offers.has_untried() && offers.has_better_than(1e9));
        assert_eq!(offers.candidates(), std::slice::from_ref(&late));
        offers.start(&late);
        offers.failed(&late, Arc::new(Error::Stopped));
        let slow = offers.candidates();
        assert!(slow[0].host == "15" && slow.len() == LIMIT - 1, "the slowest made place: {slow:?}");
        offers.start(&slow[0]);
        assert_eq!(offers.returns(), 1);
    }
}
