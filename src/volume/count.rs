//! Counts what the store holds, from time to time and when somebody asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::host::blocking::{self, Lane};
use crate::store::collect::rules::Wanted;
use crate::store::error::Error as StoreError;
use crate::store::inventory;
use crate::store::open::Store;
use crate::volume::census::{Census, Disk};
use crate::volume::collector::Collector;
use crate::volume::error::Error;
use crate::volume::volumes::Volumes;

/// How often it is counted when nothing happens here, and how often the disk is measured: others fill it as well.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// Until it is counted again: so many times as long as it took, within these bounds. A count may have waited for a collection.
const PAUSES: u32 = 100;
const SHORTEST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
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

    /// Counts from time to time, soon after something has changed, until the process ends; and measures how full the disk is, however
    /// long a count takes.
    pub async fn count_now_and_then(&self) {
        tokio::select! {
            () = self.stopping() => {}
            () = self.count_again_and_again() => {}
            () = self.measure_again_and_again() => {}
        }
    }

    async fn count_again_and_again(&self) {
        loop {
            let began = Instant::now();
            let counted = match self.store_if_open().await {
                Some(store) => self.count(store).await.map(Some),
                None => Ok(None),
            };
            let pause = pause(began.elapsed(), counted.is_ok());
            match counted {
                Ok(Some(census)) => self.store_watch.look(&census, &self.announcements),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "cannot count what the store holds"),
            }
            tokio::time::sleep(pause).await;
            tokio::select! {
                () = self.collector.changed.notified() => {}
                () = tokio::time::sleep(COUNT_EVERY.saturating_sub(pause)) => {}
            }
        }
    }

    async fn measure_again_and_again(&self) {
        loop {
            tokio::time::sleep(COUNT_EVERY).await;
            let Some(store) = self.store_if_open().await else { continue };
            let disk = match blocking::run(Lane::Store, move || Disk::measure(&store)).await {
                Ok(disk) => disk,
                Err(error) => {
                    tracing::warn!(%error, "cannot measure how full the disk of the store is");
                    continue;
                }
            };
            if let Some(census) = self.store_metrics.counted.measured(disk) {
                self.store_watch.look(&census, &self.announcements);
            }
        }
    }
}

/// How long nothing is counted after a count that took so long. One that failed is not tried at each change: its warning is one a minute.
fn pause(took: Duration, is_ok: bool) -> Duration {
    let shortest = if is_ok { SHORTEST_PAUSE } else { COUNT_EVERY };
    took.saturating_mul(PAUSES).clamp(shortest, LONGEST_PAUSE)
}

fn read(store: &Store, collector: &Collector) -> Result<Census, StoreError> {
    let would = collector.collect(store, &Wanted::Everything, &|_| true, true)?;
    let entries = inventory::count(collector.store_root())?;
    let mut census = Census {
        evictable: would.freed,
        pinned: would.pinned,
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
    // Last, because all of that took its time.
    Ok(census.on(Disk::measure(store)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_counted_less_often_and_within_ten_minutes() {
        let seconds = Duration::from_secs;
        assert_eq!(pause(Duration::from_millis(1), true), seconds(5));
        assert_eq!(pause(Duration::from_millis(200), true), seconds(20));
        assert_eq!(pause(seconds(60), true), seconds(600), "it waited for a collection");
        assert_eq!(pause(Duration::MAX, true), seconds(600));
        assert_eq!(pause(Duration::from_millis(1), false), seconds(60));
        assert_eq!(pause(seconds(60), false), seconds(600));
    }
}
