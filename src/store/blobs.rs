//! Verified blobs as files: manifests, configs, raw layers.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::oci::digest::Digest;
use crate::store::error::{Error, io};
use crate::store::{Entry, Store, record, remove};

/// A blob in the store.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its file: 0444, mtime 0.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it was once fetched without credentials: then everybody may have it.
    pub public: bool,
    /// The repositories it was fetched from, or was shown to be readable in.
    pub origins: Vec<Origin>,
}

/// A repository that delivered a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The registry.
    pub host: String,
    /// The repository.
    pub repository: String,
    /// Whether it was read without credentials.
    pub anonymous: bool,
}

impl Origin {
    /// Whether both are the same repository of the same registry.
    pub fn same_repository(&self, other: &Self) -> bool {
        self.host == other.host && self.repository == other.repository
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct BlobRecord {
    size: u64,
    boot_id: String,
    durable: bool,
    origins: Vec<Origin>,
}

/// Origins kept per blob or layer; the oldest go first.
const ORIGINS_LIMIT: usize = 64;

/// Adds `origin`; false when it is known already.
pub(super) fn note_origin(origins: &mut Vec<Origin>, origin: Origin) -> bool {
    if origins.contains(&origin) {
        return false;
    }
    if origins.len() >= ORIGINS_LIMIT {
        origins.remove(0);
    }
    origins.push(origin);
    true
}

/// Bytes of a blob that is hashed in a moment.
const SMALL: u64 = 8 * 1024 * 1024;

impl Store {
    /// The blob with `digest`, if it is here.
    ///
    /// The first look by a new process at a blob that is not durable reads it whole.
    ///
    /// # Errors
    /// [`Error::Io`]. Content that is wrong is discarded and counts as absent.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Blob>, Error> {
        let (path, record_path) = self.blob_paths(digest);
        let entry = Entry::Blob(digest.clone());
        let read = || record::read::<BlobRecord>(&record_path);
        let is_trusted = |known: &BlobRecord| known.durable || self.verified().contains(&entry);
        let Some(mut known) = read()? else { return Ok(None) };
        let _one;
        // What is small is checked at once, and does not wait for what is large.
        if !is_trusted(&known) && known.size > SMALL {
            _one = self.checking(digest.hex());
            // Somebody may have looked meanwhile.
            match read()? {
                Some(now) => known = now,
                None => return Ok(None),
            }
        }
        let size = match fs::symlink_metadata(&path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("read", &path)(error)),
        };
        let trusted = is_trusted(&known);
        let is_right = || match hash_file(&path, digest) {
            Err(error) if error.is_loss() => Ok(false),
            result => result.map(|found| found == *digest),
        };
        let sound = size == known.size && (trusted || (known.boot_id == self.boot_id && is_right()?));
        if !sound {
            tracing::warn!(%digest, "discarding a blob that did not survive");
            self.discard_blob(digest)?;
            return Ok(None);
        }
        if !trusted {
            self.verified().insert(entry.clone());
            self.flusher.add(entry);
        }
        let public = known.origins.iter().any(|origin| origin.anonymous);
        Ok(Some(Blob { path, size, public, origins: known.origins }))
    }

    /// Stores `bytes`, whose digest the caller has checked, and which came from `origin`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when they are not what `digest` names, [`Error::NoSpace`], [`Error::Io`].
    pub fn add_blob(&self, digest: &Digest, bytes: &[u8], origin: Origin) -> Result<Blob, Error> {
        if !digest.matches(bytes) {
            let got = Digest::of(digest.algorithm(), bytes);
            return Err(Error::Mismatch { expected: digest.clone(), got });
        }
        let losses = self.losses();
        if let Some(known) = self.blob(digest)? {
            self.add_origin(digest, origin)?;
            return Ok(known);
        }
        let temporary = self.temporary();
        let written = fs::write(&temporary, bytes).map_err(io("write", &temporary));
        let size = bytes.len() as u64;
        let added = written.and_then(|()| self.publish_blob(digest, size, &temporary, origin, losses));
        if added.is_err() {
            remove(&temporary)?;
        }
        added
    }

