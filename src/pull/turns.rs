//! How many downloads run: so many per registry, and so many on the node.
//!
//! The bound per registry keeps one that is slow from holding up the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits for downloads.
#[derive(Debug)]
pub(super) struct Downloads {
    per_host: usize,
    all: Arc<Semaphore>,
    hosts: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// The right to download, until dropped.
#[derive(Debug)]
pub(super) struct Permit {
    _host: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// Registries that can be busy at the same time.
pub const HOSTS: usize = 8;

impl Downloads {
    pub fn new(per_host: usize) -> Self {
        Self { per_host, all: Arc::new(Semaphore::new(per_host * HOSTS)), hosts: Mutex::default() }
    }

    /// Waits for a turn at `host`.
    pub async fn turn(&self, host: &str) -> Permit {
        // Semaphores here are never closed; if one were, this would wait and not overrun the bound.
        let first = self.host(host).acquire_owned().await;
        let second = Arc::clone(&self.all).acquire_owned().await;
        match (first, second) {
            (Ok(host), Ok(all)) => Permit { _host: host, _all: all },
            _ => std::future::pending().await,
        }
    }

    fn host(&self, host: &str) -> Arc<Semaphore> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = hosts.get(host).and_then(Weak::upgrade) {
            return known;
        }
        hosts.retain(|_, semaphore| semaphore.strong_count() > 0);
        let semaphore = Arc::new(Semaphore::new(self.per_host));
        hosts.insert(host.to_owned(), Arc::downgrade(&semaphore));
        semaphore
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_registry_does_not_take_all_turns() {
        let downloads = Downloads::new(2);
        let held = [downloads.turn("slow").await, downloads.turn("slow").await];
        let third = tokio::time::timeout(std::time::Duration::from_millis(20), downloads.turn("slow"));
        assert!(third.await.is_err(), "the third waits");
        let _other = downloads.turn("fast").await;
        drop(held);
        let _third = downloads.turn("slow").await;
        assert!(downloads.hosts.lock().expect("no panic").len() <= 2);
    }
}
