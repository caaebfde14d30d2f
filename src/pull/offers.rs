//! What the askers of a blob bring to its download: places to fetch it from.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Error;
use super::progress::Counter;
use crate::registry::transport::Source;

/// The sources of one download, in the order they came, and how each fared.
#[derive(Debug, Default)]
pub(super) struct Offers {
    sources: Mutex<Vec<Offer>>,
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
    /// Was given up for another one; comes again when the others failed.
    Slow,
    Failed(Arc<Error>),
}

/// Sources of one download. Who comes later waits for the outcome and starts another.
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
        if sources.len() < LIMIT && !sources.iter().any(|known| known.source == *source) {
            sources.push(Offer { source: source.clone(), state: State::New });
        }
    }

    /// The source to fetch from: one that was not tried, else one that was only slow.
    pub fn next(&self) -> Option<Source> {
        let mut sources = self.lock();
        let new = sources.iter().position(|offer| matches!(offer.state, State::New));
        let next = new.or_else(|| sources.iter().position(|offer| matches!(offer.state, State::Slow)))?;
        sources[next].state = State::Current;
        Some(sources[next].source.clone())
    }

    /// Whether there is a source that was not tried.
    pub fn has_new(&self) -> bool {
        self.lock().iter().any(|offer| matches!(offer.state, State::New))
    }

    /// `source` was given up for another one.
    pub fn was_slow(&self, source: &Source) {
        self.set(source, State::Slow);
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

    fn set(&self, source: &Source, state: State) {
        if let Some(offer) = self.lock().iter_mut().find(|offer| offer.source == *source) {
            offer.state = state;
        }
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
        assert_eq!(offers.next().as_ref(), Some(&one));
        assert!(!offers.has_new());
        offers.add(&two);
        offers.add(&one);
        assert!(offers.has_new());
        offers.was_slow(&one);
        assert_eq!(offers.next().as_ref(), Some(&two));
        offers.failed(&two, Arc::new(Error::Stopped));
        assert_eq!(offers.next().as_ref(), Some(&one));
        assert!(offers.next().is_none());
        assert!(offers.error(&two).is_some() && offers.error(&one).is_none());
    }
}
