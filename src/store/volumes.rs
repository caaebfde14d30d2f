//! Records of published targets: which volume a mount belongs to. The mount table says what is mounted.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::oci::digest::Digest;
use crate::store::error::Error;
use crate::store::trees::TreeKey;
use crate::store::{Store, children, record, remove};

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
}

impl Store {
    /// The record of `target`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn volume(&self, target: &Path) -> Result<Option<VolumeRecord>, Error> {
        let found: Option<VolumeRecord> = record::read(&self.volume_path(target))?;
        Ok(found.filter(|known| known.target == target))
    }

    /// All records.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn volumes(&self) -> Result<Vec<VolumeRecord>, Error> {
        let mut found = Vec::new();
        for path in children(&self.directory.join("volumes"))? {
            found.extend(record::read::<VolumeRecord>(&path)?);
        }
        Ok(found)
    }

    /// Records a target.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn set_volume(&self, record: &VolumeRecord) -> Result<(), Error> {
        self.write_record(&self.volume_path(&record.target), record)
    }

    /// Forgets `target`; what is not there is fine.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_volume(&self, target: &Path) -> Result<(), Error> {
        remove(&self.volume_path(target))
    }

    /// The volume's ID and target are untrusted text: only a hash of them becomes a file name.
    fn volume_path(&self, target: &Path) -> PathBuf {
        let name = Digest::sha256(target.as_os_str().as_encoded_bytes());
        self.directory.join("volumes").join(format!("{}.json", name.hex()))
    }
}
