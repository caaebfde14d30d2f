//! What earlier processes left behind. It is out of sight before the store opens, and deleted while it is used: millions
//! of files take minutes, and publishing does not wait for them.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store::content::ingest::is_resumable;
use crate::store::disk::{children, create_private, remove};
use crate::store::durable::ledger::marker_name;
use crate::store::durable::record::{self, Stamp};
use crate::store::error::{Error, io};
use crate::store::key::{Entry, LayerKey, TreeKey};

/// After this time an unfinished download is not resumed.
const AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Takes away what is in `ingest/` and cannot be resumed. After a reboot, when nothing can be
/// mounted from the store, also what did not survive it.
///
/// # Errors
/// [`Error::Io`], when a directory of the store cannot be listed or changed.
pub(in crate::store) fn clear(directory: &Path, boot_id: &str) -> Result<(), Error> {
    let ingest = directory.join("ingest");
    let trash = ingest.join("trash");
    let mut left = children(&trash)?;
    for path in children(&ingest)? {
        if path != trash && !is_resumable(&path, boot_id, AGE) {
            left.push(path);
        }
    }
    if is_first_after_reboot(directory, boot_id) {
        let mut kept = HashSet::new();
        for kind in [Kind::Layers, Kind::Trees, Kind::Blobs("sha256"), Kind::Blobs("sha512")] {
            left.extend(lost(directory, kind, boot_id, &mut kept)?);
        }
        let is_of_nothing = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_none_or(|name| !kept.contains(name))
        };
        left.extend(children(&directory.join("durable"))?.into_iter().filter(is_of_nothing));
    }
    let old = ingest.join(format!("old-{:016x}", rand::random::<u64>()));
    if let Err(error) = create_private(&old) {
        tracing::warn!(path = %old.display(), %error, "deleting what an earlier process left before the store opens");
        return left.iter().try_for_each(|path| remove(path));
    }
    let mut moved = Ok(());
    for (number, path) in left.iter().enumerate() {
        moved = moved.and(fs::rename(path, old.join(number.to_string())).map_err(io("discard", path)));
    }
    let deleting = std::thread::Builder::new().name("store-leftovers".into()).spawn(move || {
        if let Err(error) = remove(&old) {
            tracing::warn!(%error, "cannot delete what an earlier process left");
        }
    });
    moved.and(deleting.map(drop).map_err(io("start a thread to delete leftovers of", directory)))
}

/// Whether the last process that opened the store did so before the machine was started. When that is not known for
/// certain, something may be mounted.
fn is_first_after_reboot(directory: &Path, boot_id: &str) -> bool {
    let path = directory.join("boot");
    let known = fs::read_to_string(&path).unwrap_or_default();
    if known == boot_id {
        return false;
    }
    // Noted first: else the next process would think that this one had seen no mounts.
    match fs::write(&path, boot_id) {
        Ok(()) => known.len() == boot_id.len(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot note the boot ID");
            false
        }
    }
}

/// What has records.
#[derive(Clone, Copy)]
enum Kind {
    Layers,
    Trees,
    /// Of this algorithm.
    Blobs(&'static str),
}

impl Kind {
    /// The directories of the entries, and of the records.
    fn directories(self, store: &Path) -> [PathBuf; 2] {
        match self {
            Self::Layers => ["layers", "layers"].map(|name| store.join(name)),
            Self::Trees => ["trees", "images"].map(|name| store.join(name)),
            Self::Blobs(algorithm) => ["blobs", "blobs"].map(|name| store.join(name).join(algorithm)),
        }
    }

    /// The entry whose record has this name.
    fn entry(self, name: &str) -> Option<Entry> {
        match self {
            Self::Layers => LayerKey::parse(name).map(Entry::Layer),
            Self::Trees => TreeKey::parse(name).map(Entry::Tree),
            Self::Blobs(algorithm) => format!("{algorithm}:{name}").parse().ok().map(Entry::Blob),
        }
    }
}

/// Entries that are retired, that may not have reached the disk, and that were named before there was a record; and the
/// records, first, so that no record is without its entry. Names of what says of others that they are durable go to `kept`.
fn lost(store: &Path, kind: Kind, boot_id: &str, kept: &mut HashSet<String>) -> Result<Vec<PathBuf>, Error> {
    let [entries, records] = kind.directories(store);
    let is_record = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
    let mut names = HashSet::new();
    let mut left = Vec::new();
    for path in children(&records)?.into_iter().filter(is_record) {
        let entry = path.file_stem().and_then(|name| kind.entry(name.to_str()?));
        let stamp = record::read::<Stamp>(&path).unwrap_or_else(|error| {
            tracing::warn!(%error, "discarding what cannot be read");
            None
        });
        let (Some(entry), Some(stamp)) = (entry, stamp) else {
            left.push(path);
            continue;
        };
        let marker = marker_name(&entry, stamp.generation);
        if stamp.durable || stamp.boot_id == boot_id || store.join("durable").join(&marker).exists() {
            names.extend(path.file_stem().map(ToOwned::to_owned));
            kept.insert(marker);
        } else {
            left.push(path);
        }
    }
    let is_lost =
        |path: &PathBuf| !is_record(path) && path.file_name().is_some_and(|name| !names.contains(name));
    left.extend(children(&entries)?.into_iter().filter(is_lost));
    Ok(left)
}
