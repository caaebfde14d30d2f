//! What references resolved to, and who has shown a right to what.
//!
//! Both are kept under names made with a key of this node: a keyed hash of registry, repository, credential and
//! tag or digest. A name reveals no secret, and an entry made for one credential is not found with another.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};

use crate::oci::digest::{Digest, hex};
use crate::store::error::{Error, io};
use crate::store::{Store, now, record};

/// Who asks for what, as far as the store needs to tell askers apart.
#[derive(Debug, Clone, Copy)]
pub struct AccessKey<'a> {
    /// The registry.
    pub host: &'a str,
    /// The repository.
    pub repository: &'a str,
    /// The credential's parts, or empty for anonymous.
    pub credential: &'a [&'a str],
}

#[derive(Debug, Serialize, Deserialize)]
struct TagRecord {
    digest: Digest,
}

#[derive(Debug, Serialize, Deserialize)]
struct ProofRecord {
    shown: u64,
}

impl Store {
    /// The digest that `tag` had when this asker last resolved it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn tag(&self, who: AccessKey<'_>, tag: &str) -> Result<Option<Digest>, Error> {
        let path = self.directory.join("tags").join(self.keyed_name(who, tag));
        Ok(record::read::<TagRecord>(&path)?.map(|known| known.digest))
    }

    /// Remembers that `tag` is `digest` for this asker.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn set_tag(&self, who: AccessKey<'_>, tag: &str, digest: &Digest) -> Result<(), Error> {
        let path = self.directory.join("tags").join(self.keyed_name(who, tag));
        self.write_record(&path, &TagRecord { digest: digest.clone() })
    }

    /// Whether this asker has shown within `limit` that it may read `what`: a manifest, or all blobs of a tree.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_proven(&self, who: AccessKey<'_>, what: &str, limit: Duration) -> Result<bool, Error> {
        let path = self.directory.join("proofs").join(self.keyed_name(who, what));
        let known = record::read::<ProofRecord>(&path)?;
        Ok(known.is_some_and(|known| now().saturating_sub(known.shown) < limit.as_secs()))
    }

    /// Remembers that this asker may read `what`.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn set_proven(&self, who: AccessKey<'_>, what: &str) -> Result<(), Error> {
        let path = self.directory.join("proofs").join(self.keyed_name(who, what));
        self.write_record(&path, &ProofRecord { shown: now() })
    }

    fn keyed_name(&self, who: AccessKey<'_>, what: &str) -> String {
        let mut mac = Hmac::<sha2::Sha256>::new((&self.key).into());
        let parts = [who.host, who.repository, what].into_iter().chain(who.credential.iter().copied());
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part.as_bytes());
        }
        format!("{}.json", hex(&mac.finalize().into_bytes()))
    }
}

/// The key of this node, made when the store is.
pub(super) fn node_key(directory: &Path) -> Result<[u8; 64], Error> {
    let path = directory.join("key");
    if let Some(key) = fs::read(&path).ok().and_then(|bytes| bytes.try_into().ok()) {
        return Ok(key);
    }
    let key: [u8; 64] = rand::random();
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .map_err(io("create", &path))?;
    std::io::Write::write_all(&mut file, &key).map_err(io("write", &path))?;
    Ok(key)
}
