//! Looks at what the store holds: at all of it when somebody asks, and slowly all the time.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::host::blocking;
use crate::oci::reference::Reference;
use crate::store::error::Error as StoreError;
use crate::store::fsck::cursor::Cursor;
use crate::store::fsck::report::{Finding, Report};
use crate::store::fsck::run::Fsck;
use crate::store::inventory::Inventory;
use crate::store::key::Entry;
use crate::store::open::Store;
use crate::volume::error::Error;
use crate::volume::volumes::Volumes;

/// How long a thread sleeps before it looks whether it is to end.
const NAP: Duration = Duration::from_millis(500);
/// How often it is noted how far the look at the whole store is.
const NOTE_EVERY: Duration = Duration::from_secs(60);
/// Until the first look: pods come first after a start.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Between two looks. A store that was empty may have filled meanwhile.
const SHORTEST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// Bytes per second that are read at least: so little that nobody notices, and enough to end.
const LEAST_RATE: u64 = 256 * 1024;

/// Looks at the store at `root`, which may be open in another process. Tells `progress` how many bytes were read.
///
/// # Errors
/// When it cannot be listed.
pub fn look(root: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<Report, StoreError> {
    let pace = telling(progress);
    Fsck::new(root, &pace, &|_| {}, None).run(Cursor::default(), &mut |_| {})
}

/// Looks at what the store at `root` has under `name`, a reference: its trees, their layers and their blobs.
///
/// # Errors
/// [`Error::NotInStore`]; when it cannot be listed.
pub fn look_at(root: &Path, name: &str, progress: &(dyn Fn(u64) + Sync)) -> Result<Report, Error> {
    let reference = name.parse::<Reference>().map_or_else(|_| name.to_owned(), |known| known.to_string());
    let trees = Inventory::read(root)?.trees;
    let entries: Vec<Entry> = trees
        .iter()
        .filter(|tree| tree.usage.references.contains(&reference))
        .flat_map(|tree| tree.entries())
        .collect();
    if entries.is_empty() {
        return Err(Error::NotInStore { name: name.to_owned() });
    }
    let pace = telling(progress);
    Ok(Fsck::new(root, &pace, &|_| {}, None).only(entries)?)
}

/// A pace that is as fast as the disk, and tells `progress` of all bytes so far.
fn telling(progress: &(dyn Fn(u64) + Sync)) -> impl Fn(u64) -> bool + Sync {
    let read = AtomicU64::new(0);
    move |bytes| {
        progress(read.fetch_add(bytes, Ordering::Relaxed) + bytes);
        true
    }
}

impl Volumes {
    /// Looks at all of the store, and takes out what is bad, so that it is pulled again.
    ///
    /// # Errors
    /// When the store cannot be opened, read, or changed.
    pub async fn repair(&self) -> Result<Report, Error> {
        let _one = self.repairing.lock().await;
        let store = Arc::clone(self.puller().await?.store());
        let root = self.store_root().to_owned();
        let (stop, metrics) = (self.collector.stop_flag(), self.store_metrics.clone());
        let damages = Arc::clone(&self.damages);
        let repair = move || {
            let pace = |bytes| {
                metrics.scrubbed(bytes);
                !stop.load(Ordering::Relaxed)
            };
            let found = |finding: &Finding| {
                metrics.damaged();
                damages.add(finding, &store);
            };
            Fsck::new(&root, &pace, &found, Some(&store)).run(Cursor::default(), &mut |_| {})
        };
        Ok(on_own_thread("fsck", repair).await?)
    }

    /// Looks at all of the store once in `round`, until the process ends, at a rate that nobody notices. What is bad is taken out, so
    /// that no other pod gets it; a pod that has it mounted is told so.
    pub async fn scrub(self: &Arc<Self>, round: Duration) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::select! {
                () = self.stopping() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let started = Instant::now();
            if let Ok(puller) = self.puller().await {
                let store = Arc::clone(puller.store());
                let (volumes, stop) = (Arc::clone(self), self.collector.stop_flag());
                let scrub = move || volumes.scrub_once(&store, round, &stop);
                if let Err(error) = on_own_thread("scrub", scrub).await {
                    tracing::warn!(%error, "cannot look at the whole store");
                }
            }
            // Also when the store could not be opened.
            pause = round.saturating_sub(started.elapsed()).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        }
    }

    fn scrub_once(&self, store: &Store, round: Duration, stop: &AtomicBool) -> Result<Report, StoreError> {
        let rate = (store.bytes_to_look_at()? / round.as_secs().max(1)).max(LEAST_RATE);
        let due = Mutex::new(Instant::now());
        let pace = |bytes: u64| {
            self.store_metrics.scrubbed(bytes);
            let until = {
                let mut due = due.lock().unwrap_or_else(PoisonError::into_inner);
                // What was slow is not caught up with at once.
                *due = (*due).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
                *due
            };
            while let Some(ahead) = until.checked_duration_since(Instant::now()) {
                if stop.load(Ordering::Relaxed) {
                    return false;
                }
                std::thread::park_timeout(ahead.min(NAP));
            }
            !stop.load(Ordering::Relaxed)
        };
        let mut noted = Instant::now();
        let mut note = |cursor: &Cursor| {
            if noted.elapsed() >= NOTE_EVERY {
                noted = Instant::now();
                store.note_scrubbed(cursor);
            }
        };
        let found = |finding: &Finding| {
            self.store_metrics.damaged();
            self.damages.add(finding, store);
        };
        let look = Fsck::new(&self.store_root, &pace, &found, Some(store));
        let report = look.run(store.scrubbed(), &mut note)?;
        if !stop.load(Ordering::Relaxed) {
            store.note_scrubbed(&Cursor::default());
        }
        Ok(report)
    }
}

async fn on_own_thread(
    name: &'static str,
    look: impl FnOnce() -> Result<Report, StoreError> + Send + 'static,
) -> Result<Report, StoreError> {
    let no_thread =
        |source| StoreError::Io { action: "start a thread to look at", path: "the store".into(), source };
    blocking::on_own_thread(name, look).await.map_err(no_thread)?
}
