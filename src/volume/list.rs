//! What the store holds, and where it is mounted.

use crate::host::blocking::{self, Lane};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::layer::format::Dropped;
use crate::mount::mountinfo::Table;
use crate::volume::error::Error;
use crate::volume::store_mounts::StoreMounts;
use crate::volume::volumes::Volumes;

/// One tree of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// References it was pulled as.
    pub references: Vec<String>,
    /// Digest of the manifest it shows.
    pub digest: String,
    /// The artifact family.
    pub family: String,
    /// Bytes of all files.
    pub size: u64,
    /// How many files.
    pub files: usize,
    /// What of its archives was left out by rule.
    pub dropped: Dropped,
    /// Seconds since the epoch of the last publish or pull.
    pub last_use: u64,
    /// The tree's name in the store.
    pub tree: String,
    /// Targets where it is mounted, as this mount namespace sees them.
    pub mounted_at: Vec<PathBuf>,
}

impl Volumes {
    /// Lists every tree.
    ///
    /// # Errors
    /// When the store or the mount table cannot be read.
    pub async fn list(&self) -> Result<Vec<Listed>, Error> {
        let puller = self.puller().await?;
        let root = self.store_root().to_owned();
        blocking::run(Lane::Store, move || {
            let table = Table::read()?;
            let ours = StoreMounts::locate(&table, &root);
            let listed = puller.store().trees.all()?.into_iter().map(|tree| Listed {
                mounted_at: table
                    .iter()
                    .filter(|mount| ours.holds(mount) && mount.store_key() == Some(tree.mounted_key()))
                    .map(|mount| mount.mount_point.clone())
                    .collect(),
                references: tree.usage.references.into_iter().collect(),
                digest: tree.image.manifest.to_string(),
                family: tree.image.family,
                size: tree.image.size,
                files: tree.image.files,
                dropped: tree.image.dropped,
                last_use: tree.usage.last_use,
                tree: tree.key.to_string(),
            });
            Ok(listed.collect())
        })
        .await
    }
}
