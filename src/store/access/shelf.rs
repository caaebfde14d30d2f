//! A directory of small files that many tenants fill, each up to a bound of its own.
//!
//! Every tenant writes into a directory of its own; when that is full, the files go that were of no use for longest. What one tenant wrote is found by
//! all: names are made with a key, so that only who asks for the same with the same credential has the same name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::oci::digest::Digest;
use crate::store::disk::{Disk, children, create_private, remove};
use crate::store::durable::record;
use crate::store::error::{Error, io};
use crate::tenant::Tenant;

/// The owner of such a directory.
#[derive(Debug)]
pub(in crate::store) struct Shelf {
    disk: Arc<Disk>,
    /// `tags` or `proofs`.
    name: &'static str,
    /// Tenants that have written, by their directory, and how many files each has.
    tenants: Mutex<BTreeMap<String, usize>>,
}

/// Files of one tenant.
pub const FILES_LIMIT: usize = 4096;
/// Tenants with files; the directory of the one that had no use of it for longest goes.
pub const TENANTS_LIMIT: usize = 1024;
/// How long what was read or written counts as just used.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

impl Shelf {
    pub(in crate::store) fn open(disk: Arc<Disk>, name: &'static str) -> Result<Self, Error> {
        let mut tenants = BTreeMap::new();
        for path in children(&disk.directory().join(name))? {
            if path.is_dir() {
                let count = children(&path)?.len();
                tenants.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned(), count);
            }
        }
        Ok(Self { disk, name, tenants: Mutex::new(tenants) })
    }

    /// What somebody wrote under `name`; what `tenant` wrote itself is looked at first.
    pub(in crate::store) fn read<T: DeserializeOwned>(
        &self,
        tenant: &Tenant,
        name: &str,
    ) -> Result<Option<T>, Error> {
        let directory = self.directory();
        let own = directory_of(tenant);
        let others: Vec<String> = self.lock().keys().filter(|other| **other != own).cloned().collect();
        // Files of ocivol 0.1 are in no tenant's directory.
        let places = std::iter::once(directory.join(&own))
            .chain(std::iter::once(directory.clone()))
            .chain(others.iter().map(|other| directory.join(other)));
        for place in places {
            if let Some(found) = read_in(&place, name)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// What `tenant` itself wrote under `name`.
    pub(in crate::store) fn read_of<T: DeserializeOwned>(
        &self,
        tenant: &Tenant,
        name: &str,
    ) -> Result<Option<T>, Error> {
        read_in(&self.directory().join(directory_of(tenant)), name)
    }

    /// Writes `value` under `name` for `tenant`.
    pub(in crate::store) fn write<T: Serialize>(
        &self,
        tenant: &Tenant,
        name: &str,
        value: &T,
    ) -> Result<(), Error> {
        let own = directory_of(tenant);
        let directory = self.directory().join(&own);
        let mut tenants = self.lock();
        if !tenants.contains_key(&own) {
            if tenants.len() >= TENANTS_LIMIT {
                self.forget_oldest_tenant(&mut tenants)?;
            }
            tenants.insert(own.clone(), 0);
        }
        create_private(&directory).map_err(io("create", &directory))?;
        let path = directory.join(name);
        let is_new = !path.exists();
        record::write(&self.disk, &path, value)?;
        if let Some(count) = tenants.get_mut(&own).filter(|_| is_new) {
            *count += 1;
            if *count > FILES_LIMIT {
                *count = forget_oldest(children(&directory)?, FILES_LIMIT - FILES_LIMIT / 8)?;
            }
        }
        Ok(())
    }

    /// Removes the files that were of no use for `limit` and that `is_lost`.
    pub(in crate::store) fn forget(
        &self,
        limit: Duration,
        is_lost: &dyn Fn(&Path) -> bool,
    ) -> Result<(), Error> {
        let tenants: Vec<String> = self.lock().keys().cloned().collect();
        for tenant in tenants {
            let mut gone = 0;
            for path in children(&self.directory().join(&tenant))? {
                if modified(&path).elapsed().is_ok_and(|age| age > limit) && is_lost(&path) {
                    remove(&path)?;
                    gone += 1;
                }
            }
            if let Some(count) = self.lock().get_mut(&tenant) {
                *count = count.saturating_sub(gone);
            }
        }
        Ok(())
    }

    fn forget_oldest_tenant(&self, tenants: &mut BTreeMap<String, usize>) -> Result<(), Error> {
        let directory = self.directory();
        // What root and the operator have noted is not pushed out by namespaces.
        let kept = [&Tenant::CommandLine, &Tenant::PrePull].map(directory_of);
        let others = tenants.keys().filter(|name| !kept.contains(name));
        let oldest = others.min_by_key(|name| modified(&directory.join(name))).cloned();
        if let Some(oldest) = oldest {
            tenants.remove(&oldest);
            self.disk.discard(&directory.join(&oldest))?;
        }
        Ok(())
    }

    fn directory(&self) -> PathBuf {
        self.disk.directory().join(self.name)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is in the file `name` of the directory `place`, which is then kept.
fn read_in<T: DeserializeOwned>(place: &Path, name: &str) -> Result<Option<T>, Error> {
    let path = place.join(name);
    let found = match record::read(&path) {
        // What the disk has lost is asked for again, as what nobody wrote.
        Err(error) if error.is_loss() => {
            tracing::warn!(%error, "what was noted is lost");
            None
        }
        found => found?,
    };
    if found.is_some() {
        keep(place);
        keep(&path);
    }
    Ok(found)
}

/// Removes the oldest files until `left` are left; returns how many there are then.
fn forget_oldest(files: Vec<PathBuf>, left: usize) -> Result<usize, Error> {
    let mut files: Vec<(SystemTime, PathBuf)> =
        files.into_iter().map(|path| (modified(&path), path)).collect();
    files.sort_unstable();
    let gone = files.len().saturating_sub(left);
    for (_, path) in &files[..gone] {
        remove(path)?;
    }
    Ok(files.len() - gone)
}

/// Notes that what is at `path` is of use, so that what is not goes first. Once a day is enough, and it is only a hint.
fn keep(path: &std::path::Path) {
    let now = SystemTime::now();
    if now.duration_since(modified(path)).is_ok_and(|age| age > KEPT_FOR)
        && let Ok(file) = fs::File::open(path)
    {
        let _ = file.set_modified(now);
    }
}

fn modified(path: &std::path::Path) -> SystemTime {
    fs::symlink_metadata(path).and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A tenant's name can be any text: only a hash of it becomes a name.
fn directory_of(tenant: &Tenant) -> String {
    let text = match tenant {
        Tenant::Namespace(name) => format!("namespace {name}"),
        Tenant::CommandLine => "command line".to_owned(),
        Tenant::PrePull => "pre-pull".to_owned(),
        Tenant::Unnamed => "unnamed".to_owned(),
    };
    Digest::sha256(text.as_bytes()).short().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::space::budget::Budget;

    #[test]
    fn a_tenant_fills_only_its_own_directory_and_is_read_by_all() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("v1");
        create_private(&directory.join("ingest/trash")).expect("made");
        create_private(&directory.join("tags")).expect("made");
        let open = || {
            let disk = Arc::new(Disk::new(directory.clone(), Budget::COMMAND).expect("a disk"));
            Shelf::open(disk, "tags").expect("a shelf")
        };
        let shelf = open();
        let (loud, quiet) = (Tenant::of_namespace(Some("loud")), Tenant::of_namespace(Some("quiet")));
        shelf.write(&quiet, "kept", &7).expect("written");
        for number in 0..FILES_LIMIT + 10 {
            shelf.write(&loud, &format!("{number}"), &number).expect("written");
        }
        for shelf in [shelf, open()] {
            assert_eq!(shelf.read::<i32>(&loud, "kept").expect("readable"), Some(7));
            let last = format!("{}", FILES_LIMIT + 9);
            assert_eq!(shelf.read::<usize>(&quiet, &last).expect("readable"), Some(FILES_LIMIT + 9));
            let count = shelf.lock().get(&directory_of(&loud)).copied().unwrap_or_default();
            assert!(count <= FILES_LIMIT && count > FILES_LIMIT / 2, "{count}");
        }
        // Who reads what he has keeps it, as who writes does.
        let own = directory.join("tags").join(directory_of(&quiet));
        let long_ago = SystemTime::now() - 30 * KEPT_FOR;
        for path in [own.clone(), own.join("kept")] {
            fs::File::open(&path).expect("there").set_modified(long_ago).expect("aged");
        }
        assert_eq!(open().read::<i32>(&quiet, "kept").expect("readable"), Some(7));
        for path in [own.clone(), own.join("kept")] {
            assert!(modified(&path) > long_ago + 29 * KEPT_FOR, "{}", path.display());
        }
        fs::write(directory.join("tags/old"), "3").expect("written");
        assert_eq!(open().read::<i32>(&quiet, "old").expect("readable"), Some(3));
    }
}
