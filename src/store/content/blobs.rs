//! Verified blobs as files: manifests, configs, raw layers.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::host::failpoint;
use crate::oci::digest::Digest;
use crate::store::access::origin::{Origin, note_origin};
use crate::store::disk::{Disk, each_child, remove};
use crate::store::durable::facts::Facts;
use crate::store::durable::ledger::Ledger;
use crate::store::durable::record::{self, Stamp};
use crate::store::error::{Error, io};
use crate::store::key::{Entry, Name};

/// The owner of `blobs/`.
#[derive(Debug)]
pub struct Blobs {
    disk: Arc<Disk>,
    ledger: Arc<Ledger>,
    facts: Arc<Facts>,
    /// Held while a large blob that is not durable is looked at for the first time: once, and few at a time.
    checking: [Mutex<()>; CHECKS_AT_A_TIME],
}

/// A blob in the store.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its file: 0444, mtime 0.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it was once fetched without credentials: then everybody may have it.
    pub public: bool,
    /// The repositories it was fetched from, or was shown to be readable in.
    pub origins: Vec<Origin>,
}

#[derive(Debug, Serialize, Deserialize)]
struct BlobRecord {
    size: u64,
    /// Where it came from when it was recorded.
    origins: Vec<Origin>,
    #[serde(flatten)]
    stamp: Stamp,
}

/// What is learnt of a blob later.
#[derive(Debug, Default, Serialize, Deserialize)]
struct BlobFacts {
    #[serde(default)]
    origins: Vec<Origin>,
}

/// First looks at large blobs at a time.
const CHECKS_AT_A_TIME: usize = 2;
/// Bytes of a blob that is hashed in a moment.
const SMALL: u64 = 8 * 1024 * 1024;

impl Blobs {
    pub(in crate::store) fn new(disk: Arc<Disk>, ledger: Arc<Ledger>, facts: Arc<Facts>) -> Self {
        Self { disk, ledger, facts, checking: Default::default() }
    }

