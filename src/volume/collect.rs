//! Collection of what no volume needs: when the disk is too full, when a pull finds too little room, and on command.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::host::blocking;
use crate::mount::mountinfo::Table;
use crate::store::collect::report::Report;
use crate::store::collect::rules::{Filter, Keeper, Mounted, Pinned, Rules, Wanted};
use crate::store::collect::run::run;
use crate::store::error::Error as StoreError;
use crate::store::key::TreeKey;
use crate::store::open::Store;
use crate::volume::error::Error;
use crate::volume::store_mounts::StoreMounts;
use crate::volume::volumes::Volumes;

/// How collections of this process are done.
#[derive(Debug)]
pub(in crate::volume) struct Collector {
    store_root: PathBuf,
    /// What is kept.
    pinned: Mutex<Pinned>,
    /// What was in use within this time stays.
    min_age: Duration,
    /// Ends collections, and starts no more.
    stop: AtomicBool,
    /// Something ended that may have left what is unused.
    pub(in crate::volume) nudge: Notify,
}

/// How often the disk is looked at when nothing happens here: others fill it as well.
const LOOK_EVERY: Duration = Duration::from_secs(30);

impl Collector {
    pub(in crate::volume) fn new(
        store_root: &Path,
        pinned: BTreeSet<String>,
        min_age: Duration,
    ) -> Arc<Self> {
        let (stop, nudge) = (AtomicBool::new(false), Notify::new());
        let pinned = Mutex::new(Pinned { references: pinned, ..Pinned::default() });
        Arc::new(Self { store_root: store_root.to_owned(), pinned, min_age, stop, nudge })
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

    fn collect(
        &self,
        store: &Store,
        wanted: &Wanted<'_>,
        filter: &Filter<'_>,
        is_dry_run: bool,
    ) -> Result<Report, StoreError> {
        let mounted = || self.mounted();
        let (pinned, min_age) = (&self.pinned().clone(), self.min_age);
        let rules = Rules { mounted: &mounted, filter, pinned, min_age, is_dry_run, stop: &self.stop };
        run(store, &rules, wanted)
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

impl Volumes {
    /// Collects everything that nothing needs; or says what that is.
    ///
    /// # Errors
    /// When the store or the mount table cannot be read.
    pub async fn collect(&self, is_dry_run: bool) -> Result<Report, Error> {
        let store = Arc::clone(self.puller().await?.store());
        let collector = Arc::clone(&self.collector);
        let collect = move || collector.collect(&store, &Wanted::Everything, &|_| true, is_dry_run);
        Ok(on_own_thread(collect).await?)
    }

    /// Keeps the disk below its watermark until the process ends.
    pub async fn collect_at_watermark(&self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stopping() => return,
                _ = ticks.tick() => {}
                () = self.collector.nudge.notified() => {}
            }
            let Some(store) = self.store_if_open().await else { continue };
            let collector = Arc::clone(&self.collector);
            let collected = on_own_thread(move || {
                let excess = || store.disk.room.excess().map(Option::unwrap_or_default);
                collector.collect(&store, &Wanted::Excess(&excess), &|_| true, false)
            });
            if let Err(error) = collected.await {
                tracing::warn!(%error, "cannot collect what is unused");
            }
        }
    }
}

/// Collections take as long as the disk does.
async fn on_own_thread(
    collect: impl FnOnce() -> Result<Report, StoreError> + Send + 'static,
) -> Result<Report, StoreError> {
    let no_thread =
        |source| StoreError::Io { action: "start a thread to collect", path: PathBuf::new(), source };
    blocking::on_own_thread("collect", collect).await.map_err(no_thread)?
}
