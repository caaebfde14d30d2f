//! Unpublish: from the mount table alone.

use super::{Error, Ours, Volumes};
use crate::mount::{self, Table, Target};
use crate::pull::blocking;

impl Volumes {
    /// Unmounts and removes `target`, and makes publishes that wait for it give up. Nothing there is success.
    ///
    /// Needs no network and no store: a store that cannot be used only keeps a record that the next start drops.
    ///
    /// # Errors
    /// What [`mount::detach`] fails with.
    pub async fn unpublish(&self, target: Target) -> Result<(), Error> {
        let place = self.turns.unpublish(target.path());
        let turn = place.turn().await.map_err(|_| Error::Preempted)?;
        let root = self.store_root.clone();
        let path = target.path().to_owned();
        let turn = blocking(move || {
            let ours = Ours::locate(&Table::read()?, &root);
            mount::detach(&target, |mount| ours.may_unmount(mount))?;
            Ok::<_, Error>(turn)
        })
        .await?;
        if let Some(store) = self.store_if_usable().await
            && let Err(error) = blocking(move || store.remove_volume(&path)).await
        {
            tracing::warn!(%error, "cannot forget an unpublished volume");
        }
        drop(turn);
        Ok(())
    }
}