    /// The content of a blob of at most `limit` bytes; a larger one counts as absent.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read_blob(&self, digest: &Digest, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        let Some(blob) = self.blob(digest)?.filter(|blob| blob.size <= limit as u64) else { return Ok(None) };
        fs::read(&blob.path).map(Some).map_err(io("read", &blob.path))
    }

    /// Notes that `digest` was read from, or shown to be readable at, `origin`.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn add_origin(&self, digest: &Digest, origin: Origin) -> Result<(), Error> {
        self.update_blob(digest, |known| note_origin(&mut known.origins, origin))
    }

    /// Moves a verified file into place; the record, which makes it exist, comes last. `losses` were counted when
    /// its first byte was written.
    pub(super) fn publish_blob(
        &self,
        digest: &Digest,
        size: u64,
        from: &Path,
        origin: Origin,
        losses: u64,
    ) -> Result<Blob, Error> {
        let (path, record_path) = self.blob_paths(digest);
        set_plain_metadata(from)?;
        fs::rename(from, &path).map_err(io("publish", &path))?;
        crate::host::failpoint::reached("blob.named");
        let entry = Entry::Blob(digest.clone());
        let origins = {
            let _guard = self.lock_records();
            self.check_losses(losses, &format!("blob {digest}"))?;
            // Two may bring the same blob at once; what either has shown stays known.
            let known =
                record::read::<BlobRecord>(&record_path)?.map_or_else(Vec::new, |known| known.origins);
            let mut origins: Vec<Origin> = known.into_iter().filter(|known| *known != origin).collect();
            origins.push(origin);
            let record =
                BlobRecord { size, boot_id: self.boot_id.clone(), durable: false, origins: origins.clone() };
            self.write_record(&record_path, &record)?;
            crate::host::failpoint::reached("blob.recorded");
            origins
        };
        self.verified().insert(entry.clone());
        self.flusher.add(entry);
        let public = origins.iter().any(|origin| origin.anonymous);
        Ok(Blob { path, size, public, origins })
    }

    pub(super) fn mark_blob_durable(&self, digest: &Digest) -> Result<(), Error> {
        self.update_blob(digest, |known| !std::mem::replace(&mut known.durable, true))
    }

    /// Takes a blob out of the store; record first, so that it never exists without being checked.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn discard_blob(&self, digest: &Digest) -> Result<(), Error> {
        let (path, record_path) = self.blob_paths(digest);
        let _guard = self.lock_records();
        self.verified().remove(&Entry::Blob(digest.clone()));
        remove(&record_path)?;
        self.discard(&path)
    }

    /// Discards every blob that is not durable. Goes on after an error, and returns the first.
    pub(super) fn discard_volatile_blobs(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for algorithm in ["sha256", "sha512"] {
            for path in crate::store::children(&self.directory.join("blobs").join(algorithm))? {
                let hex = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"));
                let digest = hex.and_then(|hex| format!("{algorithm}:{hex}").parse().ok());
                let known = record::read::<BlobRecord>(&path);
                if let (Some(digest), Ok(Some(BlobRecord { durable: false, .. }))) = (digest, known) {
                    result = result.and(self.discard_blob(&digest));
                }
            }
        }
        result
    }

    fn update_blob(
        &self,
        digest: &Digest,
        change: impl FnOnce(&mut BlobRecord) -> bool,
    ) -> Result<(), Error> {
        let (_, record_path) = self.blob_paths(digest);
        let _guard = self.lock_records();
        let Some(mut known) = record::read::<BlobRecord>(&record_path)? else { return Ok(()) };
        if change(&mut known) { self.write_record(&record_path, &known) } else { Ok(()) }
    }

    fn blob_paths(&self, digest: &Digest) -> (PathBuf, PathBuf) {
        let directory = self.directory.join("blobs").join(digest.algorithm().as_str());
        (directory.join(digest.hex()), directory.join(format!("{}.json", digest.hex())))
    }
}

/// The digest of a file's content.
pub(super) fn hash_file(path: &Path, like: &Digest) -> Result<Digest, Error> {
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
