//! How much a published volume holds.

use crate::host::blocking;
use std::path::Path;

use crate::mount::mountinfo::Table;
use crate::volume::error::Error;
use crate::volume::store_mounts::StoreMounts;
use crate::volume::volumes::Volumes;

/// Sizes of a volume. It is read-only: everything is used, nothing is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes of all files.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// Entries that are counted; more cost more than the answer is worth.
const ENTRIES_LIMIT: u64 = 1_000_000;

impl Volumes {
    /// Measures the volume that is published at `path`.
    ///
    /// # Errors
    /// [`Error::NotPublished`] when nothing of ours is mounted there, or another volume is.
    pub async fn usage(&self, volume_id: &str, path: &str) -> Result<Usage, Error> {
        let not_published = || Error::NotPublished {
            volume_id: volume_id.chars().take(128).collect(),
            path: path.chars().take(300).collect(),
        };
        let target = self.policy.check(path).map_err(|_| not_published())?;
        let root = self.store_root.clone();
        let mounted = target.path().to_owned();
        let is_ours = blocking::run(move || {
            let table = Table::read()?;
            let ours = StoreMounts::locate(&table, &root);
            Ok::<_, Error>(table.at(&mounted).is_some_and(|mount| ours.may_unmount(mount)))
        });
        if !is_ours.await? {
            return Err(not_published());
        }
        if let Some(store) = self.store_if_at_hand().await {
            let looked_up = target.path().to_owned();
            // A record that cannot be read is as good as none.
            let record = blocking::run(move || store.volume(&looked_up)).await.unwrap_or(None);
            if record.is_some_and(|record| record.volume_id != volume_id) {
                return Err(not_published());
            }
        }
        let path = target.path().to_owned();
        Ok(blocking::run(move || measure(&path)).await)
    }
}

/// Counts what is below `directory`. What cannot be read is left out.
fn measure(directory: &Path) -> Usage {
    let mut usage = Usage { bytes: 0, inodes: 1 };
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(directory) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            usage.inodes += 1;
            usage.bytes += metadata.len();
            if metadata.is_dir() {
                usage.bytes -= metadata.len();
                waiting.push(entry.path());
            }
            if usage.inodes >= ENTRIES_LIMIT {
                return usage;
            }
        }
    }
    usage
}
