//! Records of published targets: which volume a mount belongs to. The mount table says what is mounted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::oci::digest::Digest;
use crate::store::disk::{Disk, children, remove};
use crate::store::durable::record;
use crate::store::error::Error;
use crate::store::key::TreeKey;

/// One published target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Where it is mounted.
    pub target: PathBuf,
    /// The volume's ID, as the caller gave it.
    pub volume_id: String,
    /// Hash of everything that makes two publishes the same; secrets are not part of it.
    pub arguments: String,
    /// The reference that was asked for.
    pub reference: String,
    /// The manifest it resolved to.
    pub manifest: Digest,
    /// The tree that is mounted.
    pub tree: TreeKey,
    /// Whether the target's directory was made for it.
    #[serde(default)]
    pub made_target: bool,
    /// The pod that has it, as `namespace/name`, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// What it holds, where all of a tree is mounted that says so.
    #[serde(default)]
    pub measured: Option<Measured>,
    /// What of it is to be in memory; none where it is never warmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<WarmRecord>,
}

/// What of a volume is to be in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmRecord {
    /// The directory that it shows, below the store's.
    pub directory: PathBuf,
    /// Whether its artifact is a model.
    pub model: bool,
    /// Whether it is locked in memory.
    pub pinned: bool,
}

/// How much a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Bytes of all files.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// The owner of `volumes/`.
#[derive(Debug)]
pub struct VolumeRecords {
    disk: Arc<Disk>,
}

impl VolumeRecords {
    pub(in crate::store) fn new(disk: Arc<Disk>) -> Self {
        Self { disk }
    }

    /// The record of `target`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn get(&self, target: &Path) -> Result<Option<VolumeRecord>, Error> {
        let found: Option<VolumeRecord> = record::read(&self.path(target))?;
        Ok(found.filter(|known| known.target == target))
    }

    /// All records.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn all(&self) -> Result<Vec<VolumeRecord>, Error> {
        let mut found = Vec::new();
        for path in children(&self.disk.directory().join("volumes"))? {
            found.extend(record::read::<VolumeRecord>(&path)?);
        }
        Ok(found)
    }

    /// Records a target.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn set(&self, volume: &VolumeRecord) -> Result<(), Error> {
        record::write(&self.disk, &self.path(&volume.target), volume)
    }

    /// Forgets `target`; what is not there is fine.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, target: &Path) -> Result<(), Error> {
        remove(&self.path(target))
    }

    /// The volume's ID and target are untrusted text: only a hash of them becomes a file name.
    fn path(&self, target: &Path) -> PathBuf {
        let name = Digest::sha256(target.as_os_str().as_encoded_bytes());
        self.disk.directory().join("volumes").join(format!("{}.json", name.hex()))
    }
}
