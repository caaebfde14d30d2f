//! A blob on its way in: written by ranges in any order, hashed in order, published when the digest is right.
//!
//! Bytes that arrive where the hash stands are hashed from memory; bytes that arrive ahead of it are read back
//! from the page cache when the hash gets there. A blob that arrives in order is thus read by nobody, and
//! written once.
//!
//! What is there survives the process: `ranges.json` beside the data says which ranges are complete. It counts
//! only in the same boot; after a reboot nobody knows what reached the disk.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::oci::descriptor::Descriptor;
use crate::oci::digest::{Digest, Hasher};
use crate::store::blobs::{Blob, Origin};
use crate::store::error::{Error, io};
use crate::store::ranges::Ranges;
use crate::store::{Store, age, create_private, record, remove};

/// A blob that is being written. Dropped unfinished, it can be resumed.
#[derive(Debug)]
pub struct Ingest {
    turn: Turn,
    directory: PathBuf,
    file: File,
    origin: Origin,
    size: u64,
    /// [`Store::losses`] when it was opened.
    losses: u64,
    ranges: Ranges,
    hash: InOrder,
    /// Where writeback was last started.
    written_back: u64,
    /// Bytes written since `ranges.json` was.
    unrecorded: u64,
}

/// A hash over the first `position` bytes.
struct InOrder {
    hasher: Hasher,
    position: u64,
}

impl std::fmt::Debug for InOrder {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "InOrder({})", self.position)
    }
}

/// The right to write in one directory, until dropped.
#[derive(Debug)]
struct Turn {
    store: Arc<Store>,
    digest: Digest,
    directory: PathBuf,
}

impl Turn {
    fn take(store: &Arc<Store>, digest: &Digest, directory: &Path) -> Self {
        let mut open = store.ingests.lock().unwrap_or_else(PoisonError::into_inner);
        while !open.insert(directory.to_owned()) {
            open = store.ingest_closed.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
        Self { store: Arc::clone(store), digest: digest.clone(), directory: directory.to_owned() }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.store.ingests.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.directory);
        self.store.ingest_closed.notify_all();
    }
}

#[derive(Serialize, Deserialize)]
struct Sidecar {
    origin: Origin,
    boot_id: String,
    size: u64,
    ranges: Ranges,
}

/// How often the finished ranges are recorded: what a killed process downloads again, at most.
const RECORD_EVERY: u64 = 64 * 1024 * 1024;
/// How often writeback is started, so that the disk works while the network does.
const WRITE_BACK_EVERY: u64 = 32 * 1024 * 1024;
/// Bytes read back at a time.
const READ_BACK: usize = 256 * 1024;

impl Store {
    /// Starts to write `blob`, or resumes where an earlier process or attempt stopped.
    ///
    /// `origin` is where all of its bytes come from. What another repository sent is not resumed: only who
    /// delivered a whole blob has shown that it may be read there.
    ///
    /// Waits while another ingest of the same blob from the same repository is open.
    ///
    /// # Errors
    /// [`Error::NoSpace`] or [`Error::Io`].
    pub fn ingest(self: &Arc<Self>, blob: &Descriptor, mut origin: Origin) -> Result<Ingest, Error> {
        let directory = self.ingest_directory(blob, &origin);
        let turn = Turn::take(self, &blob.digest, &directory);
        let losses = self.losses(); // Before what is there is looked at.
        let resumed = self.resumable(&directory, blob)?;
        let ranges = match resumed {
            Some(known) => {
                origin.anonymous &= known.origin.anonymous;
                known.ranges
            }
            None => {
                remove(&directory)?;
                Ranges::default()
            }
        };
        create_private(&directory).map_err(io("create", &directory))?;
        let path = directory.join("data");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io("create", &path))?;
        Ok(Ingest {
            turn,
            directory,
            file,
            origin,
            size: blob.size,
            losses,
            ranges,
            hash: InOrder { hasher: blob.digest.algorithm().hasher(), position: 0 },
            written_back: 0,
            unrecorded: 0,
        })
    }
}

