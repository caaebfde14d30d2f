//! Unpublish: from the mount table alone.

use std::sync::Arc;

use super::{Error, Ours, Volumes};
use crate::mount::{self, Table, Target};
use crate::pull::blocking;
use crate::store::VolumeRecord;

impl Volumes {
    /// Unmounts and removes `target`, and makes publishes that wait for it give up. Nothing there is success.
    ///
    /// Needs no network and no store: a store that cannot be used only keeps a record that the next start drops.
    ///
    /// # Errors
    /// What [`mount::detach()`] fails with.
    pub async fn unpublish(&self, target: Target) -> Result<(), Error> {
        self.take_away(target, |_| true).await.map(drop)
    }

    /// Unmounts `target` for a person: the directory stays unless it was made for the mount.
    ///
    /// # Errors
    /// [`Error::NotPublished`] when nothing is mounted there, and as [`Volumes::unpublish`].
    pub async fn unmount(&self, target: Target) -> Result<(), Error> {
        let path = target.path().display().to_string();
        let made = |record: Option<&VolumeRecord>| record.is_some_and(|record| record.made_target);
        match self.take_away(target, made).await? {
            0 => Err(Error::NotPublished { volume_id: "command line".into(), path }),
            _ => Ok(()),
        }
    }

    /// Unmounts, and removes the directory if `and_directory` says so. Returns how many mounts there were.
    async fn take_away(
        &self,
        target: Target,
        and_directory: impl FnOnce(Option<&VolumeRecord>) -> bool,
    ) -> Result<usize, Error> {
        let place = self.turns.unpublish(target.path());
        let turn = place.turn().await.map_err(|_| Error::Preempted)?;
        let store = self.store_if_usable().await;
        let path = target.path().to_owned();
        let record = match &store {
            Some(store) => {
                let (store, path) = (Arc::clone(store), path.clone());
                blocking(move || store.volume(&path)).await.unwrap_or(None)
            }
            None => None,
        };
        let (root, and_directory) = (self.store_root.clone(), and_directory(record.as_ref()));
        let (turn, mounts) = blocking(move || {
            let ours = Ours::locate(&Table::read()?, &root);
            let mounts = mount::detach(&target, |mount| ours.may_unmount(mount), and_directory)?;
            Ok::<_, Error>((turn, mounts))
        })
        .await?;
        if let Some(store) = store
            && let Err(error) = blocking(move || store.remove_volume(&path)).await
        {
            tracing::warn!(%error, "cannot forget an unpublished volume");
        }
        drop(turn);
        Ok(mounts)
    }
}
