//! What belongs to nothing: directories that were moved out of the way, files without records, notes about entries that are gone.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::store::collect::report::{Kind, Reason};
use crate::store::collect::run::Collection;
use crate::store::disk::{children, each_child, now, remove};
use crate::store::durable::ledger::entry_of_marker;
use crate::store::error::Error;
use crate::store::key::{Entry, Name, TreeKey};
use crate::store::space::amount::Amount;

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
            let candidates = self.nameless(kind, &directory.join(records))?;
            for name in candidates {
                self.collect_nameless(kind, &name)?;
            }
        }
        for algorithm in ["sha256", "sha512"] {
            let kind = format!("blobs/{algorithm}");
            for name in self.nameless(&kind, &directory.join(&kind))? {
                let take = || store.blobs.take_nameless(algorithm, &name);
                self.leftover(&kind, &name, 1, &take)?;
            }
        }
        if !self.is_dry_run {
            self.forget_what_is_gone(&directory.join("facts"), &|name| {
                Entry::parse(name.strip_suffix(".json")?)
            })?;
            self.forget_what_is_gone(&directory.join("durable"), &entry_of_marker)?;
            store.tags.forget(self.rules.min_age, &|digest| self.has_record(&Entry::Blob(digest.clone())))?;
        }
        Ok(())
    }

    /// What is in the directory `kind` and has no record in `records`.
    fn nameless(&self, kind: &str, records: &Path) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        each_child(&self.store.disk.directory().join(kind), &mut |path| {
            let is_record = path.extension().is_some_and(|extension| extension == "json");
            if !is_record && self.has_no_record(path, records) {
                names.extend(path.file_name().and_then(|name| Some(name.to_str()?.to_owned())));
            }
            Ok(())
        })?;
        Ok(names)
    }

    /// Takes a directory without a record away: it was moved out of the way while it was mounted, or the process ended between the
    /// directory and its record.
    fn collect_nameless(&mut self, kind: &str, name: &str) -> Result<(), Error> {
        let store = self.store;
        // Of a tree that is being made the record is written some moments after the directory.
        let claim = match TreeKey::parse(name) {
            Some(key) if kind == "trees" => match store.holds.claim(Name::tree(&key)) {
                Some(claim) => Some(claim),
                None => return Ok(()),
            },
            _ => None,
        };
        if self.is_stopped() || self.is_mounted(kind, name)? {
            return Ok(());
        }
        // What was moved out of the way may be mounted where only a command sees it.
        if name.starts_with("retired-") && !store.leases.current()?.is_empty() {
            return Ok(());
        }
        let take = || match kind {
            "layers" => store.layers.take_nameless(name),
            _ => store.trees.take_nameless(name),
        };
        self.leftover(kind, name, 2, &take)?;
        drop(claim);
        Ok(())
    }

    fn leftover(
        &mut self,
        kind: &str,
        name: &str,
        inodes: u64,
        take: &dyn Fn() -> Result<Option<PathBuf>, Error>,
    ) -> Result<(), Error> {
        let path = self.store.disk.directory().join(kind).join(name);
        let bytes = fs::symlink_metadata(path).map_or(0, |found| found.blocks() * 512);
        let trash = if self.is_dry_run { None } else { take()? };
        if trash.is_none() && !self.is_dry_run {
            return Ok(());
        }
        self.delete(trash)?;
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
        each_child(directory, &mut |path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_lost = |entry: &Entry| !self.is_recent(path) && !self.has_record(entry);
            match entry(name) {
                Some(entry) if !self.is_stopped() && is_lost(&entry) => remove(path),
                _ => Ok(()),
            }
        })
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
