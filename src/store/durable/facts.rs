//! Facts: what is learnt of an entry after it was recorded. Each may be lost without harm: it is learnt again.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::disk::{Disk, remove};
use crate::store::durable::record;
use crate::store::error::Error;
use crate::store::key::Entry;

/// The owner of `facts/`.
#[derive(Debug)]
pub struct Facts {
    disk: Arc<Disk>,
    /// Held while a fact is read, changed and written.
    changing: Mutex<()>,
}

impl Facts {
    pub(in crate::store) fn new(disk: Arc<Disk>) -> Self {
        Self { disk, changing: Mutex::default() }
    }

    /// What is known of `entry` beside its record.
    pub(in crate::store) fn of<T: DeserializeOwned + Default>(&self, entry: &Entry) -> Result<T, Error> {
        match record::read(&self.path(entry)) {
            // What the disk has lost was worth no more than what was never noted.
            Err(error) if error.is_loss() => {
                tracing::warn!(%error, ?entry, "facts are lost");
                Ok(T::default())
            }
            known => Ok(known?.unwrap_or_default()),
        }
    }

    /// Changes what is known of `entry`, unless `change` says that it is known already.
    pub(in crate::store) fn update<T: Serialize + DeserializeOwned + Default>(
        &self,
        entry: &Entry,
        change: impl FnOnce(&mut T) -> bool,
    ) -> Result<(), Error> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self.of(entry)?;
        if change(&mut known) { record::write(&self.disk, &self.path(entry), &known) } else { Ok(()) }
    }

    /// Forgets what is known of `entry`.
    pub(in crate::store) fn forget(&self, entry: &Entry) -> Result<(), Error> {
        remove(&self.path(entry))
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        self.disk.directory().join("facts").join(format!("{}.json", entry.file_name()))
    }
}
