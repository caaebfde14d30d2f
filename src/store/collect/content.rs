//! Content that no tree refers to: blobs, layers, and downloads that nobody goes on with.

use std::cmp::Reverse;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use crate::oci::digest::Digest;
use crate::store::collect::references::{Pass, References};
use crate::store::collect::report::{Kind, RECORD, Reason};
use crate::store::collect::rules::Wanted;
use crate::store::collect::run::Collection;
use crate::store::content::layer::Layer;
use crate::store::disk::{age, remove};
use crate::store::error::Error;
use crate::store::key::{LayerKey, Name};
use crate::store::open::Store;
use crate::store::space::amount::Amount;

/// Bytes that a file takes beyond its own: half a block.
const WASTE: u64 = 2048;

impl Collection<'_> {
    /// Takes away content that no tree refers to and that is older than `min_age`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn collect_content(&mut self, min_age: Duration) -> Result<(), Error> {
        for pass in Pass::all(self.store)? {
            let mut references = References::read(self.store, pass, &self.chosen)?;
            self.collect_blobs(&mut references, pass, min_age)?;
            self.collect_layers(&mut references, pass, min_age)?;
        }
        // Whose a download is nobody knows.
        if matches!(self.wanted, Wanted::Quota(_) | Wanted::Named) {
            Ok(())
        } else {
            self.collect_downloads(min_age)
        }
    }

    fn collect_blobs(
        &mut self,
        references: &mut References,
        pass: Pass,
        min_age: Duration,
    ) -> Result<(), Error> {
        let store = self.store;
        store.blobs.each(&mut |digest, record| {
            let name = Name::content(&digest);
            if self.is_stopped() || !pass.has(name) || references.has(name) || is_young(record, min_age) {
                return Ok(());
            }
            if self.only.as_ref().is_some_and(|only| !only.contains(&name)) {
                return Ok(());
            }
            // A tree has it whose record does not say so, as those of ocivol 0.1 do not: it would free nothing.
            if !self.is_dry_run && has_other_names(&store.blobs.path(&digest)) {
                return Ok(());
            }
            let Some(claim) = store.holds.claim(name) else { return Ok(()) };
            references.renew(store, &self.chosen)?;
            if references.has(name) {
                return Ok(());
            }
            let takes = blob_takes(store, &digest);
            let trash = if self.is_dry_run { None } else { Some(store.blobs.take_away(&digest)?) };
            drop(claim);
            self.delete(trash)?;
            let digest = digest.to_string();
            self.gone(Kind::Blob, &digest, &digest, takes, Reason::Unreferenced);
            Ok(())
        })
    }

    fn collect_layers(
        &mut self,
        references: &mut References,
        pass: Pass,
        min_age: Duration,
    ) -> Result<(), Error> {
        let store = self.store;
        store.layers.each(&mut |key, record| {
            let name = Name::layer(&key);
            if self.is_stopped() || !pass.has(name) || references.has(name) || is_young(record, min_age) {
                return Ok(());
            }
            if self.only.as_ref().is_some_and(|only| !only.contains(&name)) {
                return Ok(());
            }
            let layer = match store.layers.recorded(&key) {
                Ok(Some(layer)) => layer,
                Ok(None) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, %key, "a layer is left where it is");
                    return Ok(());
                }
            };
            let Some(claim) = store.holds.claim(Name::content(&layer.digest)) else { return Ok(()) };
            references.renew(store, &self.chosen)?;
            // The record of a tree may be lost while the layer that is the tree is mounted.
            if references.has(name) || self.is_mounted("layers", key.as_str())? {
                return Ok(());
            }
            let takes = takes(&layer);
            let trash = if self.is_dry_run { None } else { Some(store.layers.take_away(&key)?) };
            drop(claim);
            self.delete(trash)?;
            let (key, digest) = (key.to_string(), layer.digest.to_string());
            self.gone(Kind::Layer, &key, &digest, takes, Reason::Unreferenced);
            Ok(())
        })
    }

    /// The oldest first, and no more than it takes.
    fn collect_downloads(&mut self, min_age: Duration) -> Result<(), Error> {
        let mut idle = self.store.ingests.idle()?;
        idle.sort_unstable_by_key(|idle| Reverse(idle.age));
        for download in idle {
            if self.is_stopped() || download.age < min_age || self.missing()?.is_nothing() {
                break;
            }
            let Some(claim) = self.store.holds.claim(Name::content(&download.digest)) else { continue };
            let is_gone = self.is_dry_run || self.store.ingests.discard_idle(&download)?;
            drop(claim);
            if is_gone {
                let digest = download.digest.to_string();
                let takes = Amount { bytes: download.bytes, inodes: 3 };
                self.gone(Kind::Download, &digest, &digest, takes, Reason::Unfinished);
            }
        }
        Ok(())
    }

    /// Deletes what was taken out of sight.
    pub(super) fn delete(&self, trash: Option<std::path::PathBuf>) -> Result<(), Error> {
        crate::host::failpoint::reached("collect.out_of_sight");
        trash.map_or(Ok(()), |trash| remove(&trash))
    }
}

fn has_other_names(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.nlink() > 1)
}

fn is_young(path: &Path, min_age: Duration) -> bool {
    // One whose time lies ahead was written when the clock was wrong.
    age(path).is_some_and(|age| age < min_age)
}

/// What a blob takes, with what there is about it.
pub(in crate::store) fn blob_takes(store: &Store, digest: &Digest) -> Amount {
    let found = fs::symlink_metadata(store.blobs.path(digest));
    let file = found.map(|found| Amount { bytes: found.blocks() * 512, inodes: 1 });
    file.unwrap_or_default().plus(RECORD)
}

/// What a layer takes, with what there is about it; nothing when it is not here.
pub(in crate::store) fn layer_takes(store: &Store, key: &LayerKey) -> Result<Amount, Error> {
    Ok(store.layers.recorded(key)?.as_ref().map(takes).unwrap_or_default())
}

fn takes(layer: &Layer) -> Amount {
    let (entries, files) = (layer.summary.entries as u64, layer.summary.files as u64);
    Amount { bytes: layer.summary.bytes.saturating_add(files * WASTE), inodes: entries }.plus(RECORD)
}
