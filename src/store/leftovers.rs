//! What earlier processes left behind. It is out of sight before the store opens, and deleted while it is used: millions
//! of files take minutes, and publishing does not wait for them.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::store::error::{Error, io};
use crate::store::{age, children, create_private, ingest, record, remove};

/// After this time an unfinished download is not resumed, and a tag or proof not believed.
const AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Takes away what is in `ingest/` and cannot be resumed, and old tags and proofs. After a reboot, when nothing can be
/// mounted from the store, also what did not survive it.
///
/// # Errors
/// [`Error::Io`], when a directory of the store cannot be listed or changed.
pub(super) fn clear(directory: &Path, boot_id: &str) -> Result<(), Error> {
    let ingest = directory.join("ingest");
    let trash = ingest.join("trash");
    let mut left = children(&trash)?;
    for path in children(&ingest)? {
        if path != trash && !ingest::is_resumable(&path, boot_id, AGE) {
            left.push(path);
        }
    }
    for name in ["tags", "proofs"] {
        for path in children(&directory.join(name))? {
            if age(&path).is_none_or(|age| age > AGE) {
                left.push(path);
            }
        }
    }
    if is_first_after_reboot(directory, boot_id) {
        for (entries, records) in [
            ("layers", "layers"),
            ("trees", "images"),
            ("blobs/sha256", "blobs/sha256"),
            ("blobs/sha512", "blobs/sha512"),
        ] {
            left.extend(lost(&directory.join(entries), &directory.join(records), boot_id)?);
        }
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

/// What a record says of how sure its entry is.
#[derive(Deserialize)]
struct Known {
    durable: bool,
    boot_id: String,
}

/// Entries that are retired, that may not have reached the disk, and that were named before there was a record; and the
/// records, first, so that no record is without its entry.
fn lost(entries: &Path, records: &Path, boot_id: &str) -> Result<Vec<PathBuf>, Error> {
    let is_record = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
    let mut kept = HashSet::new();
    let mut left = Vec::new();
    for path in children(records)?.into_iter().filter(is_record) {
        match record::read::<Known>(&path)? {
            Some(known) if known.durable || known.boot_id == boot_id => {
                kept.extend(path.file_stem().map(ToOwned::to_owned));
            }
            _ => left.push(path),
        }
    }
    let is_lost =
        |path: &PathBuf| !is_record(path) && path.file_name().is_some_and(|name| !kept.contains(name));
    left.extend(children(entries)?.into_iter().filter(is_lost));
    Ok(left)
}