impl Store {
    /// Checks that `needed` more bytes fit, for blobs of `wanted` from `origin`. Where they do not, downloads that nobody
    /// works on make place, oldest first.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when they do not fit all the same, [`Error::Io`].
    pub fn make_space(&self, needed: u64, wanted: &[Descriptor], origin: &Origin) -> Result<(), Error> {
        let (full, available) = match self.check_space(needed) {
            Err(full @ Error::NoSpace { available, .. }) => (full, available),
            checked => return checked,
        };
        let kept: HashSet<PathBuf> = wanted.iter().map(|blob| self.ingest_directory(blob, origin)).collect();
        let of_a_blob = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("sha256-") || name.starts_with("sha512-")
        };
        let is_open =
            |path: &Path| self.ingests.lock().unwrap_or_else(PoisonError::into_inner).contains(path);
        let mut idle: Vec<_> = crate::store::children(&self.directory.join("ingest"))?
            .into_iter()
            .filter(|path| of_a_blob(path) && !kept.contains(path) && !is_open(path))
            .filter_map(|path| Some((age(&path.join("ranges.json"))?, path)))
            .collect();
        idle.sort_unstable_by(|one, two| two.cmp(one));
        let bytes = |path: &Path| fs::metadata(path.join("data")).map_or(0, |found| found.blocks() * 512);
        // Not when it would not help.
        if idle.iter().fold(available, |sum, (_, path)| sum.saturating_add(bytes(path))) < needed {
            return Err(full);
        }
        for (age, path) in idle {
            let aside = self.temporary();
            {
                // While this is locked nobody goes on with it.
                let open = self.ingests.lock().unwrap_or_else(PoisonError::into_inner);
                if open.contains(&path) {
                    continue;
                }
                match fs::rename(&path, &aside) {
                    // Another one made place, or the download has ended.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    renamed => renamed.map_err(io("discard", &path))?,
                }
            }
            remove(&aside)?;
            tracing::info!(path = %path.display(), ?age, "discarded an unfinished download for its space");
            if self.check_space(needed).is_ok() {
                return Ok(());
            }
        }
        self.check_space(needed)
    }

    /// Bytes of `blob` that a download from `origin` still has to fetch.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn missing_of(&self, blob: &Descriptor, origin: &Origin) -> Result<u64, Error> {
        let known = self.resumable(&self.ingest_directory(blob, origin), blob)?;
        Ok(blob.size - known.map_or(0, |known| known.ranges.total()))
    }

    /// One directory for each digest, size and repository: sources do not spoil each other's downloads.
    fn ingest_directory(&self, blob: &Descriptor, origin: &Origin) -> PathBuf {
        let repository = Digest::sha256(format!("{} {}", origin.host, origin.repository).as_bytes());
        let (digest, from) = (&blob.digest, repository.short());
        let name = format!("{}-{}-{}-{from}", digest.algorithm().as_str(), digest.hex(), blob.size);
        self.directory.join("ingest").join(name)
    }

    /// What an earlier attempt left in `directory`, if it can be believed: recorded in this boot, and as long as
    /// it says.
    fn resumable(&self, directory: &Path, blob: &Descriptor) -> Result<Option<Sidecar>, Error> {
        let length = fs::metadata(directory.join("data")).map_or(0, |found| found.len());
        let known: Option<Sidecar> = record::read(&directory.join("ranges.json"))?;
        Ok(known.filter(|known| {
            known.boot_id == self.boot_id
                && known.size == blob.size
                && known.ranges.is_valid(blob.size)
                && known.ranges.end() <= length
        }))
    }
}

