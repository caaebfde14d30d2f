//! Unpublish: from the mount table alone.

use crate::host::blocking::{self, Lane};
use std::path::PathBuf;
use std::sync::Arc;

use crate::mount;
use crate::mount::target::Target;
use crate::store::usage::volumes::VolumeRecord;
use crate::volume::error::Error;
use crate::volume::order::TargetGuard;
use crate::volume::store_mounts::StoreMounts;
use crate::volume::volumes::Volumes;
use crate::volume::warmed;

impl Volumes {
    /// Unmounts and removes `target`, and makes publishes that wait for it give up. Nothing there is success.
    ///
    /// Needs no network and no store: a store that cannot be used only keeps a record that the next start drops. Returns what was recorded.
    ///
    /// # Errors
    /// What [`mount::detach::detach()`] fails with.
    pub async fn unpublish(&self, target: Target) -> Result<Option<VolumeRecord>, Error> {
        let guard = self.order.unpublish(target.path()).turn().await;
        self.interests.give_up(target.path());
        let path = target.path().to_owned();
        let (guard, _) = self.take_away(target, true, guard).await?;
        Ok(self.forget(path, guard).await)
    }

    /// Unmounts `target` for a person: the directory stays unless it was made for the mount.
    ///
    /// # Errors
    /// [`Error::NotMounted`] when nothing is, and as [`Volumes::unpublish`].
    pub async fn unmount(&self, target: Target) -> Result<(), Error> {
        let guard = self.order.unpublish(target.path()).turn().await;
        let path = target.path().to_owned();
        let record = match self.store_if_at_hand().await {
            Some(store) => {
                let path = path.clone();
                blocking::run(Lane::Store, move || store.volumes.get(&path)).await.unwrap_or(None)
            }
            None => None,
        };
        let made_for_it = record.is_some_and(|record| record.made_target);
        let (guard, mounts) = self.take_away(target, made_for_it, guard).await?;
        if mounts == 0 {
            return Err(Error::NotMounted { path });
        }
        self.forget(path, guard).await;
        Ok(())
    }

    /// Unmounts, and removes the directory if `and_directory`. Returns how many mounts there were. The guard goes
    /// with the work, which ends although the caller goes away.
    async fn take_away(
        &self,
        target: Target,
        and_directory: bool,
        guard: TargetGuard,
    ) -> Result<(TargetGuard, usize), Error> {
        let (root, warmer) = (self.store_root.clone(), Arc::clone(&self.warmer));
        blocking::run(Lane::Mounts, move || {
            let ours = StoreMounts::find(&root)?;
            let mounts = mount::detach::detach(&target, |mount| ours.may_unmount(mount), and_directory)?;
            warmed::end(&warmer, target.path());
            Ok((guard, mounts))
        })
        .await
    }

    /// Removes the record, and returns it, before anybody else can publish at the target. The tree was in use until now: it is not collected as
    /// long as another mount namespace may still have the mount.
    async fn forget(&self, path: PathBuf, guard: TargetGuard) -> Option<VolumeRecord> {
        let store = self.store_if_at_hand().await?;
        let removed = blocking::run(Lane::Mounts, move || {
            crate::host::failpoint::reached("unpublish.target_gone");
            let removed = store.end_volume(&path);
            crate::host::failpoint::reached("unpublish.forgotten");
            drop(guard);
            removed
        });
        let removed = removed.await;
        self.collector.nudge.notify_one();
        removed.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot forget an unpublished volume");
            None
        })
    }
}
