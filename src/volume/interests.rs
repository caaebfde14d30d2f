//! Who will ask for a pull again: targets whose call ended before the pull did. kubelet asks again for each of them, after up to two
//! minutes, until it unpublishes the volume.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::failure::one_line;
use crate::kube::pull_secrets::Pod;
use crate::pull::progress::{Progress, Snapshot};
use crate::pull::puller::Shared;
use crate::transfer::flight::{Interest, Waiter};

/// The interests of all targets.
#[derive(Debug, Default)]
pub(in crate::volume) struct Interests {
    waiting: Mutex<HashMap<PathBuf, Interest>>,
    /// Who waits for which pull, by target: for people who look.
    waiters: Mutex<HashMap<PathBuf, (Weak<Progress>, String)>>,
}

/// Targets that are remembered: as many as are published at a time. Of more, pulls only end later.
const LIMIT: usize = 1024;
const _: () = assert!(LIMIT as u64 == crate::host::limits::PUBLISHES);

/// A call that waits for a pull. When it ends before the pull does, its target is going to ask again.
pub(in crate::volume) struct Waiting<'a> {
    interests: &'a Interests,
    target: &'a Path,
    pull: Option<Waiter<Progress, Shared>>,
    is_over: bool,
}

impl Waiting<'_> {
    /// The outcome; `None` when there is none: the pull was stopped, or has a fault.
    pub(in crate::volume) async fn wait(&mut self) -> Option<Shared> {
        let outcome = self.pull.as_mut()?.wait().await;
        self.is_over = true;
        outcome
    }

    /// How far the pull is.
    pub(in crate::volume) fn snapshot(&self) -> Snapshot {
        self.pull.as_ref().map(|pull| pull.state().snapshot()).unwrap_or_default()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        match self.pull.take().filter(|_| !self.is_over) {
            Some(pull) => self.interests.keep(self.target, pull.leave()),
            None => drop(self.interests.waiters().remove(self.target)),
        }
    }
}

impl Interests {
    /// A call of `pod` for `target` waits for `pull`.
    pub(in crate::volume) fn waiting<'a>(
        &'a self,
        target: &'a Path,
        pod: Option<&Pod>,
        pull: Waiter<Progress, Shared>,
    ) -> Waiting<'a> {
        if let Some(Pod { namespace, name, .. }) = pod {
            let mut waiters = self.waiters();
            if waiters.len() >= 2 * LIMIT {
                waiters.retain(|_, (progress, _)| progress.strong_count() > 0);
            }
            waiters.insert(
                target.to_owned(),
                (Arc::downgrade(pull.state()), one_line(&format!("{namespace}/{name}"))),
            );
        }
        let before = self.lock().remove(target);
        drop(before);
        Waiting { interests: self, target, pull: Some(pull), is_over: false }
    }

    /// `target` is going to ask again.
    fn keep(&self, target: &Path, interest: Interest) {
        let mut waiting = self.lock();
        if waiting.len() >= LIMIT {
            waiting.retain(|_, interest| !interest.is_over());
        }
        if waiting.len() < LIMIT {
            waiting.insert(target.to_owned(), interest);
        }
    }

    /// `target` will not ask again: a pull that nobody else wants ends.
    pub(in crate::volume) fn give_up(&self, target: &Path) {
        self.waiters().remove(target);
        let interest = self.lock().remove(target);
        if let Some(interest) = interest {
            interest.give_up();
        }
    }

    /// The pods that wait for the pull that is so far, or are going to ask for it again.
    pub(in crate::volume) fn pods_of(&self, pull: &Arc<Progress>) -> Vec<String> {
        let waiters = self.waiters();
        let of_pull = waiters.values().filter(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(pull)));
        let mut pods: Vec<String> = of_pull.map(|(_, pod)| pod.clone()).collect();
        pods.sort();
        pods
    }

    fn waiters(&self) -> MutexGuard<'_, HashMap<PathBuf, (Weak<Progress>, String)>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Interest>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