    /// The blob with `digest`, if it is here.
    ///
    /// The first look by a new process at a blob that is not durable reads it whole.
    ///
    /// # Errors
    /// [`Error::Io`]. Content that is wrong is discarded and counts as absent.
    pub fn get(&self, digest: &Digest) -> Result<Option<Blob>, Error> {
        let (path, record_path) = self.paths(digest);
        let entry = Entry::Blob(digest.clone());
        let read = || record::read::<BlobRecord>(&record_path);
        let is_trusted = |known: &BlobRecord| self.ledger.is_trusted(&entry, &known.stamp);
        let Some(mut known) = read()? else { return Ok(None) };
        let mut trusted = is_trusted(&known);
        let _one;
        // A small blob is checked at once, and does not wait for a large one.
        if !trusted && known.size > SMALL {
            _one = self.checking(digest);
            // Another thread may have looked meanwhile.
            match read()? {
                Some(now) => known = now,
                None => return Ok(None),
            }
            trusted = is_trusted(&known);
        }
        let size = match fs::symlink_metadata(&path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("read", &path)(error)),
        };
        let is_right = || match hash_file(&path, digest) {
            Err(error) if error.is_loss() => Ok(false),
            result => result.map(|found| found == *digest),
        };
        let is_of_this_boot = known.stamp.boot_id == self.disk.boot_id;
        if size != known.size || !(trusted || (is_of_this_boot && is_right()?)) {
            tracing::warn!(%digest, "discarding a blob that did not survive");
            self.discard(digest)?;
            return Ok(None);
        }
        if !trusted {
            self.ledger.trust(entry.clone(), &known.stamp);
        }
        let mut origins = known.origins;
        origins.extend(self.facts.of::<BlobFacts>(&entry)?.origins);
        let public = origins.iter().any(|origin| origin.anonymous);
        Ok(Some(Blob { digest: digest.clone(), path, size, public, origins }))
    }

    /// Stores `bytes`, which came from `origin`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when they are not what `digest` names, [`Error::NoSpace`], [`Error::Io`].
    pub fn add(&self, digest: &Digest, bytes: &[u8], origin: Origin) -> Result<Blob, Error> {
        if !digest.matches(bytes) {
            let got = Digest::of(digest.algorithm(), bytes);
            return Err(Error::Mismatch { expected: digest.clone(), got });
        }
        let losses = self.ledger.losses();
        if let Some(known) = self.get(digest)? {
            self.add_origin(digest, origin)?;
            return Ok(known);
        }
        let temporary = self.disk.temporary();
        let written = failpoint::fails("blob.write").and_then(|()| fs::write(&temporary, bytes));
        let written = written.map_err(io("write", &temporary));
        let size = bytes.len() as u64;
        let added = written.and_then(|()| self.publish(digest, size, &temporary, origin, losses));
        if added.is_err() {
            remove(&temporary)?;
        }
        added
    }

    /// The content of a blob of at most `limit` bytes; a larger one counts as absent.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read(&self, digest: &Digest, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        let Some(blob) = self.get(digest)?.filter(|blob| blob.size <= limit as u64) else { return Ok(None) };
        match fs::read(&blob.path) {
            // It was collected since.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some).map_err(io("read", &blob.path)),
        }
    }

    /// Notes that `digest` was read from, or shown to be readable at, `origin`.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn add_origin(&self, digest: &Digest, origin: Origin) -> Result<(), Error> {
        let recorded = record::read::<BlobRecord>(&self.paths(digest).1)?;
        if recorded.is_none_or(|known| known.origins.contains(&origin)) {
            return Ok(());
        }
        self.facts.update(&Entry::Blob(digest.clone()), |known: &mut BlobFacts| {
            note_origin(&mut known.origins, origin)
        })
    }

    /// Moves a verified file into place; the record, which makes it exist, comes last. `losses` were counted when
    /// its first byte was written.
    pub(in crate::store) fn publish(
        &self,
        digest: &Digest,
        size: u64,
        from: &Path,
        origin: Origin,
        losses: u64,
    ) -> Result<Blob, Error> {
        set_plain_metadata(from)?;
        {
            let _one = self.ledger.publishing();
            self.ledger.check_losses(losses, &format!("blob {digest}"))?;
            let (path, record_path) = self.paths(digest);
            // Two may bring the same blob at once. The first record stays, with the file that it speaks of.
            let known = record::read::<BlobRecord>(&record_path)?;
            let is_here = known.is_some_and(|known| known.size == size) && path.exists();
            if !is_here {
                // A record is never replaced, not even that of a file which is lost.
                self.ledger.forget(&Entry::Blob(digest.clone()), &record_path)?;
                let named = failpoint::fails("blob.name").and_then(|()| fs::rename(from, &path));
                named.map_err(io("publish", &path))?;
                failpoint::reached("blob.named");
                let stamp = Stamp::now(&self.disk);
                let record = BlobRecord { size, origins: vec![origin.clone()], stamp: stamp.clone() };
                if let Err(error) = record::write(&self.disk, &record_path, &record) {
                    remove(&path)?; // Without its record it is nothing.
                    return Err(error);
                }
                self.disk.room.arrived(Name::content(digest));
                failpoint::reached("blob.recorded");
                self.ledger.trust(Entry::Blob(digest.clone()), &stamp);
            }
        }
        self.add_origin(digest, origin)?;
        remove(from)?;
        self.get(digest)?.ok_or_else(|| Error::Damaged(format!("blob {digest} is gone")))
    }

    /// Takes a blob out of the store; record first, so that it never exists without being checked.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn discard(&self, digest: &Digest) -> Result<(), Error> {
        remove(&self.take_away(digest)?)
    }

    /// The same without deleting it, which may take long. Returns where its file waits for that.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(in crate::store) fn take_away(&self, digest: &Digest) -> Result<PathBuf, Error> {
        let (path, record_path) = self.paths(digest);
        let entry = Entry::Blob(digest.clone());
        let _one = self.ledger.publishing();
        self.ledger.forget(&entry, &record_path)?;
        self.facts.forget(&entry)?;
        self.disk.to_trash(&path)
    }

    /// Takes the file with this name out of sight, unless a record belongs to it or one is about to.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(in crate::store) fn take_nameless(
        &self,
        algorithm: &str,
        name: &str,
    ) -> Result<Option<PathBuf>, Error> {
        let _one = self.ledger.publishing();
        let directory = self.disk.directory().join("blobs").join(algorithm);
        match directory.join(format!("{name}.json")).exists() {
            true => Ok(None),
            false => self.disk.to_trash(&directory.join(name)).map(Some),
        }
    }

    /// Discards every blob that is not durable. Goes on after an error, and returns the first.
    pub(in crate::store) fn discard_volatile(&self) -> Result<(), Error> {
        let mut result = Ok(());
        self.each(&mut |digest, path| {
            if let Ok(Some(known)) = record::read::<BlobRecord>(path)
                && !self.ledger.is_durable(&Entry::Blob(digest.clone()), &known.stamp)
            {
                result = std::mem::replace(&mut result, Ok(())).and(self.discard(&digest));
            }
            Ok(())
        })?;
        result
    }

    /// Calls `take` with the digest of one blob after the other, and where its record is.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no list of them; those of `take`.
    pub(in crate::store) fn each(
        &self,
        take: &mut dyn FnMut(Digest, &Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for algorithm in ["sha256", "sha512"] {
            let directory = self.disk.directory().join("blobs").join(algorithm);
            each_child(&directory, &mut |path| {
                let hex = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"));
                let digest = hex.and_then(|hex| format!("{algorithm}:{hex}").parse().ok());
                digest.map_or(Ok(()), |digest| take(digest, path))
            })?;
        }
        Ok(())
    }

    /// Where the file of a blob is, or would be.
    pub(in crate::store) fn path(&self, digest: &Digest) -> PathBuf {
        self.paths(digest).0
    }

    fn checking(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        let number = usize::from(digest.hex().bytes().last().unwrap_or_default()) % CHECKS_AT_A_TIME;
        self.checking[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paths(&self, digest: &Digest) -> (PathBuf, PathBuf) {
        let directory = self.disk.directory().join("blobs").join(digest.algorithm().as_str());
        (directory.join(digest.hex()), directory.join(format!("{}.json", digest.hex())))
    }
}

/// The size that the record at `path` says, and its stamp.
pub(in crate::store) fn recorded(path: &Path) -> Result<Option<(u64, Stamp)>, Error> {
    let known = record::read::<BlobRecord>(path)?;
    Ok(known.map(|known| (known.size, known.stamp)))
}

/// The digest of a file's content.
pub(in crate::store) fn hash_file(path: &Path, like: &Digest) -> Result<Digest, Error> {
    let mut file = File::open(path).map_err(io("open", path))?;
    let mut hasher = like.algorithm().hasher();
    let mut buffer = vec![0_u8; 256 * 1024];
    loop {
        match file.read(&mut buffer).map_err(io("read", path))? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&buffer[..length]),
        }
    }
}

/// 0444 and mtime 0: a blob's file is shared by artifacts that may say different things of it.
fn set_plain_metadata(path: &Path) -> Result<(), Error> {
    let epoch = SystemTime::UNIX_EPOCH + Duration::ZERO;
    let file = File::open(path).map_err(io("open", path))?;
    file.set_modified(epoch).map_err(io("touch", path))?;
    file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(io("change mode of", path))
}
