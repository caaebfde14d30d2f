//! Collects what no volume needs: it knows what is mounted, and what is kept.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::mount::mountinfo::Table;
use crate::store::collect::report::Report;
use crate::store::collect::rules::{Filter, Keeper, Mounted, Pinned, Rules, Wanted};
use crate::store::collect::run::run;
use crate::store::error::Error as StoreError;
use crate::store::key::TreeKey;
use crate::store::open::Store;
use crate::volume::metrics::{For, StoreMetrics};
use crate::volume::store_mounts::StoreMounts;

/// How collections of this process are done.
#[derive(Debug)]
pub(in crate::volume) struct Collector {
    store_root: PathBuf,
    /// What is kept.
    pinned: Mutex<Pinned>,
    /// What was in use within this time stays.
    pub(in crate::volume) min_age: Duration,
    /// Ends collections, and starts no more.
    stop: Arc<AtomicBool>,
    metrics: StoreMetrics,
    /// Something ended that may have left what is unused.
    pub(in crate::volume) nudge: Notify,
    /// What the store holds may have changed.
    pub(in crate::volume) changed: Notify,
}

impl Collector {
    pub(in crate::volume) fn new(
        store_root: &Path,
        pinned: BTreeSet<String>,
        min_age: Duration,
        metrics: StoreMetrics,
    ) -> Arc<Self> {
        let (stop, nudge, changed) = (Arc::default(), Notify::new(), Notify::new());
        let pinned = Mutex::new(Pinned { references: pinned, ..Pinned::default() });
        Arc::new(Self { store_root: store_root.to_owned(), pinned, min_age, stop, metrics, nudge, changed })
    }

    /// Makes room in `store` from now on, whenever there is too little.
    pub(in crate::volume) fn serve(self: &Arc<Self>, store: &Arc<Store>) {
        let (collector, weak) = (Arc::clone(self), Arc::downgrade(store));
        store.disk.room.make_room_with(move |missing| {
            let Some(store) = weak.upgrade() else { return };
            if let Err(error) = collector.collect(&store, &Wanted::Room(missing), &|_| true, false) {
                tracing::warn!(%error, "cannot make room");
            }
        });
        let (collector, weak) = (Arc::clone(self), Arc::downgrade(store));
        let keeper = Keeper::new(move |wanted, filter| match weak.upgrade() {
            Some(store) => collector.collect(&store, wanted, filter, false),
            None => Ok(Report::default()),
        });
        let _ = store.keeper.set(keeper); // The store was just opened.
    }

    /// Collects in `store`.
    pub(in crate::volume) fn collect(
        &self,
        store: &Store,
        wanted: &Wanted<'_>,
        filter: &Filter<'_>,
        is_dry_run: bool,
    ) -> Result<Report, StoreError> {
        let mounted = || self.mounted();
        // What somebody names goes however lately it was used.
        let min_age = if matches!(wanted, Wanted::Named) { Duration::ZERO } else { self.min_age };
        let pinned = &self.pinned().clone();
        let rules = Rules { mounted: &mounted, filter, pinned, min_age, is_dry_run, stop: &self.stop };
        let began = Instant::now();
        let report = run(store, &rules, wanted)?;
        let reason = match wanted {
            Wanted::Everything | Wanted::Named => For::Command,
            Wanted::Excess(_) => For::Watermark,
            Wanted::Room(_) => For::Room,
            Wanted::Quota(_) | Wanted::AllBut(_) => For::Quota,
        };
        if !is_dry_run {
            self.metrics.collected(reason, began.elapsed(), &report);
            if report.gone > 0 {
                self.changed.notify_one();
            }
        }
        Ok(report)
    }

    /// Where the store is.
    pub(in crate::volume) fn store_root(&self) -> &Path {
        &self.store_root
    }

    /// True when everything is to end.
    pub(in crate::volume) fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// What is mounted of the store. Without knowing that nothing may go.
    fn mounted(&self) -> Result<Mounted, StoreError> {
        let unknown = |reason: String| StoreError::Unusable { root: self.store_root.clone(), reason };
        let table = Table::read().map_err(|error| unknown(error.to_string()))?;
        StoreMounts::locate(&table, &self.store_root)
            .directories(&table)
            .ok_or_else(|| unknown("the mount table does not show where it is".to_owned()))
    }

    /// Keeps `tree` for the sake of `reference`, instead of what was pulled as that before.
    pub(in crate::volume) fn pin(&self, reference: &str, tree: &TreeKey) {
        let mut pinned = self.pinned();
        pinned.references.remove(reference);
        pinned.trees.insert(tree.clone(), reference.to_owned());
    }

    fn pinned(&self) -> MutexGuard<'_, Pinned> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::volume) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.nudge.notify_waiters();
    }
}
