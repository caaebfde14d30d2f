//! Which mounts of the mount table are of this store.

use std::path::{Path, PathBuf};

use crate::mount;
use crate::mount::lookup;
use crate::mount::mountinfo::{Mount, StoreLocation, Table};
use crate::store::collect::rules::Mounted;

/// Which mounts are this store's, as far as the mount table tells.
pub(in crate::volume) struct StoreMounts(Option<StoreLocation>);

impl StoreMounts {
    /// For who looks at one target, and needs no table.
    pub(in crate::volume) fn find(store_root: &Path) -> Result<Self, mount::error::Error> {
        Ok(Self(lookup::locate_store(&canonical(store_root))?))
    }

    /// For who has the table.
    pub(in crate::volume) fn locate(table: &Table, store_root: &Path) -> Self {
        Self(table.locate_store(&canonical(store_root)))
    }

    /// A tree of this store.
    pub(in crate::volume) fn holds(&self, mount: &Mount) -> bool {
        self.0.as_ref().is_some_and(|location| location.holds(mount))
    }

    /// The directories of this store that are mounted; `None` when the table does not show where the store is.
    pub(in crate::volume) fn directories(&self, table: &Table) -> Option<Mounted> {
        let location = self.0.as_ref()?;
        Some(table.iter().filter_map(|mount| location.directory_of(mount)).collect())
    }

    /// A tree of this store, or of one that was here before: enough to unmount it.
    pub(in crate::volume) fn may_unmount(&self, mount: &Mount) -> bool {
        self.holds(mount) || mount.looks_like_a_tree()
    }
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
