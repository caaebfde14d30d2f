//! What belongs to nothing: directories that were moved out of the way, files without records, notes about entries that are gone.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use crate::store::collect::report::{Kind, Reason};
use crate::store::collect::run::Collection;
use crate::store::disk::{children, now, remove};
use crate::store::durable::ledger::entry_of_marker;
use crate::store::error::Error;
use crate::store::key::Entry;
use crate::store::space::amount::Amount;

/// How long a right is remembered that nobody makes use of.
const GRANTS_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

impl Collection<'_> {
    /// Takes away what has no record, and has had none for some time.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn collect_leftovers(&mut self) -> Result<(), Error> {
        let store = self.store;
        let directory = store.disk.directory().to_owned();
        if !self.is_dry_run {
            for path in children(&store.disk.trash())? {
                remove(&path)?;
            }
        }
        for (kind, records) in [("layers", "layers"), ("trees", "images")] {
            self.collect_nameless(kind, &directory.join(records))?;
        }
        for algorithm in ["sha256", "sha512"] {
            let blobs = directory.join("blobs").join(algorithm);
            for path in children(&blobs)? {
                let is_record = path.extension().is_some_and(|extension| extension == "json");
                if !self.is_stopped() && !is_record && self.has_no_record(&path, &blobs) {
                    self.leftover(&path, "blobs", 1)?;
                }
            }
        }
        if !self.is_dry_run {
            self.forget_what_is_gone(&directory.join("facts"), &|name| {
                Entry::parse(name.strip_suffix(".json")?)
            })?;
            self.forget_what_is_gone(&directory.join("durable"), &entry_of_marker)?;
            store.tags.forget(self.rules.min_age, &|digest| self.has_record(&Entry::Blob(digest.clone())))?;
            store.grants.forget(GRANTS_KEPT)?;
        }
        Ok(())
    }

    /// Directories of `kind` without a record: they were moved out of the way while they were mounted, or the process ended
    /// between the directory and its record.
    fn collect_nameless(&mut self, kind: &str, records: &Path) -> Result<(), Error> {
        let store = self.store;
        for path in children(&store.disk.directory().join(kind))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if self.is_stopped() || name.ends_with(".json") || !self.has_no_record(&path, records) {
                continue;
            }
            if !self.is_mounted(kind, &name)? {
                self.leftover(&path, kind, 2)?;
            }
        }
        Ok(())
    }

    fn leftover(&mut self, path: &Path, kind: &str, inodes: u64) -> Result<(), Error> {
        let bytes = fs::symlink_metadata(path).map_or(0, |found| found.blocks() * 512);
        let trash = if self.is_dry_run { None } else { Some(self.store.disk.to_trash(path)?) };
        self.delete(trash)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{kind}/{name}");
        self.gone(Kind::Leftover, &name, &name, Amount { bytes, inodes }, Reason::NoRecord);
        Ok(())
    }

    /// Removes files about entries that have no record.
    fn forget_what_is_gone(
        &self,
        directory: &Path,
        entry: &dyn Fn(&str) -> Option<Entry>,
    ) -> Result<(), Error> {
        let mut known: HashSet<Entry> = HashSet::new();
        for path in children(directory)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(entry) = entry(name) else { continue };
            if self.is_stopped() || known.contains(&entry) || self.is_recent(&path) {
                continue;
            }
            if !self.has_record(&entry) {
                remove(&path)?;
            } else if known.len() < 4096 {
                known.insert(entry); // Of one entry there may be several files.
            }
        }
        Ok(())
    }

    fn has_record(&self, entry: &Entry) -> bool {
        self.store.disk.directory().join(entry.record()).exists()
    }

    /// Whether what is at `path` has no record in `records`, and was not just put there.
    fn has_no_record(&self, path: &Path, records: &Path) -> bool {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".json");
        !self.is_recent(path) && !records.join(name).exists()
    }

    /// Whether something was put there, or changed, not long ago. A rename changes the inode.
    fn is_recent(&self, path: &Path) -> bool {
        let changed = fs::symlink_metadata(path).map_or(0, |found| found.ctime());
        // One that lies ahead was noted when the clock was wrong.
        let age = i64::try_from(now()).unwrap_or(i64::MAX).saturating_sub(changed);
        (0..i64::try_from(self.rules.min_age.as_secs()).unwrap_or(i64::MAX)).contains(&age)
    }
}
