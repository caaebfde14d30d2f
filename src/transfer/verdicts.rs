//! What was learnt of sources and of content, so that it is not learnt again soon.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::oci::digest::Digest;
use crate::oci::repository::Repository;
use crate::registry::source::{Asker, Source};
use crate::tenant::Tenant;
use crate::transfer::error::Error;
use crate::transfer::needed::{Form, Needed};

/// Which repositories sent wrong bytes, and which content cannot be used.
#[derive(Debug)]
pub struct Verdicts {
    /// Repositories that sent other bytes than those of a digest.
    liars: Mutex<Memory<(Repository, Digest), ()>>,
    /// Content that is what its digest names and cannot be used, whoever sends it.
    refused: Mutex<Memory<(Digest, Form), Refused>>,
}

/// Why content cannot be used, and the repositories that sent it.
#[derive(Debug)]
struct Refused {
    error: Arc<Error>,
    origins: Vec<Repository>,
}

/// How long something is remembered. A source may be mended by then; content would be no better, but the version of ocivol may be.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// Repositories and digests that are remembered for wrong bytes.
const LIARS_LIMIT: usize = 1024;
/// Content that is remembered as of no use.
const REFUSED_LIMIT: usize = 256;
/// Repositories that are remembered of each of them.
const REFUSED_ORIGINS_LIMIT: usize = 16;

impl Default for Verdicts {
    fn default() -> Self {
        Self { liars: Mutex::new(Memory::new(LIARS_LIMIT)), refused: Mutex::new(Memory::new(REFUSED_LIMIT)) }
    }
}

impl Verdicts {
    /// Why `needed` cannot be used, if the repository of `source` sent it not long ago: who knows only its digest is told nothing.
    pub fn refusal(&self, needed: &Needed, source: &Source) -> Option<Arc<Error>> {
        let mut refused = lock(&self.refused);
        let known = refused.get(&(needed.blob.digest.clone(), needed.form.clone()))?;
        known.origins.contains(&source.repository).then(|| Arc::clone(&known.error))
    }

    /// Remembers that the source of `asker` sent content that cannot be used, if that is what `error` says.
    pub fn refuse(&self, needed: &Needed, asker: &Asker, error: &Arc<Error>) {
        if !matches!(**error, Error::Unpack { .. }) {
            return;
        }
        let mut refused = lock(&self.refused);
        let key = (needed.blob.digest.clone(), needed.form.clone());
        let repository = asker.source.repository.clone();
        match refused.get(&key) {
            Some(known) => {
                if known.origins.len() < REFUSED_ORIGINS_LIMIT && !known.origins.contains(&repository) {
                    known.origins.push(repository);
                }
            }
            None => {
                let known = Refused { error: Arc::clone(error), origins: vec![repository] };
                refused.insert(&asker.tenant, key, known);
            }
        }
    }

    /// Whether `source` sent wrong bytes of `digest` not long ago.
    pub fn is_distrusted(&self, source: &Source, digest: &Digest) -> bool {
        lock(&self.liars).get(&(source.repository.clone(), digest.clone())).is_some()
    }

    /// Remembers that the source of `asker` sent wrong bytes of `digest`.
    pub fn distrust(&self, asker: &Asker, digest: &Digest) {
        let key = (asker.source.repository.clone(), digest.clone());
        lock(&self.liars).insert(&asker.tenant, key, ());
    }
}

/// So much that was learnt not long ago. When there is more, the tenant of which most is known loses the oldest.
#[derive(Debug)]
struct Memory<K, V> {
    limit: usize,
    known: HashMap<K, Learnt<V>>,
}

#[derive(Debug)]
struct Learnt<V> {
    tenant: Tenant,
    since: Instant,
    what: V,
}

impl<K: Clone + Eq + Hash, V> Memory<K, V> {
    fn new(limit: usize) -> Self {
        Self { limit, known: HashMap::new() }
    }

    fn get(&mut self, key: &K) -> Option<&mut V> {
        let learnt = self.known.get_mut(key).filter(|learnt| learnt.since.elapsed() < REMEMBERED_FOR)?;
        Some(&mut learnt.what)
    }

    fn insert(&mut self, tenant: &Tenant, key: K, what: V) {
        if self.known.len() >= self.limit && !self.known.contains_key(&key) {
            self.known.retain(|_, learnt| learnt.since.elapsed() < REMEMBERED_FOR);
        }
        while self.known.len() >= self.limit && !self.known.contains_key(&key) {
            let mut tenants: HashMap<&Tenant, usize> = HashMap::new();
            for learnt in self.known.values() {
                *tenants.entry(&learnt.tenant).or_default() += 1;
            }
            let most = tenants.into_iter().max_by_key(|(_, count)| *count).map(|(tenant, _)| tenant.clone());
            let theirs = self.known.iter().filter(|(_, learnt)| Some(&learnt.tenant) == most.as_ref());
            let Some(oldest) = theirs.min_by_key(|(_, learnt)| learnt.since).map(|(key, _)| key.clone())
            else {
                return;
            };
            self.known.remove(&oldest);
        }
        self.known.insert(key, Learnt { tenant: tenant.clone(), since: Instant::now(), what });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_no_tenant_makes_what_another_learnt_forgotten() {
        let (loud, quiet) = (Tenant::of_namespace(Some("loud")), Tenant::of_namespace(Some("quiet")));
        let mut memory = Memory::new(4);
        memory.insert(&quiet, 0, "quiet");
        for number in 1..100 {
            memory.insert(&loud, number, "loud");
        }
        assert_eq!(memory.known.len(), 4);
        assert_eq!(memory.get(&0).copied(), Some("quiet"));
        assert_eq!(memory.get(&99).copied(), Some("loud"));
        assert!(memory.get(&1).is_none(), "the oldest is gone");
        memory.insert(&quiet, 1, "quiet");
        assert!(memory.get(&0).is_some() && memory.get(&1).is_some(), "who has less loses nothing");
    }
}
