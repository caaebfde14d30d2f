//! When it is collected: when the disk is too full, when a pull finds too little room, and on command.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::host::blocking;
use crate::store::collect::report::Report;
use crate::store::collect::rules::Wanted;
use crate::store::error::Error as StoreError;
use crate::volume::error::Error;
use crate::volume::volumes::Volumes;

/// How often the disk is looked at when nothing happens here: others fill it as well.
const LOOK_EVERY: Duration = Duration::from_secs(30);

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
                () = self.collector.nudge.notified() => self.collector.changed.notify_one(),
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
