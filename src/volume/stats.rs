//! How much a published volume holds.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use crate::host::blocking::{self, Lane};
use crate::mount::lookup;
use crate::mount::mountinfo::Mount;
use crate::mount::target::Target;
use crate::mount::view;
use crate::store::usage::volumes::Measured;
use crate::volume::error::Error;
use crate::volume::store_mounts::StoreMounts;
use crate::volume::volumes::Volumes;

/// Entries that are counted; more cost more than the answer is worth.
const ENTRIES_LIMIT: u64 = 1_000_000;
/// Volumes of which is remembered what was counted.
const MEASURED_LIMIT: usize = 1024;

impl Volumes {
    /// How much the volume holds that is published at `path`.
    ///
    /// # Errors
    /// [`Error::NotPublished`] when nothing of ours is mounted there, or another volume is.
    pub async fn usage(&self, volume_id: &str, path: &str) -> Result<Measured, Error> {
        let not_published = || Error::NotPublished {
            volume_id: volume_id.chars().take(128).collect(),
            path: path.chars().take(300).collect(),
        };
        let target = self.check_target(path).await.map_err(|_| not_published())?;
        let (root, mounted) = (self.store_root.clone(), target.path().to_owned());
        let mount = blocking::run(Lane::Mounts, move || {
            let ours = StoreMounts::find(&root)?;
            Ok::<_, Error>(lookup::at(&mounted)?.filter(|mount| ours.may_unmount(mount)))
        });
        let mount = mount.await?.ok_or_else(not_published)?;
        if let Some(store) = self.store_if_at_hand().await {
            let looked_up = target.path().to_owned();
            // A record that cannot be read is as good as none.
            let read = move || store.volumes.get(&looked_up);
            let record = blocking::run(Lane::Store, read).await.unwrap_or(None);
            if record.as_ref().is_some_and(|record| record.volume_id != volume_id) {
                return Err(not_published());
            }
            if let Some(measured) = record.and_then(|record| record.measured) {
                return Ok(measured);
            }
        }
        self.measure(target, mount).await?.ok_or_else(not_published)
    }

    /// What is damaged of the volume at `path`, as far as that was found.
    pub async fn damage(&self, path: &str) -> Option<String> {
        if self.damages.is_nothing() {
            return None;
        }
        let (store, path) = (self.store_if_at_hand().await?, Path::new(path).to_owned());
        let read = move || {
            // What was taken out was moved out of the way. One that was made anew is not concerned.
            let is_retired = |part: &std::ffi::OsStr| part.as_encoded_bytes().starts_with(b"retired-");
            let is_concerned = lookup::at(&path).ok()??.root.iter().any(is_retired);
            store.volumes.get(&path).ok()?.filter(|_| is_concerned)
        };
        let record = blocking::run(Lane::Mounts, read).await?;
        self.damages.of(&record.tree)
    }

    /// Counts what a part of a tree holds, once. Nothing, when `mount` is no longer what is at `target`.
    async fn measure(&self, target: Target, mount: Mount) -> Result<Option<Measured>, Error> {
        let mounted = mount.root.clone();
        let known = self.measured.lock().unwrap_or_else(PoisonError::into_inner).get(&mounted).copied();
        if known.is_some() {
            return Ok(known);
        }
        let measured = blocking::run(Lane::Work, move || {
            // Of a mount of our own: directories that are open in the volume's would keep it from being unmounted.
            let Some(view) = view::private(&target)? else { return Ok(None) };
            // An unpublish may have come before: then it is a view of the empty directory that was mounted on.
            let is_still_there = lookup::at(target.path())?.as_ref() == Some(&mount);
            let view = PathBuf::from(format!("/proc/self/fd/{}/.", view.as_raw_fd()));
            Ok::<_, Error>(is_still_there.then(|| count(&view)))
        });
        let Some(measured) = measured.await? else { return Ok(None) };
        let mut known = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MEASURED_LIMIT {
            known.clear();
        }
        known.insert(mounted, measured);
        Ok(Some(measured))
    }
}

/// Counts what is below `directory`. What cannot be read is left out.
fn count(directory: &Path) -> Measured {
    let mut measured = Measured { bytes: 0, inodes: 1 };
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(directory) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            measured.inodes += 1;
            measured.bytes += metadata.len();
            if metadata.is_dir() {
                measured.bytes -= metadata.len();
                waiting.push(entry.path());
            }
            if measured.inodes >= ENTRIES_LIMIT {
                return measured;
            }
        }
    }
    measured
}
