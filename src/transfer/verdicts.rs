//! What was learnt of sources and of content, so that it is not learnt again soon.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::oci::digest::Digest;
use crate::oci::repository::Repository;
use crate::registry::source::Source;
use crate::transfer::error::Error;
use crate::transfer::needed::{Form, Needed};

/// Which repositories sent wrong bytes, and which content cannot be used.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// Repositories that sent other bytes than those of a digest, and when.
    liars: Mutex<HashMap<(Repository, Digest), Instant>>,
    /// Content that is what its digest names and cannot be used, whoever sends it.
    refused: Mutex<HashMap<(Digest, Form), Refused>>,
}

/// Why content cannot be used, and the repositories that sent it.
#[derive(Debug)]
struct Refused {
    error: Arc<Error>,
    origins: Vec<Repository>,
    since: Instant,
}

/// How long a source that sent wrong bytes of a digest is asked for it only when no other is left.
const DISTRUST: Duration = Duration::from_secs(600);
/// Repositories and digests of which that is remembered.
const LIARS_LIMIT: usize = 1024;
/// How long content that cannot be used is not fetched again. It would be no better; the version of ocivol may be.
const REFUSED_FOR: Duration = Duration::from_secs(600);
/// How much of it is remembered.
const REFUSED_LIMIT: usize = 256;
/// Repositories of each of them.
const REFUSED_ORIGINS_LIMIT: usize = 16;

impl Verdicts {
    /// Why `needed` cannot be used, if the repository of `source` sent it not long ago: who knows only its digest is told nothing.
    pub fn refusal(&self, needed: &Needed, source: &Source) -> Option<Arc<Error>> {
        let refused = lock(&self.refused);
        let known = refused.get(&(needed.blob.digest.clone(), needed.form.clone()))?;
        let is_theirs = known.origins.contains(&source.repository) && known.since.elapsed() < REFUSED_FOR;
        is_theirs.then(|| Arc::clone(&known.error))
    }

    /// Remembers that `source` sent content that cannot be used, if that is what `error` says.
    pub fn refuse(&self, needed: &Needed, source: &Source, error: &Arc<Error>) {
        if !matches!(**error, Error::Unpack { .. }) {
            return;
        }
        let mut refused = lock(&self.refused);
        refused.retain(|_, known| known.since.elapsed() < REFUSED_FOR);
        let key = (needed.blob.digest.clone(), needed.form.clone());
        if refused.len() >= REFUSED_LIMIT && !refused.contains_key(&key) {
            return;
        }
        let known = refused.entry(key).or_insert_with(|| Refused {
            error: Arc::clone(error),
            origins: Vec::new(),
            since: Instant::now(),
        });
        let repository = &source.repository;
        if known.origins.len() < REFUSED_ORIGINS_LIMIT && !known.origins.contains(repository) {
            known.origins.push(repository.clone());
        }
    }

    /// Whether `source` sent wrong bytes of `digest` not long ago.
    pub fn is_distrusted(&self, source: &Source, digest: &Digest) -> bool {
        let liars = lock(&self.liars);
        let known = liars.get(&(source.repository.clone(), digest.clone()));
        known.is_some_and(|when| when.elapsed() < DISTRUST)
    }

    /// Remembers that `source` sent wrong bytes of `digest`.
    pub fn distrust(&self, source: &Source, digest: &Digest) {
        let mut liars = lock(&self.liars);
        if liars.len() >= LIARS_LIMIT {
            liars.retain(|_, when| when.elapsed() < DISTRUST);
        }
        if liars.len() < LIARS_LIMIT {
            liars.insert((source.repository.clone(), digest.clone()), Instant::now());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
