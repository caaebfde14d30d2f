//! Counts what the store holds, from time to time and when somebody asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::host::blocking;
use crate::store::collect::report::Reason;
use crate::store::collect::rules::Wanted;
use crate::store::error::Error as StoreError;
use crate::store::inventory;
use crate::store::open::Store;
use crate::store::space::amount::Amount;
use crate::volume::census::Census;
use crate::volume::collector::Collector;
use crate::volume::error::Error;
use crate::volume::volumes::Volumes;

/// How often it is counted when nothing happens here: others fill the disk as well.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// Until it is counted again, at least; and so many times as long as it took.
const PAUSE: Duration = Duration::from_secs(5);
const PAUSES: u32 = 100;
/// What kubelet calls volumes that pods describe themselves: this, and a hash in 64 digits. Kubernetes `MakeCSIVolumeHandle…`.
const INLINE: &str = "csi-";
/// What commands call what they mount.
const OF_COMMANDS: &str = "command line ";

impl Volumes {
    /// Counts now.
    ///
    /// # Errors
    /// When the store or the mount table cannot be read.
    pub async fn census(&self) -> Result<Census, Error> {
        let store = Arc::clone(self.puller().await?.store());
        Ok(self.count(store).await?)
    }

    async fn count(&self, store: Arc<Store>) -> Result<Census, StoreError> {
        let collector = Arc::clone(&self.collector);
        let no_thread =
            |source| StoreError::Io { action: "start a thread to count", path: "the store".into(), source };
        let counting = move || read(&store, &collector);
        let census = blocking::on_own_thread("count", counting).await.map_err(no_thread)??;
        self.store_metrics.counted.set(census);
        Ok(census)
    }

    /// Counts from time to time, soon after something has changed, until the process ends.
    pub async fn count_now_and_then(&self) {
        loop {
            let began = Instant::now();
            if let Some(store) = self.store_if_open().await {
                match self.count(store).await {
                    Ok(census) => self.store_watch.look(&census, &self.announcements),
                    Err(error) => tracing::debug!(%error, "cannot count what the store holds"),
                }
            }
            let pause = PAUSE.max(began.elapsed() * PAUSES);
            tokio::select! {
                () = self.stopping() => return,
                () = tokio::time::sleep(pause) => {}
            }
            tokio::select! {
                () = self.stopping() => return,
                () = self.collector.changed.notified() => {}
                () = tokio::time::sleep(COUNT_EVERY.saturating_sub(pause)) => {}
            }
        }
    }
}

fn read(store: &Store, collector: &Collector) -> Result<Census, StoreError> {
    let usage = store.disk.room.measure()?;
    let would = collector.collect(store, &Wanted::Everything, &|_| true, true)?;
    let pinned = would.items.iter().filter(|item| matches!(item.reason, Reason::Pinned(_)));
    let entries = inventory::count(collector.store_root())?;
    let mut census = Census {
        used: usage.total.minus(usage.free),
        free: usage.free,
        limit: store.disk.room.limit(usage),
        evictable: would.freed,
        pinned: pinned.fold(Amount::default(), |sum, item| sum.plus(item.takes)),
        blobs: entries.blobs,
        layers: entries.layers,
        trees: entries.trees,
        ..Census::default()
    };
    for volume in store.volumes.all()? {
        let hash = volume.volume_id.strip_prefix(INLINE).unwrap_or_default();
        let is_inline = hash.len() == 64 && hash.bytes().all(|digit| digit.is_ascii_hexdigit());
        *match (is_inline, volume.volume_id.starts_with(OF_COMMANDS)) {
            (true, _) => &mut census.inline_volumes,
            (false, true) => &mut census.command_volumes,
            (false, false) => &mut census.persistent_volumes,
        } += 1;
    }
    Ok(census)
}
