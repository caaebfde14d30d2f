//! Who will ask for a pull again: targets whose call ended before the pull did. kubelet asks again for each of them, after up to two
//! minutes, until it unpublishes the volume.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::pull::progress::{Progress, Snapshot};
use crate::pull::puller::Shared;
use crate::transfer::flight::{Interest, Waiter};

/// The interests of all targets.
#[derive(Debug, Default)]
pub(in crate::volume) struct Interests {
    waiting: Mutex<HashMap<PathBuf, Interest>>,
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
        if let Some(pull) = self.pull.take().filter(|_| !self.is_over) {
            self.interests.keep(self.target, pull.leave());
        }
    }
}

impl Interests {
    /// A call for `target` waits for `pull`.
    pub(in crate::volume) fn waiting<'a>(
        &'a self,
        target: &'a Path,
        pull: Waiter<Progress, Shared>,
    ) -> Waiting<'a> {
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
        let interest = self.lock().remove(target);
        if let Some(interest) = interest {
            interest.give_up();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Interest>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
