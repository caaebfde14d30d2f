//! Downloads of blobs that can be resumed, also by another process of the same boot.
//!
//! `ranges.json` beside the data says which ranges are complete. It counts only in the same boot; after a reboot nobody knows
//! what reached the disk.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::host::failpoint;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::store::access::origin::Origin;
use crate::store::content::blobs::{Blob, Blobs};
use crate::store::content::partial::Partial;
use crate::store::content::ranges::Ranges;
use crate::store::disk::{Disk, age, children, create_private, remove};
use crate::store::durable::ledger::Ledger;
use crate::store::durable::record;
use crate::store::error::{Error, io};
use crate::store::key::Name;

/// The owner of the downloads in `ingest/`.
#[derive(Debug)]
pub struct Ingests {
    disk: Arc<Disk>,
    ledger: Arc<Ledger>,
    blobs: Arc<Blobs>,
    /// Directories that are being written.
    open: Mutex<HashSet<PathBuf>>,
    closed: Condvar,
}

/// A blob that is being written. Dropped unfinished, it can be resumed.
#[derive(Debug)]
pub struct Ingest {
    ingests: Arc<Ingests>,
    digest: Digest,
    directory: PathBuf,
    origin: Origin,
    /// [`Ledger::losses`] when it was opened.
    losses: u64,
    partial: Partial,
    /// Bytes written since `ranges.json` was.
    unrecorded: AtomicU64,
    /// `ranges.json`, once it is there.
    recorded: Mutex<Option<File>>,
}

/// A download that was begun, and that nobody works on.
#[derive(Debug, Clone)]
pub(in crate::store) struct Idle {
    path: PathBuf,
    /// The blob.
    pub digest: Digest,
    /// Bytes that it takes on the disk.
    pub bytes: u64,
    /// How long ago somebody did.
    pub age: Duration,
}

#[derive(Serialize, Deserialize)]
struct Sidecar {
    origin: Origin,
    boot_id: String,
    size: u64,
    ranges: Ranges,
}

/// How often the finished ranges are recorded: what a killed process downloads again, at most.
const RECORD_EVERY: u64 = 4 * 1024 * 1024;
/// Bytes of a record that is written over in place: a page, which a process that is killed has written whole or not at all. After a
/// power cut none of them counts.
const RECORD_BYTES: usize = 4096;

impl Ingests {
    pub(in crate::store) fn new(disk: Arc<Disk>, ledger: Arc<Ledger>, blobs: Arc<Blobs>) -> Self {
        Self { disk, ledger, blobs, open: Mutex::default(), closed: Condvar::new() }
    }