impl Ingest {
    /// What has to be fetched.
    pub fn missing(&self) -> Vec<Range<u64>> {
        self.ranges.missing(self.size)
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// [`Error::NoSpace`] or [`Error::Io`].
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = offset + bytes.len() as u64;
        let path = self.directory.join("data");
        self.file.write_all_at(bytes, offset).map_err(io("write", &path))?;
        self.ranges.insert(offset..end);
        if offset == self.hash.position {
            self.hash.hasher.update(bytes);
            self.hash.position = end;
        }
        self.hash_what_is_there()?;
        if self.hash.position >= self.written_back + WRITE_BACK_EVERY {
            // Only a hint: syncfs writes what this does not.
            if let Err(error) =
                crate::host::sys::start_writeback(self.file.as_fd(), self.written_back..self.hash.position)
            {
                tracing::debug!(%error, "cannot start writeback");
            }
            self.written_back = self.hash.position;
            // Others write as well.
            self.turn.store.check_space(1)?;
        }
        self.unrecorded += bytes.len() as u64;
        crate::host::failpoint::reached("pull.received");
        if self.unrecorded >= RECORD_EVERY {
            self.record()?;
            crate::host::failpoint::reached("pull.recorded");
        }
        Ok(())
    }

    /// Bytes that are there.
    pub fn present(&self) -> u64 {
        self.ranges.total()
    }

    /// Checks the digest and publishes the blob.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the content is wrong: it is then gone. Else as [`Ingest::write`].
    pub fn finish(mut self) -> Result<Blob, Error> {
        self.hash_what_is_there()?;
        if let Err(lost) = self.turn.store.check_losses(self.losses, &format!("blob {}", self.turn.digest)) {
            self.unrecorded = 0;
            remove(&self.directory)?;
            return Err(lost);
        }
        if self.hash.position != self.size {
            let at = self.hash.position;
            return Err(Error::Damaged(format!("blob {} is incomplete at byte {at}", self.turn.digest)));
        }
        let hasher = std::mem::replace(&mut self.hash.hasher, self.turn.digest.algorithm().hasher());
        let got = hasher.finish();
        if got != self.turn.digest {
            let expected = self.turn.digest.clone();
            self.unrecorded = 0;
            remove(&self.directory)?;
            return Err(Error::Mismatch { expected, got });
        }
        self.unrecorded = 0;
        remove(&self.directory.join("ranges.json"))?; // It says nothing once the data is moved.
        crate::host::failpoint::reached("pull.verified");
        let blob = {
            let Turn { store, digest, .. } = &self.turn;
            store.publish_blob(
                digest,
                self.size,
                &self.directory.join("data"),
                self.origin.clone(),
                self.losses,
            )?
        };
        remove(&self.directory)?;
        Ok(blob)
    }

    /// Hashes on from where the hash stands, as far as there is content.
    fn hash_what_is_there(&mut self) -> Result<(), Error> {
        let end = self.ranges.contiguous_from(self.hash.position);
        if end == self.hash.position {
            return Ok(());
        }
        let path = self.directory.join("data");
        let mut buffer = vec![0_u8; READ_BACK];
        while self.hash.position < end {
            let length = usize::try_from(end - self.hash.position).unwrap_or(READ_BACK).min(READ_BACK);
            let part = &mut buffer[..length];
            self.file.read_exact_at(part, self.hash.position).map_err(io("read", &path))?;
            self.hash.hasher.update(part);
            self.hash.position += length as u64;
        }
        Ok(())
    }

    fn record(&mut self) -> Result<(), Error> {
        self.unrecorded = 0;
        let sidecar = Sidecar {
            origin: self.origin.clone(),
            boot_id: self.turn.store.boot_id.clone(),
            size: self.size,
            ranges: self.ranges.clone(),
        };
        let path = self.directory.join("ranges.json");
        self.turn.store.write_record(&path, &sidecar)?;
        // What was given up meanwhile must not come back.
        if self.losses == self.turn.store.losses() { Ok(()) } else { remove(&path) }
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if self.unrecorded > 0
            && let Err(error) = self.record()
        {
            tracing::debug!(%error, digest = %self.turn.digest, "this download cannot be resumed");
        }
    }
}

/// Whether a directory in `ingest/` holds a download of this boot that is not too old.
pub(super) fn is_resumable(directory: &Path, boot_id: &str, limit: Duration) -> bool {
    let sidecar = directory.join("ranges.json");
    fs::metadata(directory.join("data")).is_ok()
        && age(&sidecar).is_some_and(|age| age < limit)
        && matches!(record::read::<Sidecar>(&sidecar), Ok(Some(known)) if known.boot_id == boot_id)
}
