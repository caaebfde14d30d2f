//! How far a pull is, in numbers and in words.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanDuration};
use serde::{Deserialize, Serialize};

use crate::transfer::counter::Counter;

/// Counters of one pull; the blobs' own counters are shared with other pulls of the same blobs.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    total: AtomicU64,
    blobs: AtomicUsize,
    blobs_done: AtomicUsize,
    /// Bytes that were here already.
    reused: AtomicU64,
    /// The transfers of its blobs.
    downloads: Mutex<Vec<Arc<Counter>>>,
    /// What it works on, what was begun first first.
    current: Mutex<Vec<Box<str>>>,
}

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Bytes of all blobs; 0 until the manifest is read.
    pub total: u64,
    /// Bytes that are here.
    pub done: u64,
    /// Bytes that came over the network.
    pub fetched: u64,
    /// Blobs that are needed.
    pub blobs: usize,
    /// Blobs that are here.
    pub blobs_done: usize,
    /// Since the pull began, in milliseconds.
    pub elapsed_ms: u64,
    /// What it works on: of several, what was begun first.
    #[serde(default)]
    pub current: Option<Box<str>>,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            total: AtomicU64::default(),
            blobs: AtomicUsize::default(),
            blobs_done: AtomicUsize::default(),
            reused: AtomicU64::default(),
            downloads: Mutex::default(),
            current: Mutex::default(),
        }
    }
}

/// A pull works on something.
pub(in crate::pull) struct Working<'a> {
    progress: &'a Progress,
    name: Box<str>,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let mut current = lock(&self.progress.current);
        if let Some(place) = current.iter().position(|name| *name == self.name) {
            current.remove(place);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Progress {
    pub(in crate::pull) fn expect(&self, blobs: usize, bytes: u64) {
        self.blobs.store(blobs, Relaxed);
        self.total.store(bytes, Relaxed);
    }

    /// A blob is coming; `counter` counts its bytes.
    pub(in crate::pull) fn follow(&self, counter: &Arc<Counter>) {
        let mut downloads = lock(&self.downloads);
        if !downloads.iter().any(|known| Arc::ptr_eq(known, counter)) {
            downloads.push(Arc::clone(counter));
        }
    }

    /// The pull works on what has this name, until the result is dropped.
    pub(in crate::pull) fn working_on(&self, name: &str) -> Working<'_> {
        lock(&self.current).push(name.into());
        Working { progress: self, name: name.into() }
    }

    /// A blob is complete; `reused` of its bytes did not come over the network for this pull.
    pub(in crate::pull) fn blob_done(&self, reused: u64) {
        self.blobs_done.fetch_add(1, Relaxed);
        self.reused.fetch_add(reused, Relaxed);
    }

    /// Since the pull began.
    pub(in crate::pull) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        let (here, fetched) = {
            let downloads = lock(&self.downloads);
            downloads.iter().fold((0, 0), |(here, fetched), counter| {
                (here + counter.here.load(Relaxed), fetched + counter.fetched.load(Relaxed))
            })
        };
        let total = self.total.load(Relaxed);
        Snapshot {
            total,
            done: (here + self.reused.load(Relaxed)).min(total),
            fetched,
            blobs: self.blobs.load(Relaxed),
            blobs_done: self.blobs_done.load(Relaxed),
            elapsed_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            current: lock(&self.current).first().cloned(),
        }
    }
}

impl Snapshot {
    /// Bytes per second over the network, on average.
    pub fn rate(&self) -> u64 {
        self.fetched.saturating_mul(1000) / self.elapsed_ms.max(1)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.blobs == 0 {
            return write!(out, "reading the manifest");
        }
        let percent = self.done.saturating_mul(100) / self.total.max(1);
        write!(
            out,
            "{} of {} layers, {} of {} ({percent}%), {}/s",
            self.blobs_done,
            self.blobs,
            BinaryBytes(self.done),
            BinaryBytes(self.total),
            BinaryBytes(self.rate())
        )?;
        if let Some(seconds) = self.total.saturating_sub(self.done).checked_div(self.rate()) {
            write!(out, ", {} left", HumanDuration(Duration::from_secs(seconds)))?;
        }
        if let Some(current) = &self.current {
            write!(out, ", now {current}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_words() {
        let snapshot = Snapshot {
            total: 4 << 30,
            done: 1 << 30,
            fetched: 1 << 30,
            blobs: 9,
            blobs_done: 3,
            elapsed_ms: 1024,
            current: Some("model-00004.safetensors".into()),
        };
        let text = "3 of 9 layers, 1.00 GiB of 4.00 GiB (25%), 1000.00 MiB/s, 3 seconds left, now model-00004.safetensors";
        assert_eq!(snapshot.to_string(), text);
    }
}