    /// Starts to write `blob`, or resumes where an earlier process or attempt stopped.
    ///
    /// `origin` is where all of its bytes come from. What another repository sent is not resumed: only who
    /// delivered a whole blob has shown that it may be read there.
    ///
    /// Waits while another ingest of the same blob from the same repository is open.
    ///
    /// # Errors
    /// [`Error::NoSpace`] or [`Error::Io`].
    pub fn open(self: &Arc<Self>, blob: &Descriptor, mut origin: Origin) -> Result<Ingest, Error> {
        let directory = self.directory_of(blob, &origin);
        let mut open = self.lock();
        while !open.insert(directory.clone()) {
            open = self.closed.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
        drop(open);
        let close = |error| {
            self.close(&directory);
            error
        };
        let losses = self.ledger.losses(); // Before what is there is looked at.
        let ranges = match self.resumable(&directory, blob, &origin).map_err(close)? {
            Some(known) => {
                origin.anonymous &= known.origin.anonymous;
                known.ranges
            }
            None => {
                remove(&directory).map_err(close)?;
                Ranges::default()
            }
        };
        let created = failpoint::fails("ingest.create").and_then(|()| create_private(&directory));
        created.map_err(io("create", &directory)).map_err(close)?;
        let partial = Partial::spooled(directory.join("data"), blob.size, ranges);
        let ingest = Ingest {
            ingests: Arc::clone(self),
            digest: blob.digest.clone(),
            directory,
            origin,
            losses,
            partial,
            unrecorded: AtomicU64::new(0),
            recorded: Mutex::default(),
        };
        ingest.partial.file()?;
        Ok(ingest)
    }

    /// The downloads that nobody works on.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(in crate::store) fn idle(&self) -> Result<Vec<Idle>, Error> {
        let mut idle = Vec::new();
        for path in children(&self.disk.directory().join("ingest"))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut parts = name.split('-');
            let digest = parts
                .next()
                .zip(parts.next())
                .and_then(|(algorithm, hex)| format!("{algorithm}:{hex}").parse().ok());
            let Some(digest) = digest else { continue };
            if self.lock().contains(&path) {
                continue;
            }
            let bytes = fs::metadata(path.join("data")).map_or(0, |found| found.blocks() * 512);
            let age = age(&path.join("ranges.json")).or_else(|| age(&path)).unwrap_or_default();
            idle.push(Idle { path, digest, bytes, age });
        }
        Ok(idle)
    }

    /// Takes a download away, unless somebody goes on with it meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(in crate::store) fn discard_idle(&self, idle: &Idle) -> Result<bool, Error> {
        let discarded = {
            // While this is locked nobody goes on with it.
            let open = self.lock();
            if open.contains(&idle.path) || !idle.path.exists() {
                return Ok(false);
            }
            self.disk.to_trash(&idle.path)?
        };
        remove(&discarded).map(|()| true)
    }

    /// Bytes of `blob` that a download from `origin` still has to fetch.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn missing_of(&self, blob: &Descriptor, origin: &Origin) -> Result<u64, Error> {
        let known = self.resumable(&self.directory_of(blob, origin), blob, origin)?;
        Ok(blob.size - known.map_or(0, |known| known.ranges.total()))
    }

    /// Makes sure that nothing is resumed whose bytes may be lost.
    pub(in crate::store) fn discard_volatile(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for directory in children(&self.disk.directory().join("ingest"))? {
            result = result.and(remove(&directory.join("ranges.json")));
        }
        result
    }

    /// One directory for each digest, size and repository: sources do not spoil each other's downloads.
    fn directory_of(&self, blob: &Descriptor, origin: &Origin) -> PathBuf {
        let Origin { repository, .. } = origin;
        let from = Digest::sha256(format!("{} {}", repository.host, repository.name).as_bytes());
        let digest = &blob.digest;
        let name = format!("{}-{}-{}-{}", digest.algorithm().as_str(), digest.hex(), blob.size, from.short());
        self.disk.directory().join("ingest").join(name)
    }

    /// What an earlier attempt left in `directory`, if it can be believed: from this repository, recorded in this boot, and
    /// as long as it says.
    fn resumable(
        &self,
        directory: &Path,
        blob: &Descriptor,
        origin: &Origin,
    ) -> Result<Option<Sidecar>, Error> {
        let length = fs::metadata(directory.join("data")).map_or(0, |found| found.len());
        let known: Option<Sidecar> = record::read(&directory.join("ranges.json"))?;
        Ok(known.filter(|known| {
            known.boot_id == self.disk.boot_id
                && known.origin.repository == origin.repository
                && known.size == blob.size
                && known.ranges.is_valid(blob.size)
                && known.ranges.end() <= length
        }))
    }

    fn close(&self, directory: &Path) {
        self.lock().remove(directory);
        self.closed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ingest {
    /// What is there, and what comes.
    pub fn partial(&self) -> &Partial {
        &self.partial
    }

    /// Writes `bytes` at `offset`. *Caller:* one thread.
    ///
    /// # Errors
    /// As [`Partial::write`].
    pub fn write(&self, offset: u64, bytes: Bytes) -> Result<(), Error> {
        let length = bytes.len() as u64;
        self.partial.write_on(&self.ingests.disk, Name::content(&self.digest), true, offset, bytes)?;
        let unrecorded = self.unrecorded.fetch_add(length, Ordering::Relaxed) + length;
        failpoint::reached("pull.received");
        if unrecorded >= RECORD_EVERY {
            self.record()?;
            failpoint::reached("pull.recorded");
        }
        Ok(())
    }

    /// Publishes the blob, all of whose bytes have the digest `got`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when that is another than it should be: the content is then gone. Else as [`Ingest::write`].
    pub fn publish(self, got: &Digest) -> Result<Blob, Error> {
        self.unrecorded.store(0, Ordering::Relaxed);
        if let Err(lost) = self.ingests.ledger.check_losses(self.losses, &format!("blob {}", self.digest)) {
            remove(&self.directory)?;
            return Err(lost);
        }
        if *got != self.digest {
            remove(&self.directory)?;
            return Err(Error::Mismatch { expected: self.digest.clone(), got: got.clone() });
        }
        remove(&self.directory.join("ranges.json"))?; // It says nothing once the data is moved.
        failpoint::reached("pull.verified");
        let blob = self.ingests.blobs.publish(
            &self.digest,
            self.partial.size(),
            self.partial.path(),
            self.origin.clone(),
            self.losses,
        )?;
        remove(&self.directory)?;
        Ok(blob)
    }

    fn record(&self) -> Result<(), Error> {
        self.unrecorded.store(0, Ordering::Relaxed);
        let disk = &self.ingests.disk;
        let sidecar = Sidecar {
            origin: self.origin.clone(),
            boot_id: disk.boot_id.clone(),
            size: self.partial.size(),
            ranges: self.partial.ranges(),
        };
        let path = self.directory.join("ranges.json");
        if self.is_written_over(&sidecar) {
            return Ok(());
        }
        record::write(disk, &path, &sidecar)?;
        *self.recorded() = OpenOptions::new().write(true).open(&path).ok();
        // What was given up meanwhile must not come back.
        if self.losses == self.ingests.ledger.losses() { Ok(()) } else { remove(&path) }
    }
}

impl Ingest {
    /// Writes the record over the one that is there: without making a file, and renaming it, for every few megabytes. Whether it could. One
    /// that was removed because the disk has lost something does not come back.
    fn is_written_over(&self, sidecar: &Sidecar) -> bool {
        let recorded = self.recorded();
        let Some(file) = recorded.as_ref() else { return false };
        let Ok(mut bytes) = serde_json::to_vec(sidecar) else { return false };
        if bytes.len() > RECORD_BYTES {
            return false;
        }
        // White space after a record says nothing.
        bytes.resize(RECORD_BYTES, b' ');
        file.write_all_at(&bytes, 0).is_ok()
    }

    fn recorded(&self) -> MutexGuard<'_, Option<File>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if self.unrecorded.load(Ordering::Relaxed) > 0
            && let Err(error) = self.record()
        {
            tracing::debug!(%error, digest = %self.digest, "this download cannot be resumed");
        }
        self.ingests.close(&self.directory);
    }
}

/// Whether a directory in `ingest/` holds a download of this boot that is not older than `limit`.
pub(in crate::store) fn is_resumable(directory: &Path, boot_id: &str, limit: Duration) -> bool {
    let sidecar = directory.join("ranges.json");
    fs::metadata(directory.join("data")).is_ok()
        && age(&sidecar).is_some_and(|age| age < limit)
        && matches!(record::read::<Sidecar>(&sidecar), Ok(Some(known)) if known.boot_id == boot_id)
}
